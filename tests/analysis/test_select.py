"""sda select: each strategy against a simple reference, and lists that recipes can use."""

import shutil

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.spatial.distance import cdist

from sda.analysis import bank as bank_contents
from sda.analysis import select as selection
from sda.analysis.cache import FeatureCache
from sda.data.splits.rules import rank
from sda.errors import SdaError


@pytest.fixture(scope="module")
def cache(cached_run):
    return FeatureCache(cached_run / "features.h5")


@pytest.fixture(scope="module")
def unlabelled(cache):
    return [item.key for item in cache.items("field") if item.key not in cache.labelled]


def test_the_cache_lists_the_labelled_images(cache, unlabelled):
    assert len(cache.labelled) == 3 and len(unlabelled) == 5


def test_random_uses_the_rank_of_recipes(cache, unlabelled):
    assert selection.select(cache, "field", 4, "random", cache.labelled, seed=3) == rank(unlabelled, 3)[:4]


@pytest.mark.parametrize("megabytes", [1024, 0.001])
def test_k_centre_is_farthest_first(cache, unlabelled, megabytes):
    means = dict(zip(cache.paths, cache.of_images("mean").astype(float), strict=True))
    centres, rest, expected = list(cache.labelled), list(unlabelled), []
    for _ in range(5):
        distances = cdist([means[key] for key in rest], [means[key] for key in centres]).min(axis=1)
        expected.append(rest.pop(int(distances.argmax())))
        centres.append(expected[-1])
    assert selection.select(cache, "field", 5, "k-centre", cache.labelled, megabytes=megabytes) == expected


@pytest.mark.parametrize("megabytes", [1024, 0.001])
def test_k_medoids_minimises_the_mean_distance(cache, unlabelled, megabytes):
    means = dict(zip(cache.paths, cache.of_images("mean").astype(float), strict=True))
    centres, expected = list(cache.labelled), []
    for _ in range(5):
        left = [key for key in unlabelled if key not in expected]
        pool = [means[key] for key in unlabelled]
        costs = [cdist(pool, [means[c] for c in [*centres, key]]).min(axis=1).mean() for key in left]
        expected.append(left[int(np.argmin(costs))])
        centres.append(expected[-1])
    assert selection.select(cache, "field", 5, "k-medoids", cache.labelled, megabytes=megabytes) == expected


class Means:
    """The part of the FeatureCache interface that k_medoids reads."""

    def __init__(self, rows):
        self.rows = rows

    def image_row(self, name, index):
        return self.rows[index]

    def blocks_of_images(self, name, megabytes):
        return lambda: ((first, self.rows[first : first + 300]) for first in range(0, len(self.rows), 300))


@pytest.mark.parametrize("centres", [[], [3, 700]])
def test_incremental_costs_of_k_medoids_are_exact(centres):
    """The incremental costs equal the sum over all candidates, recomputed in float64."""
    rows = np.random.default_rng(0).normal(size=(1300, 4))
    candidates = np.delete(np.arange(1300), [3, 700, *range(900, 1000)])
    away, chosen = cdist(rows, rows), list(centres)
    for _ in range(40):
        nearest = away[np.ix_(candidates, chosen)].min(axis=1, initial=np.inf)
        costs = np.minimum(away[np.ix_(candidates, candidates)], nearest).sum(axis=1)
        chosen.append(int(candidates[costs.argmin()]))
    assert selection.k_medoids(Means(rows), candidates, centres, 40) == chosen[len(centres) :]


def test_k_medoids_of_too_many_images_draws_a_sample(cache):
    """If the images do not fit into memory, it draws a random sample and starts with the medoid of the sample."""
    keys, megabytes = [item.key for item in cache.items("field")], 8 * 6**2 / 2**20
    means = dict(zip(cache.paths, cache.of_images("mean").astype(float), strict=True))
    for seed in range(3):
        sample = rank(keys, seed)[:6]
        chosen = selection.select(cache, "field", 6, "k-medoids", [], seed, megabytes=megabytes)
        costs = cdist([means[key] for key in sample], [means[key] for key in sample]).sum(axis=1)
        assert sorted(chosen) == sorted(sample) and chosen[0] == sample[int(costs.argmin())]
    with pytest.raises(SdaError, match="more --memory"):
        selection.select(cache, "field", 7, "k-medoids", [], megabytes=megabytes)


def test_k_centre_without_labels_starts_nearest_to_the_mean(cache):
    keys = [item.key for item in cache.items("field")]
    means = cache.of_images("mean").astype(float)[cache.images_of("field")]
    middle = keys[int(cdist(means, means.mean(axis=0)[None])[:, 0].argmin())]
    assert selection.select(cache, "field", 3, "k-centre", [])[0] == middle


def test_by_turns_by_hand():
    """The rarest class with values comes first; the values of class 2 are all 0."""
    worth = np.array([[0.9, 0.0, 0.0], [0.5, 0.3, 0.0], [0.1, 0.8, 0.0], [0.7, 0.2, 0.0]])
    assert selection.by_turns(worth, np.array([0.6, 0.3, 0.1]), 3) == [2, 0, 1]
    assert selection.by_turns(worth, np.array([0.6, 0.3, 0.1]), 4) == [2, 0, 1, 3]
    assert selection.by_turns(np.zeros((3, 2)), np.array([0.5, 0.5]), 2) == [0, 1]


def test_entropy_takes_the_most_uncertain_image_of_the_rarest_class_first(cache, unlabelled):
    place = [cache.paths.index(key) for key in unlabelled]
    share, entropy = cache.of_images("share")[place], cache.of_images("class_entropy")[place]
    order = share.mean(axis=0).argsort()
    rarest = next(c for c in order if (share[:, c] * entropy[:, c]).any())
    first = unlabelled[int((share[:, rarest] * entropy[:, rarest]).argmax())]
    assert selection.select(cache, "field", 2, "entropy", cache.labelled)[0] == first


@pytest.mark.parametrize("megabytes", [1024, 0.01])
def test_distance_from_the_bank_equals_a_loop(cached_run, cache, megabytes):
    bank = bank_contents.of_run(cached_run)
    found = selection.unknown_to(bank, cache, megabytes)
    for index in (0, 5, len(cache) - 1):
        rows = cache[index]
        for c in range(3):
            away = []
            for z, prediction, drawn in zip(rows["projected"].astype(float), rows["prediction"], rows["drawn"], strict=True):
                if prediction == c and drawn & 1:
                    entries = bank.features[c][bank.valid[c]].astype(float)
                    cosines = [z @ e / np.linalg.norm(z) / np.linalg.norm(e) for e in entries]
                    away.append(1 - max(cosines) if cosines else 2.0)
            assert found[index, c] == pytest.approx(np.mean(away) if away else 0, abs=1e-3)


@pytest.mark.parametrize("strategy", selection.STRATEGIES)
def test_shorter_lists_are_prefixes_of_longer_ones(cached_run, cache, unlabelled, strategy):
    bank = bank_contents.of_run(cached_run)
    lists = [selection.select(cache, "field", budget, strategy, cache.labelled, bank=bank) for budget in (2, 5)]
    assert lists[0] == lists[1][:2] and sorted(lists[1]) == sorted(unlabelled)


@pytest.mark.parametrize("strategy", selection.STRATEGIES)
def test_recipes_train_on_the_written_list(sda, world, cached_run, cache, tmp_path, strategy):
    """The list has labelled images first, then the chosen ones; the contact sheet shows the chosen ones."""
    file = tmp_path / "lists" / "mine.txt"
    status, shown = sda("select", cached_run / "features.h5", "--budget", 2, "--strategy", strategy, "--out", file)
    assert status == 0, shown.err
    assert file.read_text().splitlines()[:3] == cache.labelled and len(file.read_text().splitlines()) == 5
    with Image.open(file.with_suffix(".png")) as sheet:
        assert sheet.width > 2 * 240
    status, shown = sda("train", world.recipe, "--split", file, "--steps", 1, "--out", tmp_path / "run", "--device", "cpu")
    assert status == 0 and "labelled: 5 images" in shown.err
    status, shown = sda("select", cached_run / "features.h5", "--budget", 2, "--strategy", strategy, "--out", file)
    assert status == 2 and "this file exists and is not overwritten" in shown.err


def test_selection_does_not_read_labels(cached_run, cache):
    bank = bank_contents.of_run(cached_run)
    chosen = {name: selection.select(cache, "field", 3, name, [], bank=bank) for name in selection.STRATEGIES}

    class WithoutLabels(FeatureCache):
        def block(self, begin, end, *names):
            assert names and "label" not in names
            return super().block(begin, end, *names)

    blind = WithoutLabels(cached_run / "features.h5")
    for name, images in chosen.items():
        assert selection.select(blind, "field", 3, name, [], bank=bank) == images


def test_existing_labels_do_not_change_the_selection(sda, world, cached_run, cache, tmp_path):
    """The same images without label files give the same selection."""
    shutil.copytree(world.root / "field/pictures", tmp_path / "bare/pictures")
    file, bank = tmp_path / "bare.h5", bank_contents.of_run(cached_run)
    flags = ["--dataset", world.field, "--root", tmp_path / "bare", "--out", file, "--device", "cpu"]
    assert sda("features", cached_run, *flags)[0] == 0
    bare = FeatureCache(file)
    assert (bare[0]["label"] == 255).all() and bare.domains == ["field"]
    for name in selection.STRATEGIES:
        mine, theirs = (selection.select(one, "field", 5, name, cache.labelled, bank=bank) for one in (bare, cache))
        assert mine == theirs


def test_validation_images_are_not_selected(sda, world, tmp_path):
    held, out = tmp_path / "val.txt", tmp_path / "run"
    held.write_text("pictures/train/north/00.jpg\npictures/train/south/01.jpg\n")
    flags = ["--val-list", held, "--labels", 2, "--hold-out", 1, "--steps", 1, "--device", "cpu"]
    assert sda("train", world.recipe, *flags, "--out", out)[0] == 0
    assert sda("features", out, "--device", "cpu")[0] == 0
    status, shown = sda("select", out / "features.h5", "--budget", 5, "--out", tmp_path / "list.txt")
    assert status == 2 and "--budget 5, but field has only 4 images" in shown.err
    assert sda("select", out / "features.h5", "--budget", 4, "--out", tmp_path / "list.txt")[0] == 0
    assert not set(held.read_text().split()) & set((tmp_path / "list.txt").read_text().splitlines())


def test_the_bank_of_another_network_is_refused(sda, world, cached_run, tmp_path):
    other = tmp_path / "other"
    flags = [*tiny.BANK, "--seed", 3, "--steps", 1, "--device", "cpu"]
    assert sda("train", world.recipe, *flags, "--out", other)[0] == 0
    flags = ["--budget", 1, "--strategy", "bank", "--bank", other, "--out", tmp_path / "list.txt"]
    status, shown = sda("select", cached_run / "features.h5", *flags)
    assert status == 2 and "made by another network" in shown.err


@pytest.mark.parametrize("name", ["list.png", "list.txt", "round.1"])
def test_an_existing_picture_is_not_overwritten(sda, cached_run, tmp_path, name):
    sheet = tmp_path / {"list.png": "list.png.png", "list.txt": "list.png", "round.1": "round.1.png"}[name]
    sheet.write_bytes(b"mine")
    status, shown = sda("select", cached_run / "features.h5", "--budget", 1, "--out", tmp_path / name)
    assert (
        status == 2
        and f"{sheet}: this file exists" in shown.err
        and not (tmp_path / name).exists()
        and sheet.read_bytes() == b"mine"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", 6], "--budget 6, but field has only 5 images"),
        (["--budget", 1, "--domain", "moon"], "has no domain 'moon', only toy, field"),
        (["--budget", 1, "--strategy", "bank", "--bank", "nowhere"], "nowhere/last.pt: no such checkpoint"),
    ],
)
def test_invalid_requests_are_refused(sda, cached_run, tmp_path, flags, words):
    status, shown = sda("select", cached_run / "features.h5", *flags, "--out", tmp_path / "list.txt")
    assert status == 2 and words in shown.err and not (tmp_path / "list.txt").exists()


def test_a_missing_image_file_prevents_only_the_contact_sheet(sda, world, cached_run, tmp_path):
    """The list is still written."""
    images = tmp_path / "images"
    shutil.copytree(world.root / "field/pictures/train/north", images)
    cache, out = tmp_path / "images.h5", tmp_path / "list.txt"
    assert sda("features", cached_run, "--dataset", images, "--out", cache, "--device", "cpu")[0] == 0
    shutil.rmtree(images)
    status, shown = sda("select", cache, "--budget", 2, "--domain", "images", "--out", out)
    assert status == 0 and len(out.read_text().splitlines()) == 2, shown.err
    assert "No contact sheet: " in shown.err and "does not exist" in shown.err and not out.with_suffix(".png").exists()
