"""Measure the domain gap: the distance between two domains in the features of a network, per class, from feature caches."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from sda.analysis.cache import FeatureCache, classes_of, unit
from sda.errors import SdaError
from sda.runs.compare import title_of

FOLDS = 5  # cross-validation folds of the domain classifier
NEIGHBOURS = 5  # nearest neighbours that vote in the probe
RIDGE = 1e-2  # regularisation of the domain classifier, relative to the mean variance of the features
PROJECTED = 80  # maximum number of pixels per class and domain in the picture


@dataclass(frozen=True)
class Pixels:
    """Pixels of one domain.

    Attributes:
        features: (N, F) float32. label: (N,) train ids of the label, or of the prediction if the image has none.
        image: (N,) index of the image.
    """

    features: np.ndarray
    label: np.ndarray
    image: np.ndarray

    def of(self, which: np.ndarray) -> "Pixels":
        """Return the pixels that a boolean mask or an array of indices selects."""
        return Pixels(self.features[which], self.label[which], self.image[which])


@dataclass(frozen=True)
class Comparison:
    """The gap between two domains for one or several networks.

    Attributes:
        domains: their names. classes: name → colour. networks: name of the run → what `measure` returns.
        planes: name of the run → per domain the positions (N, 2) of pixels in a plane, and the pixels.
    """

    domains: list[str]
    classes: dict[str, list[int]]
    networks: dict[str, dict]
    planes: dict[str, list[tuple[np.ndarray, Pixels]]]


def compare(
    files: list[Path], domains: list[str], per_class: int, space: str, projection: str, progress: Callable[[str, int, int], None]
) -> Comparison:
    """Measure the gap between two domains for every network that made one of the caches.

    Args:
        files: feature caches. per_class: pixels per class and domain.
        domains: two names; names joined by + are one domain. Empty for those in the caches, with the sources of the run as one.
        space: "features" or "projected". projection: see `project`.

    Raises:
        SdaError: the caches do not have these two domains, or caches of several networks differ in classes, images or pixels.
    """
    by_network: dict[str, list[FeatureCache]] = {}
    for file in {os.path.realpath(file): file for file in files}.values():
        cache = FeatureCache(file)
        by_network.setdefault(cache.settings["network"], []).append(cache)
    groups = list(by_network.values())
    first = groups[0][0]
    networks: dict[str, dict] = {}
    planes: dict[str, list[tuple[np.ndarray, Pixels]]] = {}
    for number, caches in enumerate(groups):
        title = title_of(Path(caches[0].about["run"]))
        title = f"{title} ({number + 1})" if title in networks else title
        if list(caches[0].classes) != list(first.classes):
            raise SdaError(f"{caches[0].path} and {first.path} are not comparable: their classes differ")
        found = list(dict.fromkeys(domain for cache in caches for domain in cache.domains))
        domains = domains or _with_joint_sources(found, caches)
        if len(set(domains)) != 2:
            advice = (
                "choose two with --domains A,B (A+B joins two)" if len(found) > 1 else "also give a cache of the other domain"
            )
            raise SdaError(f"{caches[0].path}: expected two domains, found {', '.join(domains)}; {advice}")
        _check_same_images(groups[0], caches, domains)
        progress("networks", number, len(groups))
        one, other = (read(caches, domain, per_class, space) for domain in domains)
        networks[title] = measure(one, other, list(caches[0].classes))
        few = [read(caches, domain, min(per_class, PROJECTED), space) for domain in domains]
        planes[title] = list(zip(project(few, projection), few, strict=True))
    progress("networks", len(groups), len(groups))
    return Comparison(domains, first.classes, networks, planes)


def _with_joint_sources(found: list[str], caches: list[FeatureCache]) -> list[str]:
    """Return the domains in caches, with several sources of the run that made them as one domain A+B, which comes first."""
    sources = [name for name in found if all(name in c.about["sources"] and name != c.about["target"] for c in caches)]
    return ["+".join(sources), *(name for name in found if name not in sources)] if len(sources) > 1 else found


def _members(domain: str, caches: list[FeatureCache]) -> list[str]:
    """Return the domains in the caches that a name A, or A+B, stands for. Raise SdaError if there is no such domain."""
    found = {name for cache in caches for name in cache.domains}
    names = [domain] if domain in found else domain.split("+")
    if unknown := [name for name in names if name not in found]:
        raise _no_pixels(unknown[0], caches)
    return names


def _no_pixels(domain: str, caches: list[FeatureCache]) -> SdaError:
    found = ", ".join(dict.fromkeys(name for cache in caches for name in cache.domains))
    return SdaError(f"{', '.join(str(cache.path) for cache in caches)}: no pixels of domain {domain!r}; domains: {found}")


def _images(cache: FeatureCache, names: list[str]) -> set[tuple[str, str]]:
    """Return (domain, path) of the images of some domains in a cache."""
    return {(name, cache.paths[index]) for name in names if name in cache.domains for index in cache.images_of(name)}


def _check_same_images(one: list[FeatureCache], other: list[FeatureCache], domains: list[str]) -> None:
    """Raise SdaError if the caches of two networks differ in their images of the domains, or in --per-class."""

    def content(caches: list[FeatureCache]) -> tuple:
        members = [_members(domain, caches) for domain in domains]
        images = [{image for cache in caches for image in _images(cache, names)} for names in members]
        return sorted({cache.settings["per_class"] for cache in caches}), images

    if content(one) != content(other):
        raise SdaError(f"{one[0].path} and {other[0].path} are not comparable: their images or their --per-class differ")


def read(caches: list[FeatureCache], domain: str, per_class: int, space: str, seed: int = 0) -> Pixels:
    """Read up to `per_class` random pixels of each class of a domain, from the caches that contain it.

    Args:
        domain: its name; names joined by + for all images of several.
        space: "features" or "projected".

    Raises:
        SdaError: no cache contains this domain, two caches contain the same image, or a cache has no projected features.
    """
    names = _members(domain, caches)
    random, images = np.random.default_rng(seed), 0
    seen: set[tuple[str, str]] = set()
    parts: list[tuple[np.ndarray, ...]] = []
    for cache in caches:
        own = _images(cache, names)
        if not own:
            continue
        if seen & own:
            name, path = min(seen & own)
            raise SdaError(f"{cache.path}: another cache also contains the image {path} of {name}; give each image only once")
        seen |= own
        mine = np.isin(cache.domain, [index for index, name in enumerate(cache.domains) if name in names])
        for block in cache.blocks(space, "label", "prediction", "drawn", "image", rows=32768):
            here = mine[block["image"]] & (block["drawn"] & 2 > 0)
            parts.append((block[space][here], classes_of(block)[here], block["image"][here] + images, random.random(here.sum())))
            parts = [_subsampled(parts, per_class)]
        images += len(cache)
    if not parts or not len(parts[0][1]):
        raise _no_pixels(domain, caches)
    features, label, image, _ = parts[0]
    return Pixels(features.astype(np.float32), label, image)


def _subsampled(parts: list[tuple[np.ndarray, ...]], per_class: int) -> tuple[np.ndarray, ...]:
    """Join the parts, and keep the `per_class` pixels of each class with the lowest random numbers (the last column)."""
    whole = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    label, draws = whole[1], whole[3]
    kept = [np.flatnonzero(label == c) for c in np.unique(label)]
    kept = [rows[np.argsort(draws[rows])[:per_class]] for rows in kept]
    rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, int)
    return tuple(column[rows] for column in whole)


def measure(one: Pixels, other: Pixels, names: list[str], resamples: int = 499) -> dict:
    """Compute all distances between two domains.

    Returns:
        `classes`, for each class with pixels in two or more images of both domains:
          - `class`, and `pixels` of each domain;
          - `centroid`: distance between the means, divided by the root mean square distance of pixels to their mean;
          - `mmd`: maximum mean discrepancy with a Gaussian kernel at the median distance, 0 to sqrt(2); `p`: p-value of a
            permutation test that permutes whole images, because pixels of one image are correlated;
          - `domain_accuracy`: balanced accuracy in percent of a linear domain classifier, cross-validated over images; 50 is
            chance;
        `mean`, over the classes, of centroid, mmd and domain_accuracy;
        `probe`: percent of pixels of `other`, mean over the classes, that a nearest-neighbour classifier in `one` classifies
        correctly; `probe_back`: the reverse; `within`: the same within each domain, with neighbours from other images only.

    Raises:
        SdaError: no class has pixels in two or more images of both domains.
    """
    rows, shared = [], []
    for c, name in enumerate(names):
        x, y = one.of(one.label == c), other.of(other.label == c)
        if min(len(np.unique(x.image)), len(np.unique(y.image))) < 2:
            continue
        shared.append(c)
        rows.append(
            {
                "class": name,
                "pixels": [len(x.label), len(y.label)],
                "centroid": centroid_distance(x.features, y.features),
                **mmd(x, y, resamples),
                "domain_accuracy": domain_accuracy(x, y),
            }
        )
    if not rows:
        raise SdaError("nothing to compare: no class has pixels in at least two images of both domains")
    return {
        "classes": rows,
        "mean": {key: float(np.mean([row[key] for row in rows])) for key in ("centroid", "mmd", "domain_accuracy")},
        "probe": probe(one, other, shared),
        "probe_back": probe(other, one, shared),
        "within": [probe(domain, domain, shared) for domain in (one, other)],
    }


def centroid_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the distance between the means of (N, F) and (M, F), divided by the rows' RMS distance to their mean."""
    spread = np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)])
    scale = np.sqrt(np.square(spread).sum(axis=1).mean())
    return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)) / max(scale, 1e-12))


def mmd(x: Pixels, y: Pixels, resamples: int) -> dict[str, float]:
    """Return the maximum mean discrepancy (Gretton et al., JMLR 2012), and p, the p-value of a permutation test over images."""
    both = np.concatenate([x.features, y.features]).astype(np.float64)
    square = np.square(both).sum(axis=1)
    distances = (square[:, None] + square[None, :] - 2 * both @ both.T).clip(min=0)
    median = np.median(distances[np.triu_indices(len(both), 1)])
    kernel = np.exp(-distances / max(median, 1e-12))
    # a permutation of images needs only the sums over pairs of images
    _, image = np.unique(np.concatenate([x.image, y.image + x.image.max() + 1]), return_inverse=True)
    member = np.zeros((image.max() + 1, len(both)))
    member[image, np.arange(len(both))] = 1
    sums, pixels = member @ kernel @ member.T, member.sum(axis=1)

    def statistic(first: np.ndarray, second: np.ndarray) -> float:
        a, b = first.astype(int), second.astype(int)
        n, m = pixels[a].sum(), pixels[b].sum()
        within = sums[np.ix_(a, a)].sum() / n**2 + sums[np.ix_(b, b)].sum() / m**2
        return np.sqrt(max(within - 2 * sums[np.ix_(a, b)].sum() / (n * m), 0.0))

    split = len(np.unique(x.image))
    test = stats.permutation_test(
        (np.arange(split), np.arange(split, len(pixels))),
        statistic,
        n_resamples=resamples,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return {"mmd": float(test.statistic), "p": float(test.pvalue)}


def domain_accuracy(x: Pixels, y: Pixels) -> float:
    """Return the balanced accuracy, in percent, of a linear least-squares domain classifier, cross-validated over images."""
    images = [np.unique(domain.image) for domain in (x, y)]
    folds = min(FOLDS, *(len(each) for each in images))
    random = np.random.default_rng(0)
    fold = [dict(zip(each, random.permutation(np.arange(len(each)) % folds), strict=True)) for each in images]
    place = [np.array([fold[side][image] for image in domain.image]) for side, domain in enumerate((x, y))]
    right = [np.zeros(len(x.image), bool), np.zeros(len(y.image), bool)]
    for held in range(folds):
        a, b = x.features[place[0] != held], y.features[place[1] != held]
        middle = (a.mean(axis=0) + b.mean(axis=0)) / 2
        within = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)]).astype(np.float64)
        covariance = within.T @ within / len(within)
        covariance += RIDGE * covariance.trace() / len(covariance) * np.eye(len(covariance)) + 1e-12 * np.eye(len(covariance))
        direction = np.linalg.solve(covariance, (b.mean(axis=0) - a.mean(axis=0)).astype(np.float64))
        right[0][place[0] == held] = (x.features[place[0] == held] - middle) @ direction < 0
        right[1][place[1] == held] = (y.features[place[1] == held] - middle) @ direction > 0
    return float(50 * (right[0].mean() + right[1].mean()))


def probe(known: Pixels, asked: Pixels, classes: list[int]) -> float:
    """Return the percentage of `asked`, mean over `classes`, that neighbours in `known` (by cosine) classify correctly.

    If `known` is `asked`, pixels of the same image are not neighbours.
    """
    keys, queries = unit(known.features), unit(asked.features)
    count = int(max(known.label.max(), asked.label.max())) + 1
    right = np.zeros(len(asked.label), bool)
    for begin in range(0, len(right), 2048):
        rows = slice(begin, begin + 2048)
        cosine = queries[rows] @ keys.T
        if known is asked:
            cosine[asked.image[rows, None] == known.image[None, :]] = -2
        most = min(NEIGHBOURS, cosine.shape[1])
        nearest = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
        votes = np.zeros((len(cosine), count))
        near = np.take_along_axis(cosine, nearest, axis=1)
        np.add.at(votes, (np.arange(len(cosine))[:, None], known.label[nearest]), 1 + 1e-3 * near)  # the nearer one wins a tie
        right[rows] = votes.argmax(axis=1) == asked.label[rows]
    return float(100 * np.mean([right[asked.label == c].mean() for c in classes]))


def project(groups: list[Pixels], method: str) -> list[np.ndarray]:
    """Project the pixels of all groups to one plane, (N, 2) each.

    Args:
        method: pca, tsne (needs scikit-learn) or umap (needs umap-learn).

    Raises:
        SdaError: the package is not installed.
    """
    whole = np.concatenate([group.features for group in groups]).astype(np.float64)
    whole -= whole.mean(axis=0)
    if method == "pca":
        _, _, axes = np.linalg.svd(whole, full_matrices=False)
        axes *= np.where(np.abs(axes).max(axis=1) == axes.max(axis=1), 1, -1)[:, None]  # fix the sign, which is arbitrary
        plane = whole @ axes[:2].T
    else:
        try:
            if method == "tsne":
                from sklearn.manifold import TSNE

                plane = TSNE(random_state=0, init="pca").fit_transform(whole)
            else:
                from umap import UMAP

                plane = UMAP(random_state=0, n_jobs=1).fit_transform(whole)
        except ModuleNotFoundError as error:
            package = {"tsne": "scikit-learn", "umap": "umap-learn"}[method]
            raise SdaError(f"--projection {method}: {error.name} is not installed: pip install {package}") from None
    return np.split(plane, np.cumsum([len(group.label) for group in groups])[:-1])
