"""The contract of every network and backbone, dilation, and recomputed activations."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sda.errors import SdaError
from sda.models import torchvision_shim
from sda.models.backbones.by_name import BUILDERS, build_backbone
from sda.models.build import HEADS, build
from sda.models.names import NETWORKS, TORCHVISION
from sda.models.network import recompute_activations
from sda.models.preprocessing import PREPROCESSING

CLASSES = 5
V2_CHANNELS = {"mobilenet_v2": 320, "mobilenet_v3_small": 576, "mobilenet_v3_large": 960}


SLOW = {"resnet101"}  # the blocks of resnet50, but more of them


@pytest.mark.parametrize(
    ("network", "backbone", "stride", "channels", "cells"),
    [
        *[("deeplabv2", name, 8, V2_CHANNELS.get(name, 2048), (9, 13)) for name in TORCHVISION if name not in SLOW],
        *[
            ("deeplabv3plus", name, 4, 128 if name.startswith("mobilenet") else 256, (17, 25))
            for name in TORCHVISION
            if name not in SLOW
        ],
        *[pytest.param("deeplabv2", name, 8, 2048, (9, 13), marks=pytest.mark.slow) for name in SLOW],
        ("segformer", "mobilenet_v3_small", 4, 128, (17, 25)),
        ("linear", "mobilenet_v2", 16, 320, (5, 7)),
        # encoders of timm, one of each kind
        ("deeplabv2", "tf_efficientnet_lite0", 8, 320, (9, 13)),
        ("deeplabv3plus", "mobilenetv4_conv_small", 4, 128, (17, 25)),
        ("deeplabv3plus", "convnext_atto", 4, 128, (24, 32)),  # its stride-32 grid covers 96 x 128 pixels
        ("segformer", "pvt_v2_b0", 4, 128, (17, 25)),
        ("segformer", "swin_tiny_patch4_window7_224", 4, 256, (17, 25)),
        ("linear", "vit_tiny_patch16_224", 16, 192, (5, 7)),
        ("dpt", "vit_small_patch14_dinov2", 3.5, 64, (20, 28)),  # four cells for each patch of 14
        ("segformer", "vit_small_patch16_dinov3", 16, 256, (5, 7)),
    ],
)
def test_every_network_meets_its_contract(network, backbone, stride, channels, cells):
    torch.manual_seed(0)
    model = build(network, backbone, CLASSES)
    assert (model.stride, model.feature_channels) == (stride, channels)

    # One image of odd size in train mode: the hardest case for batch norm and for concatenating maps of two strides.
    images = torch.randn(1, 3, 65, 97)
    logits, features = model(images)
    size = cells
    assert logits.shape == (1, CLASSES, *size)
    assert features.shape == (1, model.feature_channels, *size)

    # The first prediction is nearly uniform.
    labels = torch.randint(CLASSES, (1, *size))
    loss = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(math.log(CLASSES), rel=0.1)

    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "swin" in backbone, name  # drops whole blocks of an image at random

    layers = [id(parameter) for layer in model.backbone.parameter_layers() for parameter in layer]
    assert sorted(layers) == sorted(id(parameter) for parameter in model.backbone.parameters())

    model.eval()
    with torch.no_grad():
        logits, features = model(torch.randn(2, 3, 32, 40))
        assert logits.shape[2:] == features.shape[2:] and model.grid.enlarge(logits, (32, 40)).shape[2:] == (32, 40)
        again, _ = model(images)
        assert torch.equal(again, model(images)[0])


def test_full_size_on_the_meta_device():
    with torch.device("meta"):
        logits, features = build("deeplabv2", "resnet101", 19)(torch.empty(1, 3, 512, 512))
    assert logits.shape == (1, 19, 64, 64)
    assert features.shape == (1, 2048, 64, 64)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", TORCHVISION)
def test_output_stride_keeps_resolution(backbone, output_stride):
    with torch.device("meta"):
        body = build_backbone(backbone, output_stride)
        maps = body(torch.empty(1, 3, 128, 160))
    assert body.strides == [4, 8, min(16, output_stride), output_stride]
    for one, channels, stride in zip(maps, body.channels, body.strides, strict=True):
        assert one.shape == (1, channels, 128 // stride, 160 // stride)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_dilated_network_equals_the_original_at_its_positions(backbone, output_stride):
    # The dilated network computes a finer grid that contains the original's, so ImageNet weights fit it.
    torch.manual_seed(0)
    original = getattr(torchvision_shim.models, backbone)().eval()
    body = build_backbone(backbone, output_stride).eval()
    body.load_state_dict(original.state_dict(), strict=False)
    for module in (*original.modules(), *body.modules()):
        # Squeeze-and-excitation averages over the whole map, which dilation changes; replace it by a constant.
        if type(module).__name__ == "SqueezeExcitation":
            module.avgpool = ConstantPool()
    if backbone == "resnet50":
        trunk = nn.Sequential(*list(original.children())[:-2])
    else:
        trunk = original.features[: len(body.features)]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, high = trunk(images), body(images)[-1]
    step = 32 // output_stride
    scale = expected.abs().max()
    torch.testing.assert_close(high[:, :, ::step, ::step] / scale, expected / scale, rtol=1e-4, atol=1e-5)


class ConstantPool(nn.Module):
    def forward(self, features):
        return features.new_full((*features.shape[:2], 1, 1), 0.5)


def test_deeplabv2_sums_all_four_branches():
    model = build("deeplabv2", "mobilenet_v3_small", 2).eval()
    for power, branch in enumerate(model.head.branches):
        nn.init.zeros_(branch.weight)
        nn.init.constant_(branch.bias, 10**power)
    assert [branch.dilation[0] for branch in model.head.branches] == [6, 12, 18, 24]
    with torch.no_grad():
        logits, _ = model(torch.zeros(1, 3, 32, 32))
    assert torch.equal(logits, torch.full_like(logits, 1111))


def test_output_stride_sets_stride_of_deeplabv2_and_rates_of_deeplabv3plus():
    with torch.device("meta"):
        assert build("deeplabv2", "mobilenet_v2", 2, output_stride=16).stride == 16
        for output_stride, rates in ((8, [12, 24, 36]), (16, [6, 12, 18])):
            model = build("deeplabv3plus", "mobilenet_v2", 2, output_stride=output_stride)
            assert model.stride == 4
            assert [branch[0].dilation[0] for branch in model.head.aspp.branches] == [1, *rates]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "unet"}, "unknown network 'unet'.*deeplabv2, deeplabv3plus"),
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'.*resnet50"),
        ({"classes": 1}, "at least 2"),
        ({"output_stride": 4}, "expected 8, 16 or 32"),
    ],
)
def test_invalid_arguments_are_refused(changed, message):
    arguments = {"network": "deeplabv2", "backbone": "mobilenet_v2", "classes": 3} | changed
    with pytest.raises(SdaError, match=message):
        build(**arguments)


def test_released_deeplabv2_sums_two_branches():
    torch.manual_seed(0)
    model = build("deeplabv2", "mobilenet_v3_small", 3, released=True).eval()
    assert len(model.head.branches) == 2
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, features = model(images)
        torch.testing.assert_close(logits, model.head.branches[0](features) + model.head.branches[1](features))
    assert [branch.dilation[0] for branch in model.head.branches] == [6, 12]


@pytest.mark.parametrize("form", ["torchvision", "caffe"])
def test_network_normalises_its_input(form):
    """It gives the same result for uint8 images and floats from 0 to 1, and adds nothing to the state dict."""
    torch.manual_seed(0)
    preprocessing = PREPROCESSING[form]
    model = build("deeplabv2", "resnet50", 3, preprocessing=preprocessing).eval()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    x = images / 255 * preprocessing.maximum
    x = x.flip(1) if preprocessing.order == "BGR" else x
    x = (x - torch.tensor(preprocessing.mean)[:, None, None]) / torch.tensor(preprocessing.std)[:, None, None]
    with torch.no_grad():
        expected, _ = model.head(model.backbone(x.float()))
        torch.testing.assert_close(model(images)[0], expected)
        assert torch.equal(model(images)[0], model(images / 255)[0])
    assert not any("normalise" in name for name in model.state_dict())
    assert model.preprocessing == preprocessing


def test_name_lists_match_the_builders():
    assert list(NETWORKS) == list(HEADS) and list(BUILDERS) == [*TORCHVISION, "small"]  # the tests' own


@pytest.mark.parametrize(("network", "backbone"), [("deeplabv3plus", "mobilenet_v3_small"), ("deeplabv2", "resnet50")])
def test_recomputed_activations_change_only_the_memory(network, backbone):
    """Gradients and running statistics are equal, and fewer bytes are saved for the backward pass."""
    torch.manual_seed(0)
    plain = build(network, backbone, 3).train()
    thrifty = copy.deepcopy(plain)
    recompute_activations(thrifty)
    images, kept = torch.randn(2, 3, 64, 64), []
    for net in (plain, thrifty):
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)  # for the head's dropout
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits, features = net(images)
            kept.append(sum(sizes.values()))
        (logits.square().mean() + features.mean()).backward()
    assert kept[1] < 0.7 * kept[0]
    for (name, one), two in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name
    for (name, one), two in zip(plain.named_buffers(), thrifty.buffers(), strict=True):
        assert torch.equal(one, two), name
