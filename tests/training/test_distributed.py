"""Training with two processes, compared with one process and twice the batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn

from sda.data.assemble import assemble
from sda.data.streams import Stream, open_streams
from sda.methods.parts.augment import Augment, Strength
from sda.recipe import load
from sda.system import distributed
from sda.training.loop import _across_processes, _next_batch, _take_step
from sda.training.state import prepare

NOTHING = Strength(flip=0, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0)
STEPS = 4
CHANGES = {
    "method": "class_bank", "unlabelled": "target", "labels": 4, "steps": STEPS, "classmix_unlabelled": 0.0, "bank_start": 0,
    "unlabelled_start": 1, "bank_size": 16, "contrast_pixels": 10_000, "bank_confidence": 0.0, "balance_classes": True,
    "batch_source": 2, "batch_labelled": 2, "batch_unlabelled": 2, "views": 1, "teacher_momentum": 0.5, "learning_rate": 0.01,
}  # fmt: skip
CASES = {
    "synchronised": {},
    "distribution": {"contrast": "distribution", "contrast_temperature": 1.0},
    "infonce": {"contrast": "infonce", "correct": "prototype"},
    "own norms": {"sync_norm": False, "accumulate": 2},
}


def train(recipe_path, changes):
    """Return the losses of the steps, the gradient norms of the last one and the method's state.

    No randomness depends on the process.
    """
    recipe = load(recipe_path, changes).with_absolute_paths()
    training = prepare(recipe, assemble(recipe), torch.device("cpu"))
    training.method.weak = training.method.strong = Augment(NOTHING)
    losses_of = _across_processes(training.method)
    for module in training.method.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sda.methods.class_bank.LOG_EVERY", 1)
        for _ in range(STEPS):
            taken = _take_step(training, losses_of, _next_batch(training))
            training.step += 1
            losses.append({name: loss.item() for name, loss in taken.losses.items()})
    norms = {name: norm for name, norm in training.method.diagnostics().items() if name.startswith("gradient_")}
    return losses, norms, training.method.state_dict()


def in_one_of_two(rank, recipe_path, folder, cases):
    os.environ["SDA_CACHE"] = str(folder / f"cache{rank}")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for case, changes in cases.items():
        torch.save(train(recipe_path, {**CHANGES, **changes}), folder / f"{case}-{rank}.pt")
    dist.destroy_process_group()


def in_two(world, folder, cases):
    """Return case → losses, gradient norms and state of both processes."""
    spawn(in_one_of_two, (str(world.real), folder, cases), nprocs=2)
    return {case: [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(2)] for case in cases}


@pytest.fixture(scope="module")
def two(world, tmp_path_factory):
    return in_two(world, tmp_path_factory.mktemp("two"), CASES)


@pytest.mark.parametrize("case", ["synchronised", "distribution", "infonce"])
def test_two_processes_equal_one_with_twice_the_batch(case, world, two):
    check_equal(world, two[case], CASES[case], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "tf_efficientnet_lite0"},
        {"backbone": "vit_tiny_patch16_224", "network": "dpt", "optimizer": "adamw", "learning_rate": 1e-5, "lora": 2},
    ],
    ids=lambda changes: changes["backbone"],
)
def test_two_processes_with_an_encoder_of_timm(world, tmp_path, changes):
    """The deep random network has nearly equal logits, so that rounding changes pseudo-labels, and what depends on them."""
    (first, _, state), (second, _, other) = in_two(world, tmp_path, {"timm": changes})["timm"]
    double = {name: 2 * CHANGES[name] for name in ("batch_source", "batch_labelled", "batch_unlabelled")}
    alone, _, _ = train(str(world.real), {**CHANGES, **double, **changes})
    assert first == second and all(torch.equal(value, other[name]) for name, value in state.items())
    for mine, theirs in zip(first, alone, strict=True):
        for name in {"sup", "entropy", "contrast_l"} & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-2), name


def check_equal(world, results, changes, tolerance):
    """Compare the results of two processes with each other, and with those of one process with twice the batch."""
    (first, norms, state), (second, other_norms, other) = results
    double = {name: 2 * CHANGES[name] for name in ("batch_source", "batch_labelled", "batch_unlabelled")}
    alone, whole_norms, whole = train(str(world.real), {**CHANGES, **double, **changes})
    assert first == second and {"contrast_l", "contrast_u", "pseudo"} <= first[-1].keys()
    for mine, theirs in zip(first, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=1e-6)
    assert norms == other_norms and norms == pytest.approx(whole_norms, rel=20 * tolerance)
    assert first[-1]["contrast_l"] > 0 and any(name.startswith("gradient_contrast_l") for name in norms)
    for name, value in state.items():
        assert torch.equal(value, other[name]), f"{name} differs between the processes"
    assert state["bank.valid"].any() and torch.equal(state["bank.valid"], whole["bank.valid"])
    assert torch.allclose(state["balance.frequency"], whole["balance.frequency"], atol=1e-6)
    mine, theirs = (part["bank.features"].sum(dim=1) for part in (state, whole))
    assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-2)


def test_without_synchronised_norms_the_processes_have_equal_states(two):
    (*_, state), (*_, other) = two["own norms"]
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def test_no_position_is_drawn_twice(world, monkeypatch):
    """The streams of two processes together equal that of one process with twice the batch; also from a later step on."""
    recipe = load(str(world.recipe), {"labels": "all"}).with_absolute_paths()
    data = assemble(recipe)
    for start in (0, 3):
        whole = Stream("labelled", data.labelled, 4, (48, 64), 0, start=start)
        halves = []
        for rank in range(2):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "world_size", lambda: 2)
            halves.append(open_streams(recipe, data, start)["labelled"])
        monkeypatch.undo()
        for _ in range(4):
            both = torch.cat([next(half).images for half in halves])
            assert torch.equal(both, next(whole).images)


def torchrun(world, out, *flags, port, launch=("--nproc-per-node", 2)):
    """Start the command with torchrun, as users do."""
    launcher = ["-m", "torch.distributed.run", *launch, "--master-port", port, "-m", "sda"]
    command = [sys.executable, *launcher, "train", world.real, *tiny.SETTINGS["semi-supervised DA"], *flags]
    command += ["--device", "cpu", "--out", out, "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process, status=0):
    """Wait for the process and return its output."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode == 0) == (status == 0), err
    return out, err


def wait_for(path, process):
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError(f"{path} was never written")


def iou(folder):
    return json.loads((folder / "result.json").read_text())["iou"]


@pytest.mark.slow
def test_torchrun_writes_stops_and_resumes(world, tmp_path):
    """Two processes write, stop and resume like a single one."""
    flags = ["--steps", 6, "--eval-every", 3]
    out, err = ended(torchrun(world, tmp_path / "run", *flags, port=29611))
    assert "2 processes: 4 source, 4 labelled, 4 unlabelled images per step in total" in err
    assert out.count("mIoU, classes present") == 1
    for part in (["--stop-at", 3], []):
        ended(torchrun(world, tmp_path / "cut", *flags, *part, port=29612))
    assert iou(tmp_path / "run") == iou(tmp_path / "cut")
    assert json.loads((tmp_path / "run/result.json").read_text())["images"] == 3


@pytest.mark.slow
def test_torchrun_survives_a_killed_worker_and_a_signal(world, tmp_path):
    """torchrun restarts all processes if one is killed; on SIGTERM to torchrun, a checkpoint is written first."""
    flags = ["--steps", 40, "--checkpoint-every", 5]
    ended(torchrun(world, tmp_path / "run", *flags, port=29613))
    elastic = ("--standalone", "--nproc-per-node", 2, "--max-restarts", 1)
    killed = torchrun(world, tmp_path / "killed", *flags, port=29614, launch=elastic)
    wait_for(tmp_path / "killed/last.pt", killed)
    worker = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()[-1]
    os.kill(int(worker), signal.SIGKILL)
    ended(killed)
    facts = json.loads((tmp_path / "killed/environment.json").read_text())
    assert [entry["step"] % 5 for entry in facts["resumed"]] == [0] and iou(tmp_path / "killed") == iou(tmp_path / "run")

    stopped = torchrun(world, tmp_path / "stopped", "--steps", 40, "--checkpoint-every", 0, port=29615)
    wait_for(tmp_path / "stopped/metrics.jsonl", stopped)
    os.kill(stopped.pid, signal.SIGTERM)
    ended(stopped, status=1)
    assert 0 < torch.load(tmp_path / "stopped/last.pt", weights_only=True)["step"] < 40
    ended(torchrun(world, tmp_path / "stopped", "--steps", 40, "--checkpoint-every", 0, port=29616))
    assert iou(tmp_path / "stopped") == iou(tmp_path / "run")


@pytest.mark.slow
def test_two_launchers_over_the_network_equal_one(world, tmp_path):
    """Two torchruns connected over the network, with one process each, equal one torchrun with two processes."""
    flags = ["--steps", 4]
    ended(torchrun(world, tmp_path / "one", *flags, port=29617))
    meet = (
        "--nnodes",
        2,
        "--nproc-per-node",
        1,
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        "a",
        "--rdzv-endpoint",
        "127.0.0.1:29618",
    )
    hosts = [torchrun(world, tmp_path / "two", *flags, port=29619, launch=meet) for _ in range(2)]
    shown = [ended(host)[0] for host in hosts]
    assert sum("mIoU, classes present" in out for out in shown) == 1
    assert iou(tmp_path / "two") == iou(tmp_path / "one")
