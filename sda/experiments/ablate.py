"""Ablations: a table of changed settings (rows) × seeds. Finished runs are not repeated."""

import itertools
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats

from sda import recipe
from sda.errors import SdaError
from sda.experiments import pool
from sda.system import tables
from sda.system.atomic import write_json, written_whole
from sda.system.owned import owned
from sda.system.progress import Bars
from sda.system.tables import mean_of_present


@dataclass(frozen=True)
class Variant:
    """One row of the table: a recipe with changes (field → value)."""

    name: str
    recipe: str
    changes: dict


def make_rows(names: list[str], axes: dict[str, list], extra: list[dict]) -> list[Variant]:
    """Return the rows: for each recipe, all combinations of the axes (field → values), then each extra set of changes.

    Raises:
        SdaError: two rows are equal, or a row changes the seed.
    """
    if "seed" in {*axes, *(key for changes in extra for key in changes)}:
        raise SdaError("seed cannot be changed in a row: every row runs with all seeds of --seeds")
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    rows = [Variant(_title(name, changes, len(names) > 1), name, changes) for name in names for changes in combinations + extra]
    if len({row.name for row in rows}) < len(rows):
        twice = next(row.name for row in rows if [other.name for other in rows].count(row.name) > 1)
        raise SdaError(f"the row {twice!r} is given twice")
    return rows


def _title(name: str, changes: dict, several: bool) -> str:
    words = [f"{key}={_plain(value)}" for key, value in changes.items()]
    stem = Path(name).stem
    return " ".join(([stem] if several or not words else []) + words)


def _plain(value: object) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    return value or "none" if isinstance(value, str) else json.dumps(value)


def run(
    rows: list[Variant],
    fixed: dict,
    seeds: list[int],
    vary_split: bool,
    out: Path,
    at_once: int,
    device: torch.device,
    bars: Bars,
) -> dict:
    """Train the missing runs below `out`, `at_once` in parallel, and write the table to ablation.json and ablation.md.

    Args:
        fixed: changes for all rows; a row's own changes override them.
        vary_split: also use the seed as `split_seed`, which picks the labelled images.
        at_once: 0 for the machine's default.

    Returns:
        The table of `summarise`, with `vary_split` and `failed` (run → error).

    Raises:
        SdaError: a recipe cannot be read, or a folder below `out` has a run with other settings.
    """
    with owned(out):
        jobs = {(row.name, seed): _job(row, fixed, seed, vary_split, out) for row in rows for seed in seeds}
        for row in rows:
            if idle := jobs[row.name, seeds[0]].recipe.ignored_fields({**fixed, **row.changes}):
                bars.say(f"{row.name}: {', '.join(idle)}: no effect with its method and other settings")
        scores, failed = pool.scores_of(list(jobs.values()), at_once or pool.default_size(device), device, bars)
        results = {key: scores[job.name] for key, job in jobs.items() if job.name in scores}
        table = {**summarise([row.name for row in rows], seeds, results), "vary_split": vary_split, "failed": failed}
        write_json(out / "ablation.json", table)
        with written_whole(out / "ablation.md") as file:
            file.write(markdown(table).encode(errors="replace"))
        return table


def _job(row: Variant, fixed: dict, seed: int, vary_split: bool, out: Path) -> pool.Job:
    changes = {**fixed, **row.changes, "seed": seed, **({"split_seed": seed} if vary_split else {})}
    folder = out / re.sub(r"[^\w=.,+-]+", "_", row.name) / f"seed{seed}"
    return pool.Job(f"{row.name}, seed {seed}", recipe.load(row.recipe, changes).with_absolute_paths(), folder)


def summarise(names: list[str], seeds: list[int], results: dict[tuple[str, int], dict], confidence: float = 0.95) -> dict:
    """Return the table: per row the mean, the standard deviation, and the difference from the first row.

    Args:
        results: (row, seed) → result of a run; missing runs are skipped.

    Returns:
        `protocol`; `seeds`; `confidence`; `rows`, each with `name`, `scores` (seed → mIoU, percent), `mean`, `spread` (standard
        deviation), `difference` (mean over seeds of the difference from the first row), `interval` (Student's t confidence
        interval of the difference), `iou` (class → mean IoU), `seconds` (mean) and `steps`.
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
    """Return Student's t confidence interval of the mean; None for fewer than two values."""
    if len(differences) < 2:
        return None
    half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * stats.sem(differences)
    return [float(statistics.mean(differences) - half), float(statistics.mean(differences) + half)]


COLUMNS = ["setting", "mIoU", "per seed", "difference from the first", "steps"]


def cells(table: dict) -> list[list[str]]:
    """Return the table's rows as text, one cell per column of COLUMNS."""
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
    """Return one sentence that explains the table."""
    seeds = ", ".join(str(seed) for seed in table["seeds"]) + (", each with its own labels" if table["vary_split"] else "")
    return (
        f"Validation mIoU of last.pt in percent, {table['protocol']}; ± standard deviation over the seeds {seeds}; "
        f"differences paired by seed, with their {table['confidence']:.0%} confidence interval (Student's t)"
    )


def markdown(table: dict) -> str:
    """Return the table and its caption as Markdown."""
    return f"{tables.markdown(COLUMNS, cells(table))}\n\n{caption(table)}.\n"
