"""One run, from recipe to result."""

import contextlib
from pathlib import Path

import torch

from sda.data.assemble import Data, assemble
from sda.errors import SdaError, is_out_of_memory
from sda.models.build import build_network, check_recipe
from sda.models.preprocessing import IMAGENET
from sda.recipe import Recipe
from sda.runs import folder
from sda.system import distributed
from sda.system.owned import owned
from sda.system.progress import Bars
from sda.training import boards, gpu_memory, resume
from sda.training.loop import train
from sda.training.resume import Resumed
from sda.training.state import prepare


def run(
    recipe: Recipe,
    name: str,
    out: Path,
    device: torch.device,
    bars: Bars,
    resume_from: str = "",
    stop_at: int | None = None,
    patience: float = 0.0,
) -> dict | None:
    """Train a recipe into the folder `out`, or resume there, and return the result (see `sda.training.loop.train`).

    Meanwhile no other process can write `out`. Missing files raise an error before anything is written there.

    Args:
        resume_from: a checkpoint; "auto" for the newest one in `out`, if there is one; "" to start a run in an empty folder.
        patience: seconds to wait for another process that writes `out`.

    Returns:
        The result; that of the earlier run if `out` has one that is finished and `resume_from` is "auto"; None if stopped at
        `stop_at`, and in all processes except the first.

    Raises:
        SdaError: `out` is not empty, or has another run; another process writes it; the data, weights or checkpoint cannot be
            used. Interrupted: see `train`.
    """
    is_main = distributed.rank() == 0
    with owned(out, patience=patience) if is_main else contextlib.nullcontext():
        if result := resume.finished(out, recipe) if resume_from else None:
            if resume_from != "auto":
                raise SdaError(f"{out}: this run is finished; to train again, choose another --out")
            bars.say(f"{out}: this run is finished")
            return result if is_main else None
        resumed = resume.find(resume_from, out) if resume_from else None
        may_have_files = resumed.is_in(out) if resumed else resume_from and (out / "recipe.toml").exists()
        if is_main and not may_have_files:
            folder.require_empty(out)
        recipe = resume.settle(recipe, resumed, device)
        bars.say(f"{name}: {recipe.setting}, {recipe.steps} steps, seed {recipe.seed}; run folder {out}")
        return _train(recipe, name, out, device, bars, resumed, stop_at)


def _train(
    recipe: Recipe, name: str, out: Path, device: torch.device, bars: Bars, resumed: Resumed | None, stop_at: int | None
) -> dict | None:
    boards.check_installed(recipe.board)
    check_recipe(recipe)
    with distributed.main_process_first():
        data = assemble(recipe, bars.count)
    _report_data(recipe, data, bars)
    # Only the first process writes checkpoints, so only it needs these.
    inputs = resume.inputs_of(recipe, data, bars.count) if distributed.rank() == 0 else {}
    machine = resume.machine_of(device)
    if resumed is not None:
        for note in resume.check(resumed, recipe, data, inputs, machine, out):
            bars.say(note)
        if resumed.instead_of:
            bars.say(f"{resumed.instead_of}; the checkpoint before it is used instead")
        bars.say(f"resuming from {resumed.path}, step {resumed.step} of {recipe.steps}")
    if device.type == "cuda":
        bars.say(_memory(recipe, len(data.table.names), device))
    begun, result = False, None
    with bars.saying_logs(), contextlib.closing(prepare(recipe, data, device, resumed)) as training:
        training.inputs, training.machine = inputs, machine
        try:
            with distributed.main_process_first():
                if distributed.rank() == 0:
                    begun = True
                    _begin_folder(out, recipe, data, str(device), resumed, bars)
            result = train(training, out, bars, name, stop_at)
            if result is not None and distributed.rank() == 0:
                folder.finish(out, result)
        except Exception as error:
            if begun:
                # A signal before the first step leaves a checkpoint, whose run must stay complete.
                folder.fail(out, str(error), stepped=training.step > 0 or (out / "last.pt").exists())
            if is_out_of_memory(error):
                raise SdaError(f"{device} is out of memory; try, in this order: {gpu_memory.advice(recipe)}") from None
            if isinstance(error, OSError):
                where, what = error.filename or out, error.strerror or error
                raise SdaError(f"{where}: {what}; fix the cause, then repeat the command with --resume auto") from None
            raise
    if result is None or distributed.rank() > 0:
        return None
    if result["skipped"]:
        bars.say(f"{len(result['skipped'])} unusable files were skipped: {out / 'skipped.txt'}")
    return result


def _report_data(recipe: Recipe, data: Data, bars: Bars) -> None:
    """Show the number of images per stream, and notes about the data."""
    shares = {each.images: f", {float(each.share):.1%} of the draws" for each in recipe.sources if each.share < 1}
    for stream in (*(source.images for source in recipe.sources), "labelled", "unlabelled", "val"):
        if stream in data.lists:
            bars.say(f"{stream}: {len(data.lists[stream])} images{shares.get(stream, '')}")
    for note in [*data.notes, *_coverage(data), *recipe.unreached()]:
        bars.say(note)
    if distributed.world_size() > 1:
        batches = {"source": recipe.batch_source, "labelled": recipe.batch_labelled, "unlabelled": recipe.batch_unlabelled}
        each = ", ".join(f"{distributed.world_size() * batch} {name}" for name, batch in batches.items() if getattr(data, name))
        rate = f"learning_rate = {recipe.learning_rate}, not scaled"
        bars.say(f"{distributed.world_size()} processes: {each} images per step in total; {rate}")


def _coverage(data: Data) -> list[str]:
    """Return the lines of a table: in percent of the labelled pixels, the share of each class in each labelled stream."""
    rows = [["% of labelled pixels", *(found.name for found in data.coverage)]]
    for name in data.table.names:
        shares = [found.shares[name] for found in data.coverage]
        rows.append([name, *(f"{100 * share:.1f}" if share else "none" for share in shares)])
    if any(found.dropped for found in data.coverage):
        rows.append(["(no counterpart)", *(f"{100 * sum(found.dropped.values()):.1f}" for found in data.coverage)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    counted = ", ".join(f"{found.read} of {found.labels} labels of {found.name}" for found in data.coverage)
    lines = [[name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in rows]
    return [*map("  ".join, lines), f"(counted: {counted})"]


def _begin_folder(out: Path, recipe: Recipe, data: Data, device: str, resumed: Resumed | None, bars: Bars) -> None:
    """Create the run folder, or note in it that the run resumes."""
    if resumed is None or not resumed.is_in(out):
        before = folder.begin(out, recipe, data, device)
        if before is not None:
            bars.say(f"{before}: files of an interrupted run without a checkpoint, moved here from {out}")
    else:
        for note in folder.repair(out, recipe, data):
            bars.say(note)
    if resumed is not None:
        if note := resume.take_log(resumed, out, recipe.steps):
            bars.say(note)
        before = resumed.state["recipe"]["steps"]
        folder.note_resumption(out, resumed.step, str(resumed.path), device, before if before < recipe.steps else None)


def _memory(recipe: Recipe, classes: int, device: torch.device) -> str:
    """Return a line on the memory that the run needs, with advice if this is more than is free."""
    with torch.device("meta"):
        network = build_network(recipe, classes, "torchvision", IMAGENET)
    needed, free = gpu_memory.estimate(recipe, network, classes), torch.cuda.mem_get_info(device)[0]
    text = f"{needed}; {free / 2**30:.1f} GiB are free"
    return text if needed.total < free else f"{text}: if memory runs out, try, in this order: {gpu_memory.advice(recipe)}"
