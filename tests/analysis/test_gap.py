"""The domain gap: computed by hand, compared with loops, and measured for equal and different domains."""

import json
import sys

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.spatial.distance import cdist

from sda.analysis import gap
from sda.analysis.cache import FeatureCache
from sda.analysis.gap import Pixels


def some(seed, images=12, each=10, shift=0.0, classes=2, width=6):
    """Return random pixels around one centre per class, with a small offset per image."""
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), each)
    label = random.integers(0, classes, len(image))
    centres = 4 * np.eye(width)[:classes]
    features = centres[label] + random.normal(0, 1, (len(image), width)) + random.normal(0, 0.5, (images, width))[image]
    features[:, -1] += shift
    return Pixels(features.astype(np.float32), label, image)


def test_centroid_distance_by_hand():
    x, y = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 3.0], [1.0, 5.0]])
    assert gap.centroid_distance(x, y) == pytest.approx(4.0)  # means (1, 0) and (1, 4); every row is 1 from its mean
    assert gap.centroid_distance(x, x) == 0


def test_mmd_equals_its_definition():
    x, y = some(0, shift=1.0), some(1)
    both = np.concatenate([x.features, y.features]).astype(float)
    distances = cdist(both, both, "sqeuclidean")
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(len(both), 1)]))
    n = len(x.label)
    expected = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    assert gap.mmd(x, y, 99)["mmd"] == pytest.approx(expected**0.5, rel=1e-6)


def test_the_permutation_test_permutes_images():
    """Equal distributions with different images are rarely significant; a shifted one is."""
    p = [gap.mmd(some(2 * k), some(2 * k + 1), 99)["p"] for k in range(40)]
    assert np.mean(np.array(p) <= 0.1) < 0.25
    assert gap.mmd(some(0), some(1, shift=2.0), 199)["p"] == pytest.approx(1 / 200)


def test_domain_accuracy_of_equal_and_different_domains():
    assert gap.domain_accuracy(some(0), some(1, shift=30.0)) == 100
    assert np.mean([gap.domain_accuracy(some(2 * k), some(2 * k + 1)) for k in range(20)]) == pytest.approx(50, abs=5)


def test_probe_is_the_vote_of_the_nearest_pixels():
    known, asked = some(3, classes=3), some(4, classes=3)
    distances = cdist(asked.features, known.features, "cosine")
    right = {c: [] for c in range(3)}
    for row, truth in zip(distances, asked.label, strict=True):
        nearest = np.argsort(row)[: gap.NEIGHBOURS]
        votes = [sum(1 + 1e-3 * (1 - row[k]) for k in nearest if known.label[k] == c) for c in range(3)]
        right[truth].append(np.argmax(votes) == truth)
    assert gap.probe(known, asked, [0, 1, 2]) == pytest.approx(100 * np.mean([np.mean(hits) for hits in right.values()]))


def test_probe_ignores_pixels_of_the_same_image():
    """All pixels of an image are equal, so within a domain only other images may be neighbours."""
    features = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    pixels = Pixels(features, np.repeat([0, 1, 0, 1], 5), np.repeat([0, 1, 2, 3], 5))
    other = Pixels(features.copy(), pixels.label.copy(), pixels.image.copy())
    assert gap.probe(pixels, other, [0, 1]) == 100 and gap.probe(pixels, pixels, [0, 1]) < 100


def test_probe_skips_classes_that_one_domain_lacks():
    one, both = some(0), some(1, classes=3)
    pixels = one.of(one.label < 2)
    found = gap.measure(pixels, both, ["a", "b", "c"], resamples=19)
    assert [row["class"] for row in found["classes"]] == ["a", "b"]
    assert found["probe"] == gap.probe(pixels, both, [0, 1]) > gap.probe(pixels, both, [0, 1, 2])
    assert found["within"][1] == gap.probe(both, both, [0, 1])


def test_adapted_features_have_a_smaller_gap():
    near, far = (gap.measure(some(0), some(1, shift=shift), ["a", "b"], resamples=19)["mean"] for shift in (0.0, 5.0))
    assert all(far[key] > near[key] for key in ("centroid", "mmd", "domain_accuracy"))


def test_projection_keeps_the_directions_of_largest_variance():
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 5)) * np.array([9, 4, 0.1, 0.1, 0.1])
    one = Pixels(features[:120], np.zeros(120, int), np.zeros(120, int))
    other = Pixels(features[120:], np.zeros(80, int), np.zeros(80, int))
    planes = gap.project([one, other], "pca")
    assert [plane.shape for plane in planes] == [(120, 2), (80, 2)]
    whole = np.concatenate(planes)
    for axis in range(2):
        assert abs(np.corrcoef(whole[:, axis], features[:, axis])[0, 1]) > 0.99


@pytest.fixture(scope="module")
def caches(world, do, tmp_path_factory):
    """Caches of one network (both domains together, and each alone) and of another network."""
    folder = tmp_path_factory.mktemp("caches")
    for name, flags in (("a", ()), ("b", ("--seed", 1))):
        do("train", world.recipe, *tiny.BANK, *flags, "--out", folder / name, "--device", "cpu")
        do("features", folder / name, "--device", "cpu")
    for dataset in ("toy", "field"):
        do("features", folder / "a", "--dataset", getattr(world, dataset), "--out", folder / f"{dataset}.h5", "--device", "cpu")
    return folder


def test_the_command_shows_the_gap(sda, caches, tmp_path):
    a, b = caches / "a/features.h5", caches / "b/features.h5"
    status, shown = sda("gap", a, b, "--out", tmp_path / "gap.png", "--json")
    assert status == 0, shown.err
    found = json.loads(shown.out)
    assert found["domains"] == ["toy", "field"] and list(found["networks"]) == ["a", "b"]
    for network in found["networks"].values():
        compared = [row["class"] for row in network["classes"]]
        assert {"ground", "building"} <= {*compared} <= {"ground", "building", "human"}  # both domains need pixels in two images
        assert all(0 <= row["mmd"] <= 2**0.5 and 0 < row["p"] <= 1 for row in network["classes"])
    with Image.open(tmp_path / "gap.png") as picture:
        assert picture.width > 1000 and picture.height > 900
    status, shown = sda("gap", a, "--out", tmp_path / "one.png")
    assert status == 0 and "domain accuracy" in shown.out and "nearest neighbours in toy" in shown.out


def test_domains_in_separate_files_give_the_same_result(sda, caches, tmp_path):
    results = [
        json.loads(sda("gap", *files, "--domains", "toy,field", "--out", tmp_path / "gap.png", "--json")[1].out)["networks"]
        for files in ([caches / "a/features.h5"], [caches / "toy.h5", caches / "field.h5"])
    ]
    assert list(results[0].values()) == list(results[1].values())


@pytest.mark.parametrize("separate", [False, True])
def test_the_gap_is_between_all_sources_and_the_target(own_world, farm, sda, separate):
    run = own_world.folder / "run"
    assert sda("train", own_world.recipe, "--source", f"{own_world.toy},{farm}", "--device", "cpu", "--out", run)[0] == 0
    if separate:
        files = [own_world.folder / f"{name}.h5" for name in ("toy", "farm", "field")]
        for file, dataset in zip(files, (own_world.toy, farm, own_world.field), strict=True):
            assert sda("features", run, "--dataset", dataset, "--out", file, "--device", "cpu")[0] == 0
    else:
        files = [run / "features.h5"]
        assert sda("features", run, "--device", "cpu")[0] == 0
    out = ["--out", own_world.folder / "gap.png", "--json"]
    status, shown = sda("gap", *files, *out)
    found = json.loads(shown.out)
    assert status == 0 and found["domains"] == ["toy+farm", "field"], shown.err
    joined = {row["class"]: row["pixels"] for row in found["networks"]["run"]["classes"]}
    alone = []
    for name in ("toy", "farm"):
        found = json.loads(sda("gap", *files, "--domains", f"{name},field", *out)[1].out)
        alone.append({row["class"]: row["pixels"] for row in found["networks"]["run"]["classes"]})
    assert joined["ground"][0] == min(300, sum(rows["ground"][0] for rows in alone))
    status, shown = sda("gap", *files, "--domains", "toy+moon,field", *out)
    assert status == 2 and "no pixels of domain 'moon'" in shown.err


def test_sampled_pixels_are_spread_over_the_images(caches):
    """There are at most per_class pixels per class, spread over the images."""
    cache = FeatureCache(caches / "a/features.h5")
    few = gap.read([cache], "field", 20, "features")
    assert max(np.bincount(few.label)) == 20 and len(np.unique(few.image)) > 4
    everything = gap.read([cache], "field", 10**6, "features")
    image, drawn = (np.concatenate([block[name] for block in cache.blocks(name)]) for name in ("image", "drawn"))
    mine = np.isin(image, cache.images_of("field")) & (drawn & 2 > 0)
    assert len(everything.label) == mine.sum()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy.h5"], "expected two domains, found toy; also give a cache of the other domain"),
        (["a/features.h5", "--domains", "toy,toy"], "expected two domains, found toy, toy; choose two"),
        (["a/features.h5", "--domains", "toy,moon"], "no pixels of domain 'moon'"),
        (["nothing.h5"], "nothing.h5: no such file"),
    ],
)
def test_invalid_domains_are_refused(sda, caches, tmp_path, arguments, words):
    status, shown = sda("gap", caches / arguments[0], *arguments[1:], "--out", tmp_path / "gap.png")
    assert status == 2 and words in shown.err


@pytest.mark.parametrize("flags", [["--per-class", 1], ["--split", "val"]])
def test_caches_with_different_pixels_are_not_comparable(sda, caches, tmp_path, flags):
    assert sda("features", caches / "b", *flags, "--out", tmp_path / "b.h5", "--device", "cpu")[0] == 0
    status, shown = sda("gap", caches / "a/features.h5", tmp_path / "b.h5", "--out", tmp_path / "gap.png")
    assert (
        status == 2
        and "are not comparable: their images or their --per-class differ" in shown.err
        and not (tmp_path / "gap.png").exists()
    )


def test_t_sne_keeps_clusters_apart():
    """Two distant clusters in ten dimensions remain two clusters in the plane."""
    random = np.random.default_rng(0)
    heaps = [Pixels(random.normal(50.0 * side, 1, (40, 10)), np.zeros(40, int), np.arange(40)) for side in range(2)]
    one, other = gap.project(heaps, "tsne")
    assert one.shape == other.shape == (40, 2)
    apart = np.linalg.norm(one[:, None] - other[None], axis=2).min(axis=1)
    nearest = np.sort(np.linalg.norm(one[:, None] - one[None], axis=2), axis=1)[:, 1]
    assert (nearest < apart).all()


def test_a_missing_package_for_a_projection_is_named(sda, caches, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    status, shown = sda("gap", caches / "a/features.h5", "--projection", "umap", "--out", tmp_path / "gap.png")
    assert status == 2 and "pip install umap-learn" in shown.err
