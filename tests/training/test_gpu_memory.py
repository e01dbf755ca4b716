"""The memory estimate against a real forward pass, and the message if memory runs out."""

import pytest
import tiny
import torch

from sda.methods.supervised import Supervised
from sda.models.build import build, build_network
from sda.models.preprocessing import IMAGENET
from sda.recipe import Recipe
from sda.training.gpu_memory import advice, estimate


def recipe(**changes):
    values = {"source": "gta5", "target": "cityscapes", "labels": 3, "size": [64, 96], "backbone": "resnet50", "steps": 10}
    return Recipe(**{**values, "batch_source": 2, "batch_labelled": 2, **changes})


def estimated(wanted):
    with torch.device("meta"):
        network = build_network(wanted, 19, "torchvision", IMAGENET)
    return estimate(wanted, network, 19)


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v3_small"])
def test_activations_equal_those_of_a_real_forward_pass(backbone):
    wanted = recipe(backbone=backbone)
    network, sizes = build(wanted.network, backbone, 19).train(), {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def note(tensor):
        if tensor.data_ptr() not in own:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = network(torch.randn(4, 3, 64, 96))  # keeps a reference, so that nothing is freed
        real = sum(sizes.values()) + 3 * 4 * 4 * 19 * 64 * 96
    assert kept and estimated(wanted).activations == pytest.approx(real, rel=0.05)


def test_estimate_follows_the_options():
    whole = estimated(recipe())
    assert estimated(recipe(accumulate=2)).activations == pytest.approx(whole.activations / 2, rel=0.05)
    assert estimated(recipe(recompute=True)).activations < 0.7 * whole.activations
    assert estimated(recipe(precision="bfloat16")).activations < 0.7 * whole.activations
    assert estimated(recipe(alternate=True)).activations == pytest.approx(whole.activations / 2, rel=0.05)
    network = build("deeplabv3plus", "resnet50", 19)
    weights = sum(value.nbytes for value in network.state_dict().values())
    trained = sum(parameter.nbytes for parameter in network.parameters())  # statistics of batch norms have no gradients
    assert whole.states == weights + 2 * trained and estimated(recipe(optimizer="adamw")).states == weights + 3 * trained
    more = estimated(recipe(method="mean_teacher", unlabelled="target"))
    assert more.states == 2 * weights + 2 * trained and more.activations == pytest.approx(2 * whole.activations, rel=0.05)
    assert "GiB of memory: 0." in str(whole)


def test_advice_starts_with_the_least_harmful_option():
    assert advice(recipe()).startswith("--precision bfloat16, --recompute true (about a third slower), --accumulate 2 ")
    assert advice(recipe(precision="bfloat16", recompute=True, accumulate=2)).startswith("--accumulate 4 ")
    assert advice(recipe(size=[512, 512])).endswith("--crop 384x384")
    patches = recipe(size=[518, 518], backbone="vit_small_patch14_dinov2", network="linear")
    assert advice(patches).endswith("--crop 378x378")  # a multiple of 14


def test_out_of_memory_gives_advice(monkeypatch, capsys, tmp_path):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    world = tiny.write_world(tmp_path / "world")
    monkeypatch.setattr(Supervised, "step", step)
    assert tiny.run_main(monkeypatch, "train", world.recipe, "--device", "cpu", "--out", tmp_path / "run") == 2
    assert "cpu is out of memory; try, in this order: --precision bfloat16, --recompute" in capsys.readouterr().err
