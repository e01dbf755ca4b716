"""Protocol names and presets, and which scores are comparable."""

import pytest

from sda.errors import SdaError
from sda.protocol import PRESETS, Protocol, preset, why_not_comparable

SIZE, CROP = (96, 192), (64, 64)


@pytest.mark.parametrize(
    ("name", "network", "target", "found"),
    [
        ("whole", "deeplabv2", "cityscapes", "whole-96x192-native"),
        ("slide", "deeplabv2", "cityscapes", "slide64x64-96x192-native"),
        ("paper", "deeplabv2", "cityscapes", "half-512x1024"),
        ("paper", "deeplabv3plus", "cityscapes", "full-1024x2048"),
        ("paper", "deeplabv2", "voc2012", "whole-96x192-native"),
        ("full-1024x2048", "deeplabv2", "cityscapes", "full-1024x2048"),
        ("half-512x1024", "deeplabv3plus", "cityscapes", "half-512x1024"),
    ],
)
def test_presets_have_their_values(name, network, target, found):
    assert preset(name, network, target, SIZE, CROP).name == found


def test_a_window_as_large_as_the_image_equals_mode_whole():
    assert preset("slide", "deeplabv2", "cityscapes", SIZE, SIZE) == preset("whole", "deeplabv2", "cityscapes", SIZE, SIZE)
    assert preset("slide", "deeplabv2", "voc2012", None, CROP).window == CROP


def test_preset_names():
    for name in PRESETS:
        preset(name, "deeplabv2", "cityscapes", SIZE, CROP)
    with pytest.raises(SdaError, match="unknown protocol 'best': expected one of whole, paper"):
        preset("best", "deeplabv2", "cityscapes", SIZE, CROP)


def test_the_name_contains_everything_that_changes_a_score():
    protocols = [
        Protocol(SIZE), Protocol(None), Protocol(SIZE, SIZE), Protocol(SIZE, window=CROP), Protocol(SIZE, window=(32, 32)),
        Protocol(SIZE, scales=(0.5, 1.0)), Protocol(SIZE, scales=(1.0, 0.5)), Protocol(SIZE, flip=True),
    ]  # fmt: skip
    assert len({protocol.name for protocol in protocols}) == len(protocols)
    assert protocols[5].name == "whole-96x192-native-scales0.5,1" and protocols[7].name == "whole-96x192-native-flip"
    assert Protocol(SIZE, scales=(0.5, 1.0, 2.0), flip=True).passes == 6


def test_cost_counts_forward_passes():
    assert Protocol(SIZE).cost == "1 pass per image"
    assert Protocol(SIZE, flip=True).cost == "2 passes per image, 2 times the pixels of one pass at scale 1"
    assert Protocol(SIZE, scales=(0.5, 1.0)).cost == "2 passes per image, 1.2 times the pixels of one pass at scale 1"
    assert Protocol(SIZE, scales=(2.0,)).cost == "1 pass per image, 4 times the pixels of one pass at scale 1"


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (100.0,), (1.0,) * 21])
def test_invalid_scales_are_refused(scales):
    with pytest.raises(SdaError, match="expected numbers from 0.1 to 10"):
        Protocol(SIZE, scales=scales)


def score(protocol=Protocol(SIZE), names=("road", "sky")):
    return {"protocol": protocol.to_dict(), "iou": dict.fromkeys(names, 50.0)}


def test_incomparable_scores_are_detected():
    assert why_not_comparable({"a": score(), "b": score()}) == ""
    why = why_not_comparable({"a": score(), "b": score(), "c": score(Protocol(SIZE, flip=True))})
    assert why.startswith("a and c were scored under different protocols, whole-96x192-native and whole-96x192-native-flip (flip")
    why = why_not_comparable({"a": score(), "b": score(Protocol(SIZE, SIZE))})
    assert "labels: native size and 96x192" in why
    assert "(2 and 1; sky)" in why_not_comparable({"a": score(), "b": score(names=("road",))})
    assert "a different order" in why_not_comparable({"a": score(), "b": score(names=("sky", "road"))})
