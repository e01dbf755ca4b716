"""Compare the mIoU after training on images chosen by each strategy of `sda select` with that of random images.

python benchmarks/label_selection.py RECIPE [--budgets 10 30 100] [--seeds 0 1 2] [--root DIR] [--set KEY=VALUE …] [--out DIR]

For each seed, it trains the recipe without target labels (UDA), writes its feature cache, writes a list per strategy and
budget, and trains the recipe on each list. The same command resumes where it stopped. It prints

- a table per budget, and the difference to random over all budgets;
- how many random labels give the same mIoU (the aim is twice as many as were chosen);
- how typical the chosen images are: the mean distance from them to all candidates, and from each candidate to the nearest chosen
  image, both divided by the mean distance between candidates. Distances are between mean features; values are means over seeds.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist, pdist

from sda import recipe
from sda.analysis import bank as bank_contents
from sda.analysis import select as selection
from sda.analysis.cache import FeatureCache
from sda.analysis.make_cache import open_domain, write_features
from sda.data.splits.lists import read_entries, write_list
from sda.errors import SdaError
from sda.experiments import ablate, pool
from sda.runs import trained
from sda.system import tables
from sda.system.devices import pick_device
from sda.system.progress import Bars


def result_of(folder: Path) -> dict | None:
    file = folder / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def train(jobs: list[pool.Job], device, bars: Bars) -> None:
    """Train the runs without a result. Raise SdaError at the end if some failed."""
    missing = [job for job in jobs if result_of(job.folder) is None]
    bars.say(f"{len(jobs)} runs: {len(missing)} to train")
    done = pool.train_all(missing, pool.default_size(device), device, bars)
    if faults := [f"{job.name}: {result}" for job, result in done if isinstance(result, SdaError)]:
        raise SdaError("\n".join(faults))


def write_lists(first: Path, folder: Path, budgets: list[int], seed: int, device, bars: Bars) -> None:
    """Write a list per strategy and budget from the features of the network that was trained without target labels."""
    run = trained.load(first, "last", "teacher", device)
    domain, _ = open_domain(run, run.recipe.target, "", "train", bars.count)
    write_features(first / "features.h5", run, [domain], progress=bars.count)
    cache, bank = FeatureCache(first / "features.h5"), bank_contents.of_run(first)
    for strategy in selection.STRATEGIES:
        chosen = selection.select(cache, domain.name, max(budgets), strategy, [], seed, bank)
        for budget in budgets:
            path = folder / f"{strategy}-{budget}-seed{seed}.txt"
            if not path.exists():
                write_list(path, chosen[:budget])


def equal_random(score: float, budgets: list[int], random: list[float]) -> str:
    """Return how many random labels give this mean score, interpolating linearly in the logarithm of their number."""
    for below, above, low, high in zip(budgets, budgets[1:], random, random[1:], strict=False):
        if min(low, high) <= score <= max(low, high) and low != high:
            return f"{below * (above / below) ** ((score - low) / (high - low)):.0f}"
    return f"< {budgets[0]}" if score < random[0] else f"> {budgets[-1]}"


def typical(first: dict[int, Path], lists: Path, budgets: list[int]) -> dict[tuple[str, int], np.ndarray]:
    """Return both distances for each strategy and budget, as means over the seeds."""
    found = {(strategy, budget): [] for strategy in selection.STRATEGIES for budget in budgets}
    for seed, folder in first.items():
        cache = FeatureCache(folder / "features.h5")
        target = cache.images_of(cache.about["target"])
        means = cache.of_images("mean")[target].astype(np.float64)
        apart = pdist(means).mean()
        for (strategy, budget), of_seeds in found.items():
            chosen = {entry for _, entry in read_entries(lists / f"{strategy}-{budget}-seed{seed}.txt")}
            away = cdist(means, means[[cache.paths[index] in chosen for index in target]])
            of_seeds.append([away.mean() / apart, away.min(axis=1).mean() / apart])
    return {key: np.mean(of_seeds, axis=0) for key, of_seeds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", default="")
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/select"))
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device, out = pick_device(given.device), given.out.resolve()
    fixed = dict(recipe.parse_pair(pair, "--set") for pair in given.pairs) | ({"root": given.root} if given.root else {})

    def job(name: str, seed: int, folder: Path, **changes) -> pool.Job:
        made = recipe.load(given.recipe, {**fixed, **changes, "seed": seed}).with_absolute_paths()
        return pool.Job(f"{name}, seed {seed}", made, folder)

    with Bars() as bars:
        first = {seed: out / "first" / f"seed{seed}" for seed in given.seeds}
        train([job("no target labels", seed, folder, labels=0) for seed, folder in first.items()], device, bars)
        for seed, folder in first.items():
            write_lists(folder, out / "lists", given.budgets, seed, device, bars)
        runs = {
            (budget, strategy, seed): out / f"{strategy}-{budget}" / f"seed{seed}"
            for budget in given.budgets
            for strategy in selection.STRATEGIES
            for seed in given.seeds
        }
        lists = {key: str(out / "lists" / f"{key[1]}-{key[0]}-seed{key[2]}.txt") for key in runs}
        jobs = [job(f"{s}, {b} labels", seed, folder, split=lists[b, s, seed]) for (b, s, seed), folder in runs.items()]
        train(jobs, device, bars)
    budgets, means = sorted(given.budgets), {}
    for budget in budgets:
        results = {(s, seed): result_of(folder) for (b, s, seed), folder in runs.items() if b == budget}
        table = {**ablate.summarise(list(selection.STRATEGIES), given.seeds, results), "vary_split": True}
        means |= {(row["name"], budget): row["mean"] for row in table["rows"]}
        print(f"\n{budget} labels\n\n{ablate.markdown(table)}")
    random = [means["random", budget] for budget in budgets]
    others = [strategy for strategy in selection.STRATEGIES if strategy != "random"]
    print("Mean difference to random for the same budget and seed, with 95 % interval (Student's t):\n")
    for strategy in others:
        pairs = [(result_of(runs[b, strategy, s]), result_of(runs[b, "random", s])) for b in budgets for s in given.seeds]
        differences = [chosen["miou"] - drawn["miou"] for chosen, drawn in pairs]
        low, high = ablate.interval(differences, 0.95) or (float("nan"), float("nan"))
        print(f"- {strategy}: {statistics.mean(differences):+.2f} [{low:+.2f}, {high:+.2f}]")
    rows = [[s, *(equal_random(means[s, budget], budgets, random) for budget in budgets)] for s in others]
    print("\nRandom labels that give the same mIoU:\n")
    head = ["strategy", *(f"{budget} chosen" for budget in budgets)]
    print(tables.markdown(head, rows, numbers=True))
    distances = typical(first, out / "lists", budgets)
    rows = [[s, *("{:.2f}, {:.2f}".format(*distances[s, budget]) for budget in budgets)] for s in selection.STRATEGIES]
    print("\nMean distance from the chosen images to all, and from all to the nearest chosen one:\n")
    print(tables.markdown(head, rows, numbers=True))


if __name__ == "__main__":
    main()
