"""What each setting is worth: rows of changed settings × seeds, in one table. Runs that are there are not run again."""

import itertools
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats

from sda import recipe, shelf
from sda.errors import SdaError
from sda.experiments import pool
from sda.recipe import Recipe
from sda.system import tables
from sda.system.progress import Bars
from sda.system.tables import mean_of_present
from sda.training import resume


@dataclass(frozen=True)
class Row:
    """One row of the table: a recipe with changes (field → value)."""

    name: str
    recipe: str
    changes: dict


def make_rows(names: list[str], axes: dict[str, list], extra: list[dict]) -> list[Row]:
    """For each recipe, every combination of the axes (field → values), then each extra set of changes.

    Raises:
        SdaError: two rows are the same, or one changes the seed, which is the other side of the table.
    """
    if "seed" in {*axes, *(key for changes in extra for key in changes)}:
        raise SdaError("the seed is no row: every row runs with all of --seeds")
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    rows = [Row(_title(name, changes, len(names) > 1), name, changes) for name in names for changes in combinations + extra]
    if len({row.name for row in rows}) < len(rows):
        twice = next(row.name for row in rows if [other.name for other in rows].count(row.name) > 1)
        raise SdaError(f"the row {twice!r} is asked for twice")
    return rows


def _title(name: str, changes: dict, several: bool) -> str:
    words = [f"{key}={_plain(value)}" for key, value in changes.items()]
    stem = Path(name).stem
    return " ".join(([stem] if several or not words else []) + words)


def _plain(value: object) -> str:
    return value or "none" if isinstance(value, str) else json.dumps(value)


def run(
    rows: list[Row],
    fixed: dict,
    seeds: list[int],
    vary_split: bool,
    out: Path,
    at_once: int,
    device: torch.device,
    bars: Bars,
) -> dict:
    """Train what is missing below `out`, `at_once` at a time, and write the table.

    Args:
        fixed: changes of all rows, which a row's own go before.
        vary_split: the seed also picks the labelled images.
        at_once: 0 for as many as the machine runs well.

    Returns:
        `rows`: per row its name, scores (percent) per seed, mean, spread, difference to the first row with its
        confidence interval, and mean IoU per class; `protocol`; `failed`: run → error.

    Raises:
        SdaError: a recipe cannot be read, or a folder below `out` holds a run of other settings.
    """
    jobs = {(row.name, seed): _job(row, fixed, seed, vary_split, out) for row in rows for seed in seeds}
    results = {key: result for key, job in jobs.items() if (result := _finished(job))}
    missing = [job for key, job in jobs.items() if key not in results]
    for row in rows:
        if idle := jobs[row.name, seeds[0]].recipe.ignored_fields({**fixed, **row.changes}):
            bars.say(f"{row.name}: {', '.join(idle)}: no effect with its method and other settings")
    bars.say(f"{len(jobs)} runs: {len(results)} are there, {len(missing)} to train")
    places = {job.folder: key for key, job in jobs.items()}
    failed = {}
    for number, (job, result) in enumerate(pool.train_all(missing, at_once or pool.default_size(device), device, bars), 1):
        if isinstance(result, SdaError):
            failed[job.name] = str(result)
            bars.say(f"{job.name}: {result}")
        else:
            results[places[job.folder]] = result
        bars.count("runs", number, len(missing))
    table = {**summarise([row.name for row in rows], seeds, results), "vary_split": vary_split, "failed": failed}
    out.mkdir(parents=True, exist_ok=True)
    (out / "ablation.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (out / "ablation.md").write_text(markdown(table), encoding="utf-8")
    return table


def _job(row: Row, fixed: dict, seed: int, vary_split: bool, out: Path) -> pool.Job:
    changes = {**fixed, **row.changes, "seed": seed, **({"split_seed": seed} if vary_split else {})}
    folder = out / re.sub(r"[^\w=.,+-]+", "_", row.name) / f"seed{seed}"
    return pool.Job(f"{row.name}, seed {seed}", recipe.load(row.recipe, changes).with_absolute_paths(), folder)


def _finished(job: pool.Job) -> dict | None:
    """The result in a job's folder, if its run came to its end."""
    if not (job.folder / "result.json").exists():
        return None
    file = job.folder / "recipe.toml"
    if newer := recipe.newer_fields(shelf.parse(file)):
        raise SdaError(f"{file}: of an older version of sda, without {', '.join(newer)}; name another --out")
    there = recipe.load(str(file))
    idle = resume.FREE - resume.PLACES | {"root"}  # nothing tells whether other folders hold the same images
    decisive = Recipe.model_fields.keys() - idle
    changed = [key for key in Recipe.model_fields if key in decisive and getattr(there, key) != getattr(job.recipe, key)]
    if changed:
        was, wanted = getattr(there, changed[0]), getattr(job.recipe, changed[0])
        raise SdaError(f"{job.folder}: holds a run with {changed[0]} = {was!r}, not {wanted!r}; name another --out")
    try:
        return json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
    except ValueError:
        return None  # cut off while it was written: as good as interrupted


def summarise(names: list[str], seeds: list[int], results: dict[tuple[str, int], dict], confidence: float = 0.95) -> dict:
    """Means, standard deviations, and differences to the first row, paired by seed, with Student's t interval.

    Args:
        results: (row, seed) → the result of a run; absent ones are left out of their row.
    """
    rows = []
    for name in names:
        scores = {seed: results[name, seed]["miou"] for seed in seeds if (name, seed) in results}
        values = list(scores.values())
        both = [seed for seed in scores if (names[0], seed) in results]
        differences = [scores[seed] - results[names[0], seed]["miou"] for seed in both]
        classes = results[name, next(iter(scores))]["iou"] if scores else {}
        rows.append(
            {
                "name": name,
                "scores": {str(seed): score for seed, score in scores.items()},
                "mean": statistics.mean(values) if values else None,
                "spread": statistics.stdev(values) if len(values) > 1 else None,
                "difference": statistics.mean(differences) if differences else None,
                "interval": interval(differences, confidence),
                "iou": {label: mean_of_present(results[name, seed]["iou"][label] for seed in scores) for label in classes},
                "seconds": mean_of_present(results[name, seed]["seconds"] for seed in scores),
                "steps": next((results[name, seed]["steps"] for seed in scores), None),
            }
        )
    protocols = sorted({result["protocol"]["name"] for result in results.values()})
    return {"protocol": ", ".join(protocols), "seeds": seeds, "confidence": confidence, "rows": rows}


def interval(differences: list[float], confidence: float) -> list[float] | None:
    """Student's t confidence interval of the mean; None for fewer than two values."""
    if len(differences) < 2:
        return None
    half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * stats.sem(differences)
    return [float(statistics.mean(differences) - half), float(statistics.mean(differences) + half)]


COLUMNS = ["setting", "mIoU", "per seed", "difference to the first", "steps"]


def cells(table: dict) -> list[list[str]]:
    """The table's rows as text, under COLUMNS."""
    made = []
    for place, row in enumerate(table["rows"]):
        if row["mean"] is None:
            made.append([row["name"], "failed", "", "", ""])
            continue
        mean = f"{row['mean']:.2f}" + (f" ± {row['spread']:.2f}" if row["spread"] is not None else "")
        difference = "" if place == 0 or row["difference"] is None else f"{row['difference']:+.2f}"
        if difference and row["interval"]:
            difference += f" [{row['interval'][0]:+.2f}, {row['interval'][1]:+.2f}]"
        single = ", ".join(f"{score:.2f}" for score in row["scores"].values())
        made.append([row["name"], mean, single, difference, str(row["steps"])])
    return made


def caption(table: dict) -> str:
    seeds = ", ".join(str(seed) for seed in table["seeds"]) + (", each with its own labels" if table["vary_split"] else "")
    return (
        f"Validation mIoU in percent of last.pt, {table['protocol']}; ± standard deviation over the seeds {seeds}; "
        f"difference paired by seed, with its {table['confidence']:.0%} confidence interval (Student's t)"
    )


def markdown(table: dict) -> str:
    return f"{tables.markdown(COLUMNS, cells(table))}\n\n{caption(table)}.\n"
