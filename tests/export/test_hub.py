"""The Hugging Face hub, with a stub in its place: upload an exported network, and use one by its name there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import sda as package
from sda.models.weights import hub


@pytest.fixture(scope="module")
def exported(world, do, tmp_path_factory):
    """A run and its export for the hub."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    do("train", world.recipe, "--steps", 2, "--out", run, "--device", "cpu")
    do("export", run, "--as", "hub")
    return run


@pytest.fixture
def served(exported, monkeypatch, tmp_path):
    """The hub has the export as me/streets; the list of what is asked for."""
    asked = []

    def snapshot_download(name, revision, local_dir, allow_patterns):
        asked.append((name, revision))
        if name != "me/streets":
            raise RuntimeError("404 Client Error\nRepository Not Found")
        shutil.copytree(exported / "export", local_dir)
        return str(local_dir)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "_unreachable", lambda url: "")
    return asked


def test_config_names_the_classes(exported, world):
    config = json.loads((exported / "export/config.json").read_text())
    table = package.load(exported, device="cpu").table
    assert config["id2label"] == {str(place): name for place, name in enumerate(table.names)}
    assert config["num_labels"] == len(table.names) and config["preprocessing"]["where"] == "inside"
    assert str(world.folder) not in json.dumps(config)


def test_push_uploads_the_files_of_the_export(exported, sda, monkeypatch, tmp_path):
    calls = []

    class Api:
        def __init__(self, **facts):
            assert facts == {"library_name": "sda"}

        def create_repo(self, name, private, exist_ok):
            calls.append((name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            calls.append((repo_id, Path(folder_path), sorted(allow_patterns)))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    status, shown = sda("export", exported, "--as", "hub", "--out", tmp_path / "up", "--push", "me/streets")
    assert status == 0 and "Uploaded to https://hub/me/streets: sda predict hf://me/streets PHOTOS" in shown.out
    files = ["README.md", "config.json", "model.safetensors"]
    assert calls == [("me/streets", True, True), ("me/streets", tmp_path / "up", files)]

    def refuse(self, *_, **__):
        raise RuntimeError("401 Client Error\nInvalid username or password.")

    monkeypatch.setattr(Api, "create_repo", refuse)
    status, shown = sda("export", exported, "--as", "hub", "--out", tmp_path / "two", "--push", "me/streets")
    assert status == 2 and "to me/streets (401 Client Error); the files are in this folder. To log in: hf auth login" in shown.err
    assert sorted(tiny.files(tmp_path / "two")) == files


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--push", "me/streets"], "--push uploads the files of --as hub: add --as hub"),
        (["--as", "hub", "--push", "streets"], "--push streets: expected OWNER/NAME"),
    ],
)
def test_push_needs_a_name_and_the_format(exported, sda, arguments, says):
    status, shown = sda("export", exported, *arguments)
    assert status == 2 and says in shown.err


def test_a_network_on_the_hub_is_used_by_its_name(exported, served, sda, world, tmp_path):
    run = package.load("hf://me/streets", device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(run.predict(image).labels, package.load(exported, device="cpu").predict(image).labels)
    assert run.folder == Path("runs/me--streets")
    Image.fromarray(image).save(tmp_path / "photo.png")
    assert sda("predict", "hf://me/streets", tmp_path / "photo.png", "--device", "cpu", "--out", tmp_path / "out")[0] == 0
    assert served == [("me/streets", None)], "the second time, it is there"
    status, shown = sda(
        *("train", world.recipe, "--steps", 1, "--weights", "hf://me/streets", "--out", tmp_path / "new", "--device", "cpu")
    )
    assert status == 0, shown.err
    assert "backbone and head, for the same classes" in (tmp_path / "new/weights.txt").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf://me/other", r"hf://me/other: cannot download it \(404 Client Error\)"),
        ("hf://me/streets@v2", ""),
    ],
)
def test_names_and_revisions(served, name, says):
    if says:
        with pytest.raises(package.errors.SdaError, match=says):
            package.load(name, device="cpu")
        return
    assert package.load(name, device="cpu").folder == Path("runs/me--streets@v2")
    assert served == [("me/streets", "v2")]


def test_without_a_network_the_way_out_is_named(served, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda url: "no network")
    with pytest.raises(package.errors.SdaError, match=r"hf://me/streets: .*\(no network\); download it elsewhere and give the"):
        package.load("hf://me/streets", device="cpu")
