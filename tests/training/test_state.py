"""Options that adapt a training to a machine: gradient accumulation, recomputed activations, precision, compilation."""

import copy
import json

import pytest
import tiny
import torch
from torch import nn

from sda.data.assemble import assemble
from sda.methods.base import Method, Task
from sda.recipe import load
from sda.training.loop import train
from sda.training.optimizer import make_optimizer
from sda.training.state import prepare


class Linear(Method):
    """A method whose loss is a mean over images, so that parts add up exactly to the whole batch."""

    def __init__(self, student, settings, task):
        super().__init__(student, settings, task)
        self.head, self.sizes = nn.Linear(3, 1), []

    def step(self, batch, step):
        self.sizes.append(len(batch.source.images))
        value = self.head(batch.source.images.float().mean(dim=(2, 3)) / 255).squeeze(1)
        return {"mean": (value - 1).square().mean() + 0 * sum(p.sum() for p in self.student.parameters())}


def test_accumulated_parts_equal_the_whole_batch(world, tmp_path):
    ends = []
    for accumulate in (1, 2):
        changes = {"accumulate": accumulate, "batch_source": 4, "weight_decay": 0.0, "learning_rate": 0.1}
        recipe = load(str(world.recipe), changes).with_absolute_paths()
        training = prepare(recipe, assemble(recipe), torch.device("cpu"))
        torch.manual_seed(0)
        training.method = Linear(training.method.student, recipe.method_settings, Task(classes=3))
        training.optimizer = make_optimizer(training.method, recipe)
        (tmp_path / str(accumulate)).mkdir()
        assert train(training, tmp_path / str(accumulate))["steps"] == 3
        ends.append(copy.deepcopy(training.method.head.state_dict()))
        assert training.method.sizes == [4 // accumulate] * 3 * accumulate
    for name in ends[0]:
        assert torch.allclose(ends[0][name], ends[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "flags", [["--recompute", "true"], ["--accumulate", "2", "--batch-unlabelled", "4"], ["--precision", "float16"]]
)
def test_training_with_options_that_save_memory(world, sda, tmp_path, flags):
    """An interrupted and resumed run has the same score."""
    command = ["train", world.recipe, *tiny.SETTINGS["semi-supervised DA"], *flags, "--device", "cpu"]
    assert sda(*command, "--out", tmp_path / "run")[0] == 0
    assert sda(*command, "--out", tmp_path / "cut", "--stop-at", 2)[0] == 0
    assert sda(*command, "--out", tmp_path / "cut", "--resume", "auto")[0] == 0
    scores = [json.loads((tmp_path / run / "result.json").read_text())["iou"] for run in ("run", "cut")]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # deprecations inside torch
@pytest.mark.parametrize("backbone", ["small", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_compiled_training(world, sda, tmp_path, backbone):
    network = ["--backbone", backbone, *(["--network", "linear"] if backbone.startswith("vit") else [])]
    flags = [*tiny.SETTINGS["SSL"], *network, "--compile", "true", "--device", "cpu", "--out", tmp_path / "run"]
    assert sda("train", world.recipe, *flags)[0] == 0
    assert sda("eval", tmp_path / "run", "--device", "cpu")[0] == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--accumulate", "3"], "accumulate = 3 must divide batch_source = 2"),
        (
            ["--accumulate", "2", *tiny.BANK],
            "batch_unlabelled = 2 is too small for ClassMix, which needs two images; set at least 2 times accumulate = 2",
        ),
        (["--classmix-labelled", "1", "--batch-source", "1", "--batch-labelled", "1", "--accumulate", "1", "--alternate", "true",
          "--labels", "3"], "ClassMix needs two labelled images at a time, but gets one: raise batch_labelled"),
        (["--classmix-labelled", "0.2", "--source", "", "--batch-labelled", "1", "--labels", "3"],
         "ClassMix needs two labelled images at a time, but gets one"),
        (["--classmix-labelled", "0.2", "--source", "", "--batch-labelled", "2", "--accumulate", "2", "--labels", "3"],
         "ClassMix needs two labelled images at a time, but gets one"),
        (["--batch-unlabelled", "1", *tiny.BANK],
         "batch_unlabelled = 1 is too small for ClassMix, which needs two images; set at least 2, or"),
    ],
)  # fmt: skip
def test_invalid_batch_sizes_are_refused(world, sda, tmp_path, flags, says):
    status, shown = sda("train", world.recipe, *flags, "--device", "cpu", "--out", tmp_path / "run")
    assert status == 2 and says in shown.err
