"""The command line: help, lists and JSON; every user error prints one line and exits with status 2."""

import json
import os
import pickle
import re
import subprocess
import sys
import tomllib

import click
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

from sda import recipe, shelf
from sda.analysis import select
from sda.cli import export, features
from sda.cli.commands import COMMANDS, cli
from sda.export import formats
from sda.models.build import build
from sda.recipe import SECTIONS, Recipe
from sda.runs import checkpoint


@pytest.fixture
def world(tmp_path):
    return tiny.write_world(tmp_path / "world")


@pytest.fixture
def fails(monkeypatch, capsys):
    """`fails(arguments)` → the error line; asserts status 2, no traceback, nothing on standard output."""

    def fails(*arguments):
        status = tiny.run_main(monkeypatch, *arguments)
        output = capsys.readouterr()
        assert status == 2
        return the_line(output.out, output.err)

    return fails


def the_line(out, err):
    """Return the only error line, which must be the last."""
    assert out == "" and "Traceback" not in err
    errors = [line for line in err.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1 and err.rstrip().endswith(errors[0]), err
    return errors[0].removeprefix("error: ")


def sda(*arguments):
    """Run a command that must succeed through click's runner. Return its standard output."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


# Mistakes


def test_unknown_recipe(fails):
    assert re.match(r"'streets-sda' is not in recipes/ \(did you mean 'streets-ssda'\?\)", fails("train", "streets-sda"))
    assert fails("recipes", "streets-sda") and fails("train", "nowhere.toml") == "nowhere.toml: no such file"


def test_unknown_dataset(fails, world):
    assert "did you mean 'camvid'" in fails("datasets", "camvit")
    assert "did you mean 'cityscapes'" in fails("train", world.recipe, "--target", "cityscape")


def test_unknown_key_in_a_recipe(fails, world):
    world.recipe.write_text(world.recipe.read_text().replace("steps =", "stepz ="))
    message = fails("train", world.recipe)
    assert str(world.recipe) in message and "unknown key 'stepz' (did you mean 'steps'?)" in message


def test_unknown_key_in_a_dataset(fails, world):
    world.toy.write_text(world.toy.read_text().replace("void =", "viod ="))
    message = fails("train", world.recipe, "--out", world.folder / "run")
    assert str(world.toy) in message and "unknown key 'viod' (did you mean 'void'?)" in message


def test_recipe_that_is_not_toml(fails, world):
    world.recipe.write_text("steps = = 3")
    assert f"{world.recipe}: not valid TOML" in fails("train", world.recipe)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "stepz=3"], "unknown key 'stepz' (did you mean 'steps'?)"),
        (["--set", "steps"], "--set steps: expected KEY=VALUE"),
        (["--set", "steps=1.5"], "steps = 1.5: input should be a valid integer"),
        (["--steps", "1.5"], "steps = 1.5: input should be a valid integer"),
        (["--steps", "true"], "steps = True: input should be a valid integer"),
        (["--steps", "ten"], "steps = 'ten': input should be a valid integer"),
        (["--learning-rate", "true"], "learning_rate = True: input should be a valid number"),
        (["--in-memory", "1"], "in_memory = 1: input should be a valid boolean"),
        (["--labels", "some"], "labels"),
        (["--size", "48"], "size = 48: expected HEIGHTxWIDTH, each from 32 to 16384, such as 48x48, or native"),
        (["--momentum", "2"], "momentum = 2"),
        (["--network", "unet"], "network = 'unet': expected one of deeplabv2, deeplabv3plus"),
        (["--unlabelled", "target"], "method supervised cannot use unlabelled images"),
    ],
)
def test_mistyped_values_are_refused(fails, world, flags, says):
    assert says in fails("train", world.recipe, *flags, "--out", world.folder / "run")
    assert not (world.folder / "run").exists()


def test_mistyped_value_in_a_recipe(fails, world):
    world.recipe.write_text(world.recipe.read_text().replace("steps = 3", "steps = 3.5"))
    assert fails("train", world.recipe, "--steps", "3").startswith(f"{world.recipe}: steps = 3.5")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--source-root", "/nowhere"], "Toy town: the folder /nowhere does not exist"),
        (["--target-root", "/nowhere"], "Field: the folder /nowhere does not exist"),
        (["--root", "/nowhere"], "Toy town: the folder /nowhere/toy does not exist"),
        (["--root", ""], "Toy town: no folder is given; set it with --source-root"),
        (["--source", "", "--root", ""], "Field: no folder is given; set it with --target-root"),
        (["--weights", "/nowhere.pth"], "weights /nowhere.pth: no such file"),
        (["--split", "/nowhere.txt"], "/nowhere.txt: the split list cannot be read"),
        (["--labels", "9"], "labels = 9, but only 8 of the 8"),
        (["--labels", "8", *tiny.BANK], "no unlabelled target images are left beside the 8"),
        (["--classes", "cityscapes19"], "none of its classes is in the class table cityscapes19"),
        ([*tiny.BANK, "--unlabelled", "/nowhere"], "/nowhere: no such folder of unlabelled images"),
        pytest.param(["--device", "cuda"], "--device cuda: PyTorch finds no such device",
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
    ],
)  # fmt: skip
def test_missing_files_and_folders_are_named(fails, world, flags, says):
    assert says in fails("train", world.recipe, "--device", "cpu", *flags, "--out", world.folder / "run")


def test_files_that_are_not_weights_are_refused(fails, world):
    (world.folder / "w.pth").write_text("<html>404</html>")
    message = fails("train", world.recipe, "--weights", world.folder / "w.pth", "--out", world.folder / "run")
    assert "w.pth: cannot be read as a state dict" in message


def test_empty_root_is_reported(fails, world):
    (world.folder / "empty").mkdir()
    message = fails("train", world.recipe, "--source-root", world.folder / "empty", "--out", world.folder / "run")
    assert "no images of split 'train'" in message and "looked for train/*.png" in message


def test_images_without_labels_are_reported(fails, world):
    (world.root / "toy/train_masks").rename(world.root / "toy/masks")
    message = fails("train", world.recipe, "--out", world.folder / "run")
    assert "none of the 4 images in " in message and "such as train/00.png, has a label file" in message


def test_out_must_be_empty(fails, world):
    run = world.folder / "run"
    run.mkdir()
    (run / "mine.txt").write_text("precious")
    assert fails("train", world.recipe, "--out", run).endswith("exists and is not empty; choose another folder")
    assert "mine.txt: exists and is not a folder; choose another --out" in fails("train", world.recipe, "--out", run / "mine.txt")
    assert "deeper: Not a directory" in fails("train", world.recipe, "--out", run / "mine.txt/deeper")
    (run / "last.pt").touch()
    assert fails("train", world.recipe, "--out", run).endswith("or resume this run with --resume auto")
    assert tiny.files(run) == {"mine.txt": b"precious", "last.pt": b""}


def test_out_may_be_an_empty_folder(world):
    (world.folder / "run").mkdir()
    sda("train", world.recipe, "--steps", "1", "--out", world.folder / "run", "--device", "cpu")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resize(path):
    Image.new("L", (tiny.WIDTH - 1, tiny.HEIGHT)).save(path)


def unknown_id(path):
    Image.new("L", (tiny.WIDTH, tiny.HEIGHT), 77).save(path)


BAD_FILES = [
    ("toy/train/02.png", truncate, "this image cannot be read"),
    ("toy/train_masks/02_mask.png", truncate, "this label cannot be read"),
    ("toy/train_masks/02_mask.png", resize, "the label is 63x48, its image"),
    ("toy/train_masks/02_mask.png", unknown_id, "label values 77 are not in the dataset's descriptor"),
    ("field/labels/val/west/09.png", resize, "the label is 63x48, its image"),
    ("field/labels/val/west/09.png", unknown_id, "label values 77"),
]


@pytest.mark.parametrize(("name", "spoil", "says"), BAD_FILES)
@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_bad_files_are_named(fails, world, name, spoil, says, in_memory):
    spoil(world.root / name)
    message = fails("train", world.recipe, "--in-memory", in_memory, "--out", world.folder / "run", "--device", "cpu")
    assert message.startswith(f"{world.root / name}: ") and says in message


def test_bad_files_are_skipped_and_reported(world):
    for name, spoil, _ in BAD_FILES[:1] + BAD_FILES[4:5]:
        spoil(world.root / name)
    run = world.folder / "run"
    result = json.loads(
        sda("train", world.recipe, "--bad-files", "skip", "--json", "--steps", "4", "--out", run, "--device", "cpu")
    )
    assert result["images"] == 2 and len(result["skipped"]) == 2
    assert [line.partition(":")[0] for line in (run / "skipped.txt").read_text().splitlines()] == [
        str(world.root / "toy/train/02.png"),
        str(world.root / "field/labels/val/west/09.png"),
    ]


def test_missing_run_is_named(fails, tmp_path):
    assert fails("eval", tmp_path / "nowhere") == f"{tmp_path}/nowhere: no such run folder"
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "model.onnx: not a network of sda; give a run folder" in fails("eval", tmp_path / "model.onnx")
    assert fails("eval", tmp_path) == f"{tmp_path}/last.pt: no such checkpoint"


class Hostile:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


def test_hostile_checkpoint_does_not_run(fails, tmp_path):
    (tmp_path / "last.pt").write_bytes(pickle.dumps({"format": 1, "student": Hostile(tmp_path / "ran")}, protocol=2))
    assert "not a readable checkpoint" in fails("eval", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_foreign_checkpoint_is_refused(fails, tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "last.pt")
    assert "not a checkpoint of this version of sda" in fails("eval", tmp_path)


@pytest.mark.parametrize("change", ["no recipe", "no student", "no weights", "other classes", "classes = 3", "student = [1]"])
def test_checkpoint_with_wrong_content_names_its_file(fails, world, change):
    colors = {"ground": [1, 1, 1], "building": [2, 2, 2], "human": [3, 3, 3]}
    state = {
        "step": 1,
        "recipe": recipe.load(str(world.recipe)).with_absolute_paths().model_dump(),
        "table": "field",
        "classes": colors,
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "order": "RGB", "maximum": 1.0},
        "weights_format": "torchvision",
        "student": build("deeplabv3plus", "small", 3).state_dict(),
    }
    run = world.folder / "run"
    run.mkdir()
    checkpoint.save(run / "last.pt", state)
    sda("eval", run, "--device", "cpu")  # the unchanged checkpoint is valid
    if change.startswith("no "):
        key = change.removeprefix("no ")
        state = {**state, "student": {}} if key == "weights" else {k: v for k, v in state.items() if k != key}
    else:
        state |= {"other classes": {"classes": {**colors, "sky": [4, 4, 4]}}, "classes = 3": {"classes": 3}}.get(
            change, {"student": [1]}
        )
    checkpoint.save(run / "last.pt", state)
    assert str(run / "last.pt") in fails("eval", run)


def test_more_roots_than_datasets_are_refused(fails):
    assert "2 --root for 1 --dataset" in fails("eval", "run", "--root", "a", "--root", "b")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["eval"], ["train", "streets-ssda", "--stepz", "3"], ["eval", "x", "--device", "tpu"]]
)
def test_usage_errors_exit_with_2(monkeypatch, capsys, arguments):
    assert tiny.run_main(monkeypatch, *arguments) == 2
    assert "Error: " in capsys.readouterr().err.splitlines()[-1]


def test_errors_have_no_empty_lines(monkeypatch, capsys, world):
    assert tiny.run_main(monkeypatch, "train", world.recipe, "--target-root", "/nowhere", "--out", world.folder / "run") == 2
    assert "" not in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "kind", ["recipe", "key", "value", "truncated", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("root", "size"))]
)
def test_errors_of_the_installed_command(world, kind):
    arguments = ["train", world.real, "--out", world.folder / "run", "--device", "cpu"]
    if kind == "recipe":
        arguments[1] = "no-such-recipe"
    elif kind == "key":
        world.real.write_text(world.real.read_text() + "colour = 3\n")
    elif kind == "value":
        arguments += ["--set", "steps=1.5"]
    elif kind == "root":
        arguments += ["--target-root", world.folder / "nowhere"]
    elif kind == "size":
        resize(world.root / "toy/train_masks/01_mask.png")
    else:
        truncate(world.root / "toy/train/01.png")
        arguments += ["--workers", "1"]
    command = [sys.executable, "-m", "sda", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=world.folder)
    assert run.returncode == 2
    assert the_line(run.stdout, run.stderr)


# Names of others that try to act on the terminal


EVIL = "a\\u001b]0;owned\\u0007\\u202e\\u009b31m"  # as TOML


def test_no_name_acts_on_the_terminal(sda, world):
    """Escapes in the names of recipes, datasets, classes, files and folders are shown as text, in every output."""
    world.recipe.write_text(world.recipe.read_text().replace('"a tiny run"', f'"{EVIL}"') + f'expected = "{EVIL}"\n')
    for file in (world.toy, world.field):
        text = file.read_text().replace('title = "', f'title = "{EVIL}').replace("human =", f'"{EVIL}" =')
        file.write_text(text.replace('"human"', f'"{EVIL}"').replace("cloud", f'"{EVIL}cloud"').replace('""', '"'))
    run = world.folder / "a\x1b[2J\nerror: b\x1b]0;x\x07"
    commands = [
        ["train", world.recipe, "--help"],
        ["train", world.recipe, "--steps", 1, "--out", run, "--device", "cpu"],
        ["train", world.recipe, "--steps", 1, "--out", run, "--device", "cpu"],
        ["train", world.recipe, "--target", "x\x1b[2J", "--out", run],
        ["eval", run, "--device", "cpu"],
        ["compare", run],
        *(["compare", run, "--format", form] for form in ("markdown", "latex", "csv", "json")),
        ["report", run, "--out", world.folder / "report", "--device", "cpu"],
        ["runs", world.folder],
        ["recipes", world.recipe],
        ["datasets", world.field],
        ["doctor", world.field, "--root", world.root / "field", "--processes", 1, "--out", world.folder / "doctor"],
        ["predict", run, world.root / "field/pictures/val", "--out", f"{world.folder}/p\x1b[2J", "--device", "cpu"],
    ]
    statuses = []
    for command in commands:
        status, shown = sda(*command)
        statuses.append(status)
        for text in (shown.out, shown.err):
            assert "Traceback" not in text
            lines = text.replace("\n", "").replace("\t", "")
            assert lines.isprintable() or not {c for c in lines if not c.isprintable()} - {"\xa0"}, (command, ascii(text))
        assert sum(line.startswith("error") for line in shown.err.splitlines()) <= 1, command
    assert statuses == [0, 0, 2, 2, *[0] * 12]


# Help, lists, JSON


def test_help_of_a_recipe_shows_its_variants():
    shown = " ".join(sda("train", "cityscapes-ssl", "--help").split())
    assert '--network deeplabv3plus also changes backbone = "resnet50", freeze_norm = "none"' in shown


def test_help_of_a_recipe_shows_its_values():
    shown = " ".join(sda("train", "gta5-cityscapes-ssda", "--help").split())
    assert "semi-supervised DA: the paper's semi-supervised DA: DeepLabv2, ResNet-101" in shown
    assert "Expected: Alonso et al. 2021" in shown
    for option, value in (
        ("--labels N|TEXT", "[100]"),
        ("--size HEIGHTxWIDTH", "[512x1024]"),
        ("--freeze-norm none|affine|all", '["affine"]'),
    ):
        assert re.search(f"{re.escape(option)}[^[]*{re.escape(value)}", shown)
    for field in recipe.Recipe.model_fields:
        assert f"--{field.replace('_', '-')} " in shown


def test_help_of_a_recipe_file(world):
    shown = " ".join(sda("train", world.recipe, "--help").split())
    assert "joint: a tiny run" in shown and "[default: runs/tiny]" in shown


def test_help_lists_recipes_and_commands():
    shown = sda("train", "--help")
    assert all(name in shown for name in shelf.names("recipes"))
    assert all(command in sda("--help") for command in ("train", "eval", "recipes", "datasets", "demo"))


def test_version():
    assert re.search(r"\d+\.\d+", sda("--version"))


def test_recipes_as_table_and_json():
    table = sda("recipes")
    rows = json.loads(sda("recipes", "--json"))
    assert [row["name"] for row in rows] == shelf.names("recipes")
    assert all(row["name"] in table for row in rows)
    settings = {row["name"]: row["setting"] for row in rows}
    for name, setting in {
        "streets-ssda": "semi-supervised DA",
        "streets-ssl": "SSL",
        "camvid-idd_lite-joint": "joint",
        "camvid-idd_lite-oracle": "oracle",
        "camvid-idd_lite-source-only": "source-only",
        "camvid-idd_lite-target-only": "target-only",
    }.items():
        assert settings[name] == setting


def test_a_single_recipe_is_printed():
    printed = sda("recipes", "streets-ssda")
    assert printed.startswith("# sda train streets-ssda") and tomllib.loads(printed)["method"] == "class_bank"
    assert json.loads(sda("recipes", "streets-ssda", "--json"))["steps"] == recipe.load("streets-ssda").steps


def test_datasets_as_table_and_json():
    table = sda("datasets")
    rows = json.loads(sda("datasets", "--json"))
    assert [row["name"] for row in rows] == shelf.names("datasets")
    assert all(row["name"] in table for row in rows)


def test_a_single_dataset_is_printed(world):
    assert tomllib.loads(sda("datasets", "camvid"))["classes"] == "camvid11"
    assert json.loads(sda("datasets", "camvid", "--json"))["void"] == [11]
    assert json.loads(sda("datasets", world.toy, "--json"))["title"] == "Toy town"


def test_train_and_eval_as_json(world):
    run = world.folder / "run"
    result = json.loads(sda("train", world.recipe, "--steps", "1", "--out", run, "--json", "--device", "cpu"))
    assert result["run"] == str(run) and result["iou"].keys() == {"ground", "building", "human"}
    [score] = json.loads(sda("eval", run, "--json", "--device", "cpu"))
    assert score["miou"] == result["miou"]


def test_ignored_flags_are_reported(sda, world, tmp_path):
    """Only flags of the user are reported: fields of a recipe may be for its other methods."""
    flags = [
        "--steps",
        1,
        "--bank-size",
        8,
        "--views",
        1,
        "--learning-rate",
        0.1,
        "--class-statistics",
        "true",
        "--device",
        "cpu",
    ]
    status, shown = sda("train", world.recipe, *flags, "--out", tmp_path / "run")
    assert status == 0 and "bank_size, views, class_statistics: no effect with method supervised" in shown.err
    flags += ["--balance-classes", "true"]
    status, shown = sda("train", world.recipe, *tiny.BANK, *flags, "--out", tmp_path / "bank")
    assert status == 0 and "no effect" not in shown.err


def test_flags_override_the_recipe(world):
    run = world.folder / "run"
    sda("train", world.recipe, "--steps", "2", "--set", "steps=1", "--set", "seed=4", "--out", run, "--device", "cpu")
    values = tomllib.loads((run / "recipe.toml").read_text())
    assert (values["steps"], values["seed"], values["labels"]) == (1, 4, 3)


def test_choices_match_the_packages():
    """The command line has its own lists, which need no PyTorch."""
    assert set(features.STRATEGIES) == set(select.STRATEGIES)
    assert set(export.FORMATS) == {*formats.FORMATS, "safetensors", "hub"}


# Output that nobody can read


@pytest.mark.parametrize(
    ("redirections", "status", "says"),
    [
        ("", 0, ""),
        (">&-", 0, ""),
        (">/dev/full", 2, "error: standard output: No space left on device"),
        ("| head -c 0", (0, 1), ""),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_broken_outputs_do_no_harm(redirections, status, says):
    command = f"set -o pipefail; {sys.executable} -m sda recipes --json {redirections}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (status if isinstance(status, tuple) else (status,)) and done.stderr.strip() == says


# Signals


@pytest.mark.parametrize(("module", "number"), [("click", 2), ("numpy", 2), ("numpy", 15)])
def test_a_signal_during_imports_ends_the_command_with_one_line(module, number):
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {number})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from sda.cli.main import main; main()"
    )
    process = subprocess.run([sys.executable, "-c", code, "recipes"], capture_output=True, text=True)
    name = {2: "SIGINT", 15: "SIGTERM"}[number]
    assert (process.returncode, process.stdout, process.stderr) == (128 + number, "", f"stopped by {name}.\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_each_command_with_the_first_sentence_of_its_own_help(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.name == name
    sentence = COMMANDS[name].summary
    assert " ".join((command.help or "").split()).startswith(sentence) and sentence.endswith(".") and len(sentence) <= 62


def test_help_is_in_groups_with_whole_sentences_at_80_columns(monkeypatch):
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    lines = shown.splitlines()
    assert [line for line in lines if line in ("Data:", "Train:", "Look:", "Use:")] == ["Data:", "Train:", "Look:", "Use:"]
    assert max(map(len, lines)) <= 80
    for name, listed in COMMANDS.items():
        assert f"  {name.ljust(12)}  {listed.summary}" in lines


@pytest.mark.parametrize(
    ("wrong", "right"), [("trian", "Did you mean train"), ("evaluate", "eval"), ("xyzzy", "No such command 'xyzzy'.")]
)
def test_a_command_that_does_not_exist_is_answered_by_near_ones(wrong, right):
    found = CliRunner().invoke(cli, [wrong])
    assert found.exit_code == 2 and right in found.output


def test_help_of_a_recipe_shows_every_setting_once_in_sections():
    shown = CliRunner().invoke(cli, ["train", "streets-ssda", "--help"], terminal_width=100).output
    sections = re.split(r"^(\w[\w ]*):$", shown.partition("Run:\n")[2], flags=re.MULTILINE)
    options = re.findall(r"^  (?:-h, )?--([\w-]+)", shown.partition("Run:\n")[2], flags=re.MULTILINE)
    assert sections[1::2] == ["Settings that matter first", *SECTIONS]
    assert len(options) == len(set(options)) and {key.replace("_", "-") for key in Recipe.model_fields} <= set(options)
    first = re.findall(r"^  --([\w-]+)", sections[2], flags=re.MULTILINE)
    assert first == ["source", "target", "labels", "unlabelled", "root", "method", "encoder", "size", "steps", "seed"]
    kinds = {
        "optimizer": "sgd|adamw",
        "ramp-steps": "STEPS|SHARE",
        "in-memory": "true|false",
        "crop": "HEIGHTxWIDTH",
        "workers": "N",
    }
    assert all(f"  --{option} {kind} " in shown for option, kind in kinds.items())
