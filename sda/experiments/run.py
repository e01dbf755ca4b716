"""One run from recipe to result: what the commands share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from sda.data.assemble import Data, assemble
from sda.errors import SdaError
from sda.methods.parts import bank_file
from sda.models.build import build_network
from sda.models.weights import read_weights
from sda.recipe import Recipe
from sda.runs import folder as run_folder
from sda.system import distributed
from sda.system.progress import Bars
from sda.training import boards, resume
from sda.training import gpu_memory as memory
from sda.training.loop import Report, Training
from sda.training.resume import Resumed


def run(
    recipe: Recipe,
    name: str,
    out: Path,
    device: torch.device,
    bars: Bars,
    resumed: Resumed | None = None,
    stop_at: int | None = None,
) -> dict | None:
    """Train a recipe into the folder `out`, or go on there, and return the result (see `sda.training.loop.Training.run`)."""
    if recipe.board != "none":
        boards.check_installed(recipe.board)
    with distributed.leader_first():
        data = assemble(recipe, bars.count)
    for stream in ("source", "labelled", "unlabelled", "val"):
        if stream in data.lists:
            bars.say(f"{stream}: {len(data.lists[stream])} images")
    for note in data.notes:
        bars.say(note)
    if resumed is not None:
        resume.check(resumed, recipe, data)
        bars.say(f"going on from {resumed.path}, step {resumed.step} of {recipe.steps}")
    if distributed.size() > 1:
        batches = {"source": recipe.batch_source, "labelled": recipe.batch_labelled, "unlabelled": recipe.batch_unlabelled}
        each = ", ".join(f"{distributed.size() * batch} {name}" for name, batch in batches.items() if name in data.lists)
        bars.say(
            f"{distributed.size()} processes: {each} images per step in all; learning_rate = {recipe.learning_rate}, not scaled"
        )
    if resumed is None:  # what is missing is missed before there is a folder
        read_weights(recipe.backbone, recipe.weights, recipe.weights_format)
        if recipe.bank:
            bank_file.read(Path(recipe.bank), data.table.names)
    with distributed.leader_first():
        if distributed.rank() == 0:
            _begin_folder(out, recipe, data, str(device), resumed, bars)
    if device.type == "cuda":
        bars.say(_memory(recipe, len(data.table.names), device))
    with bars.saying_logs():
        try:
            with _reporting(recipe, name, out, bars, resumed.step if resumed else 0) as report:
                result = Training(recipe, data, out, device, report, resumed and resumed.state).run(stop_at)
        except torch.OutOfMemoryError:
            raise SdaError(f"the memory of {device} is full; try, in this order: {memory.advice(recipe)}") from None
    if result is None or distributed.rank() > 0:
        return None
    run_folder.finish(out, result)
    if result["skipped"]:
        bars.say(f"{len(result['skipped'])} unusable files were left out: {out / 'skipped.txt'}")
    return result


@contextlib.contextmanager
def _reporting(recipe: Recipe, name: str, out: Path, bars: Bars, step: int) -> Iterator[Report]:
    """What is reported goes to the bars and to the recipe's board."""
    report = bars.report(name, recipe.steps)
    if recipe.board == "none" or distributed.rank() > 0:
        yield report
        return
    board = boards.open_board(recipe.board, out, name, recipe.model_dump(), step)
    try:
        yield boards.reporting(board, report)
    finally:
        board.close()


def _begin_folder(out: Path, recipe: Recipe, data: Data, device: str, resumed: Resumed | None, bars: Bars) -> None:
    if resumed is None or not resumed.lies_in(out):
        before = run_folder.begin(out, recipe, data, device)
        if before is not None:
            bars.say(f"{before}: what an interrupted run left, without a checkpoint, is now there")
    if resumed is not None:
        resume.take_log(resumed, out)
        run_folder.note_resumption(out, resumed.step, str(resumed.path), device)


def _memory(recipe: Recipe, classes: int, device: torch.device) -> str:
    """What the run will need, and, where that is more than there is, what to change."""
    with torch.device("meta"):
        network = build_network(recipe, classes, "torchvision")
    needed, free = memory.estimate(recipe, network, classes), torch.cuda.mem_get_info(device)[0]
    said = f"{needed}; {free / 2**30:.1f} GiB are free"
    return said if needed.total < free else f"{said}: too little? Try, in this order: {memory.advice(recipe)}"
