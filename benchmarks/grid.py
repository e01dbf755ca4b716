"""Run recipes × labels × seeds side by side, resume where it stopped, and print one Markdown table.

    python benchmarks/grid.py --recipes camvid-idd_lite --labels 10 30 --seeds 0 1 2 --out runs/grid -- --root DIR

What follows `--` goes to every `sda train`. A run that has a result.json is not run again. Recipes without few target
labels (source-only, oracle) run once per seed. The seed also picks the labelled images.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SETTINGS = ("source-only", "target-only", "joint", "ssda", "oracle")


def main() -> None:
    options = arguments()
    jobs = []
    for seed, setting, labels in itertools.product(options.seeds, options.settings, options.labels):
        fixed = setting in ("source-only", "oracle")
        if fixed and labels != options.labels[0]:
            continue
        name = f"{setting}-seed{seed}" if fixed else f"{setting}-labels{labels}-seed{seed}"
        command = ["train", f"{options.recipes}-{setting}", "--seed", str(seed), "--split-seed", str(seed)]
        jobs.append((options.out / name, command + ([] if fixed else ["--labels", str(labels)]) + options.rest))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, jobs))
    print_table(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="camvid-idd_lite", help="what the recipes' names begin with")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 30])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/grid"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("rest", nargs="*", help="options for every sda train, after --")
    return parser.parse_args()


def run(job: tuple[Path, list[str]]) -> None:
    folder, command = job
    if (folder / "result.json").exists():
        return
    if folder.exists():  # left behind by an interrupted grid; kept, for nothing is overwritten
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.interrupted{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}.interrupted{number}"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        code = subprocess.run(
            [sys.executable, "-m", "sda", *command, "--out", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode
    print(f"{folder.name}: {'done' if code == 0 else f'failed, see {log.name}'}", file=sys.stderr, flush=True)


def print_table(options: argparse.Namespace) -> None:
    """One row per setting and count of labels: mean, standard deviation and the single scores."""
    print("| setting | labels | mIoU, mean ± s.d. | per seed | best.pt, mean | steps |\n|---|---|---|---|---|---|")
    for setting, labels in itertools.product(options.settings, options.labels):
        fixed = setting in ("source-only", "oracle")
        if fixed and labels != options.labels[0]:
            continue
        paths = [
            options.out / (f"{setting}-seed{seed}" if fixed else f"{setting}-labels{labels}-seed{seed}") for seed in options.seeds
        ]
        results = [json.loads((path / "result.json").read_text()) for path in paths if (path / "result.json").exists()]
        if not results:
            continue
        scores = [result["miou"] for result in results]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        count = {"source-only": "0", "oracle": "all"}.get(setting, str(labels))
        best = statistics.mean(result["best"]["miou"] for result in results)
        print(
            f"| {setting} | {count} | {statistics.mean(scores):.2f}{spread} | {', '.join(f'{score:.2f}' for score in scores)} "
            f"| {best:.2f} | {results[0]['steps']} |"
        )


if __name__ == "__main__":
    main()
