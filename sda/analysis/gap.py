"""How far apart two domains are in a network's features, class by class, from a feature cache."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from sda.analysis.cache import FeatureCache, classes_of, unit
from sda.errors import SdaError

FOLDS = 5  # of the domain classifier
NEIGHBOURS = 5  # of the probe
RIDGE = 1e-2  # of the domain classifier, of the features' mean variance


@dataclass(frozen=True)
class Pixels:
    """Some pixels of one domain.

    Attributes:
        features: (N, F) float32. label: (N,) train ids, by label where there is one, else by prediction. image: (N,) whence.
    """

    features: np.ndarray
    label: np.ndarray
    image: np.ndarray

    def of(self, which: np.ndarray) -> "Pixels":
        return Pixels(self.features[which], self.label[which], self.image[which])


def read(caches: list[FeatureCache], domain: str, per_class: int, space: str, seed: int = 0) -> Pixels:
    """Up to `per_class` random pixels of each class of a domain, from those caches that hold it.

    Args:
        space: "features" or "projected".

    Raises:
        SdaError: nobody holds this domain, or not in this space.
    """
    random, parts, images, seen = np.random.default_rng(seed), [], 0, set()
    for cache in caches:
        if domain not in cache.domains:
            continue
        own = {cache.paths[index] for index in cache.images_of(domain)}
        if seen & own:
            raise SdaError(
                f"{cache.path}: holds images of {domain} that another cache given holds too, such as {min(seen & own)}"
            )
        seen |= own
        mine = cache.domain == cache.domains.index(domain)
        for block in cache.blocks(space, "label", "prediction", "drawn", "image", rows=32768):
            here = mine[block["image"]] & (block["drawn"] & 2 > 0)
            parts.append((block[space][here], classes_of(block)[here], block["image"][here] + images, random.random(here.sum())))
            parts = [_thinned(parts, per_class)]
        images += len(cache)
    if not parts or not len(parts[0][1]):
        there = ", ".join(dict.fromkeys(name for cache in caches for name in cache.domains))
        raise SdaError(f"{', '.join(str(cache.path) for cache in caches)}: no pixel of a domain {domain!r}; there are {there}")
    features, label, image, _ = parts[0]
    return Pixels(features.astype(np.float32), label, image)


def _thinned(parts: list[tuple[np.ndarray, ...]], per_class: int) -> tuple[np.ndarray, ...]:
    """Of all parts together the `per_class` of each class with the lowest lots: memory stays bounded, the choice is fair."""
    whole = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    label, lots = whole[1], whole[3]
    kept = [np.flatnonzero(label == c) for c in np.unique(label)]
    kept = [rows[np.argsort(lots[rows])[:per_class]] for rows in kept]
    rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, int)
    return tuple(column[rows] for column in whole)


def measure(one: Pixels, other: Pixels, names: list[str], resamples: int = 499) -> dict:
    """All distances between two domains.

    Returns:
        `classes`: per class that both have, `pixels` of each, and
          - `centroid`: distance of the means over the pixels' root mean square distance from their own mean (0: the same);
          - `mmd`: maximum mean discrepancy, Gaussian kernel at the median distance, 0 to sqrt(2); `p`: of a permutation test that
            deals whole images to the domains, since pixels of one image are alike;
          - `domain_accuracy`: of a linear classifier of the domain, percent, both domains alike, cross-validated over images;
            50: they cannot be told apart;
        and over all of these
          - `probe`: percent of the other domain's pixels, mean over these classes, whose class the nearest neighbours in the
            first name; `probe_back`: the other way round; `within`: in its own domain, other images only: what can be expected.
        `mean` over the classes of each number.
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
        raise SdaError("there is no class of which both domains have pixels in two images or more; nothing can be compared")
    return {
        "classes": rows,
        "mean": {key: float(np.mean([row[key] for row in rows])) for key in ("centroid", "mmd", "domain_accuracy")},
        "probe": probe(one, other, shared),
        "probe_back": probe(other, one, shared),
        "within": [probe(domain, domain, shared) for domain in (one, other)],
    }


def centroid_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of the means of (N, F) and (M, F), over the root mean square distance of rows from the mean of their set."""
    spread = np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)])
    scale = np.sqrt(np.square(spread).sum(axis=1).mean())
    return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)) / max(scale, 1e-12))


def mmd(x: Pixels, y: Pixels, resamples: int) -> dict[str, float]:
    """Maximum mean discrepancy (Gretton et al., JMLR 2012), and p of a permutation test over images (scipy)."""
    both = np.concatenate([x.features, y.features]).astype(np.float64)
    square = np.square(both).sum(axis=1)
    distances = (square[:, None] + square[None, :] - 2 * both @ both.T).clip(min=0)
    median = np.median(distances[np.triu_indices(len(both), 1)])
    kernel = np.exp(-distances / max(median, 1e-12))
    # sums over pairs of images are all that a permutation of images needs
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
    """Percent right, the mean over the domains, of a linear least-squares classifier, on images that it has not seen."""
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
    """Percent of `asked`, mean over `classes`, whose class is that of most of the nearest pixels of `known`, by cosine.

    Pixels of one and the same image (`known` is `asked`) are not each other's neighbours.
    """
    there, here = unit(known.features), unit(asked.features)
    count = int(max(known.label.max(), asked.label.max())) + 1
    right = np.zeros(len(asked.label), bool)
    for begin in range(0, len(right), 2048):
        rows = slice(begin, begin + 2048)
        cosine = here[rows] @ there.T
        if known is asked:
            cosine[asked.image[rows, None] == known.image[None, :]] = -2
        most = min(NEIGHBOURS, cosine.shape[1])
        nearest = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
        votes = np.zeros((len(cosine), count))
        near = np.take_along_axis(cosine, nearest, axis=1)
        np.add.at(votes, (np.arange(len(cosine))[:, None], known.label[nearest]), 1 + 1e-3 * near)  # a tie goes to the nearer
        right[rows] = votes.argmax(axis=1) == asked.label[rows]
    return float(100 * np.mean([right[asked.label == c].mean() for c in classes]))


def project(groups: list[Pixels], method: str) -> list[np.ndarray]:
    """The pixels of all groups in one plane, (N, 2) each: pca, or tsne and umap, which need their packages.

    Raises:
        SdaError: the package is not installed.
    """
    whole = np.concatenate([group.features for group in groups]).astype(np.float64)
    whole -= whole.mean(axis=0)
    if method == "pca":
        _, _, axes = np.linalg.svd(whole, full_matrices=False)
        axes *= np.where(np.abs(axes).max(axis=1) == axes.max(axis=1), 1, -1)[:, None]  # the sign is free: take one
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
