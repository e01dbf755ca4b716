"""The only training loop, for every method and every setting."""

import contextlib
import json
import os
import signal
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sda.data.batch import STREAMS, Batch, Labelled
from sda.data.streams import next_batch
from sda.errors import SdaError, naming
from sda.methods.base import LOG_EVERY, Method
from sda.reading import read_log
from sda.runs import checkpoint
from sda.scoring.criteria import CRITERIA, is_better, selection
from sda.scoring.evaluate import evaluate
from sda.scoring.summary import headline, is_scored
from sda.system import distributed
from sda.system.atomic import write_text, written_whole
from sda.system.console import Console
from sda.system.signals import Interrupted, Signals
from sda.training import resume
from sda.training.boards import Board, open_board, pictures
from sda.training.guard import Guard
from sda.training.optimizer import rate_factor, set_rate
from sda.training.state import Training

MOST_SKIPPED = 100  # maximum number of skipped steps in a run
KEPT_BATCHES = 3  # maximum number of saved batches whose loss was not finite


def train(
    training: Training, out: Path, console: Console = Console(), name: str = "training", stop_at: int | None = None
) -> dict | None:
    """Train to the end and write metrics and checkpoints into `out`.

    The randomness of a step depends only on (seed, step), and that of the streams only on (seed, stream, position). On the same
    machine, a resumed run is therefore bit-identical to one that was never interrupted.

    Args:
        name: name of the run on the console and on boards.
        stop_at: stop after this many steps, as if interrupted.

    Returns:
        The final score (see `evaluate`) with `seed`, `steps`, `seconds` (of training, without evaluation), `skipped_steps`,
        `best`, `missing_classes_of` (source and target → classes without labels) and `selection`; None if it stopped at
        `stop_at`.

    Raises:
        Interrupted: a signal stopped the training; the checkpoint has been written.
        SdaError: an unusable file, a loss that is not finite, or a checkpoint that cannot be written.
    """
    recipe, is_main = training.recipe, distributed.rank() == 0
    if training.weights_report and is_main:
        write_text(out / "weights.txt", training.weights_report)
    losses_of = _across_processes(training.method)
    guard = Guard(recipe, training.data.table.names)
    unchecked: list[Taken] = []  # steps whose losses have not been checked yet
    score, notes = None, {"loss": "", "bank": "", "score": ""}
    log_file = out / "metrics.jsonl" if is_main else Path(os.devnull)
    board_kind = recipe.board if is_main else "none"
    with (
        log_file.open("a", encoding="utf-8") as log,
        contextlib.closing(open_board(board_kind, out, name, recipe.model_dump(), training.step)) as board,
        Signals() as signals,
    ):
        try:
            if not training.evaluated or training.step == recipe.steps:  # interrupted between a step and its evaluation
                score = _score(training, out, log, board, console, name, signals)
                _save(training, out)
            while training.step < recipe.steps:
                began = time.perf_counter()
                with _waiting(signals):
                    batch = _next_batch(training)
                taken = _take_step(training, losses_of, batch)
                unchecked.append(taken)
                training.step += 1
                last = training.step == recipe.steps
                due = last or bool(recipe.eval_every and training.step % recipe.eval_every == 0)
                training.evaluated = not due
                stop = _asked_to_stop(training, signals) or training.step == stop_at
                keep = due or stop or (recipe.checkpoint_every and training.step % recipe.checkpoint_every == 0)
                logged = taken.step % LOG_EVERY == 0 or last
                if logged or keep:  # not in every step, because reading a number waits for the device
                    _check_finite(unchecked, out)
                    unchecked = []
                if taken.skipped:
                    console.say(f"{name}, step {taken.step}: skipped: {taken.nonfinite()} is not finite{_keep_batch(taken, out)}")
                    _write(log, {"step": taken.step, "skipped": taken.nonfinite()})
                elif logged:
                    numbers = _numbers(taken, training.method)
                    _write(log, {"step": taken.step, **numbers})
                    board.numbers(taken.step, {f"train/{key}": value for key, value in numbers.items()})
                    notes["loss"] = f"loss {numbers['loss']:.3f}"
                    notes["bank"] = f"bank {numbers['bank_fill']:.0%}" if numbers.get("bank_fill") else ""
                    for warning in guard.look(taken.step, numbers, training.method):
                        console.say(f"{name}, {warning}")
                console.count(name, training.step, recipe.steps, " ".join(filter(None, notes.values())))
                training.seconds += time.perf_counter() - began
                if due and not stop:
                    score = _score(training, out, log, board, console, name, signals)
                    notes["score"] = f"mIoU {score['miou']:.1f}" if is_scored(score) else ""
                if keep:
                    _save(training, out)
                if stop:
                    break
        except Interrupted as stopped:  # while it waited for images or scored the network
            signals.caught = stopped.number
            _check_finite(unchecked, out)
            _save(training, out)
    if not training.evaluated or training.step < recipe.steps:
        if signals.caught:
            what = f"{signal.Signals(signals.caught).name} at step {training.step} of {recipe.steps}"
            raise Interrupted(signals.caught, f"stopped by {what}; checkpoint: {out / 'last.pt'}")
        return None
    assert score is not None
    if is_main:
        about = {key: value for key, value in _student(training).items() if key != "student"}
        with written_whole(out / "student.safetensors") as file:
            file.write(checkpoint.to_safetensors(training.method.student.state_dict(), about))
    faults = [fault for stream in training.streams.values() for fault in stream.faults]
    return {
        **score,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "seconds": round(training.seconds, 1),
        "skipped_steps": training.skipped,
        "best": training.best,
        "missing_classes_of": training.data.missing,
        "selection": selection(read_log(out / "metrics.jsonl")),
        "skipped": list(dict.fromkeys(faults + score["skipped"])),
    }


# One step


@dataclass(frozen=True)
class Taken:
    """A step that was taken, with its losses still on the device."""

    step: int
    batch: Batch
    losses: dict[str, Tensor]
    rate: float
    gradient: Tensor | None = None
    skipped: bool = False

    def nonfinite(self) -> str:
        """Return the names of the losses that are NaN or infinite."""
        return " and ".join(name for name, loss in self.losses.items() if not torch.isfinite(loss).item())


def _next_batch(training: Training) -> Batch:
    """Draw the images of the next step."""
    return next_batch(training.streams, training.step, training.recipe, training.device)


def _take_step(training: Training, losses_of: torch.nn.Module, batch: Batch) -> Taken:
    """Compute the losses of a batch, and update the student and its teacher."""
    recipe, method, step = training.recipe, training.method, training.step
    torch.manual_seed(step_seed(recipe.seed, step, distributed.rank()))
    factor = rate_factor(step, recipe)
    set_rate(training.optimizer, factor)
    training.optimizer.zero_grad(set_to_none=True)
    losses: dict[str, Tensor] = {}
    parts = batch.parts(recipe.accumulate)
    for part in parts:
        waits = part is not parts[-1]  # processes exchange gradients once per step, with the last part
        with losses_of.no_sync() if isinstance(losses_of, DistributedDataParallel) and waits else contextlib.nullcontext():
            found = losses_of(part, step)
            training.scaler.scale(sum(found.values()) / recipe.accumulate).backward()
        for name, loss in found.items():
            losses[name] = losses.get(name, 0.0) + loss.detach() / recipe.accumulate
    taken = Taken(step, batch, losses, recipe.learning_rate * factor)
    if recipe.nonfinite == "skip" and taken.nonfinite():
        training.skipped += 1
        if training.skipped > MOST_SKIPPED:
            raise SdaError(f"step {step}: the loss was not finite in more than {MOST_SKIPPED} steps; lower learning_rate")
        return replace(taken, skipped=True)
    training.scaler.unscale_(training.optimizer)
    if step % LOG_EVERY == 0 or step + 1 == recipe.steps:
        taken = replace(taken, gradient=torch.nn.utils.get_total_norm(_gradients(method)))
    if recipe.clip_gradient:
        torch.nn.utils.clip_grad_norm_(method.parameters(), recipe.clip_gradient)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    if distributed.world_size() > 1 and not recipe.sync_norm:
        average_statistics(method.student)
    method.follow(step)
    return taken


def _gradients(method: Method) -> list[Tensor]:
    return [parameter.grad for parameter in method.parameters() if parameter.grad is not None]


class _Losses(torch.nn.Module):
    """A method's step as a forward pass, which DistributedDataParallel can wrap."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.method.step(batch, step)


def _across_processes(method: Method) -> torch.nn.Module:
    """Return a module that computes a method's losses and, with several processes, exchanges gradients."""
    losses = _Losses(method)
    if distributed.world_size() == 1:
        return losses
    with warnings.catch_warnings():  # PyTorch 2.13 renamed broadcast_buffers; 2.11 only has the old name
        warnings.simplefilter("ignore", FutureWarning)
        # no broadcast: all processes compute equal buffers from equal inputs
        return DistributedDataParallel(losses, find_unused_parameters=True, broadcast_buffers=False)


def average_statistics(network: torch.nn.Module) -> None:
    """Average the batch norms' running statistics over all processes."""
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(distributed.all_reduce_sum(buffer) / distributed.world_size())


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the random seed of a step, which depends only on (seed, step, process)."""
    return (seed * 1_000_003 + step + rank * 7_368_787_000_003) % 2**63


def _waiting(signals: Signals) -> contextlib.AbstractContextManager[None]:
    """Let a signal interrupt the context. Several processes stop together instead, after a step."""
    return signals.waiting() if distributed.world_size() == 1 else contextlib.nullcontext()


def _asked_to_stop(training: Training, signals: Signals) -> int:
    """Return the signal that any process received, or 0, so that all processes stop at the same step."""
    if distributed.world_size() > 1 and training.step % LOG_EVERY:
        return 0
    signals.caught = distributed.all_reduce_max(signals.caught or 0)
    return signals.caught


# What is logged


def _numbers(taken: Taken, method: Method) -> dict[str, float]:
    """Return the losses of a step, their sum, the method's diagnostics, the gradient norm and the learning rate."""
    numbers = {name: loss.item() for name, loss in taken.losses.items()}
    numbers |= {"loss": sum(numbers.values()), **method.diagnostics()}
    assert taken.gradient is not None
    return numbers | {"gradient": taken.gradient.item(), "rate": taken.rate}


def _write(log: TextIO, record: dict) -> None:
    with naming(log.name):
        log.write(json.dumps(record) + "\n")
        log.flush()


# Losses that are not finite


def _check_finite(steps: list[Taken], out: Path) -> None:
    """Raise SdaError if a loss of a step that was not skipped is NaN or infinite, and save the batch of the first such step."""
    for taken in steps:
        if not taken.skipped and (names := taken.nonfinite()):
            try:
                before = resume.find("auto", out)
                how = f"; to resume: --resume {before.path}, which is intact (step {before.step})" if before else ""
            except SdaError as error:
                how = f"; {error}"
            raise SdaError(
                f"step {taken.step}: the loss {names} is not finite{_keep_batch(taken, out)}; lower learning_rate, or skip such "
                f"steps with --nonfinite skip{how}"
            )


def _keep_batch(taken: Taken, out: Path) -> str:
    """Save the images and labels of a step to a file, up to KEPT_BATCHES times; return a clause for the message."""
    path = out / f"nonfinite-step{taken.step}.pt"
    if distributed.rank() > 0:
        path = path.with_stem(f"{path.stem}-process{distributed.rank()}")
    if len(list(out.glob("nonfinite-step*.pt"))) >= KEPT_BATCHES * distributed.world_size():
        return ""
    parts = {name: getattr(taken.batch, name) for name in STREAMS}
    tensors = {
        name: {"images": part.images, "labels": part.labels} if isinstance(part, Labelled) else {"images": part}
        for name, part in parts.items()
        if part is not None
    }
    checkpoint.save(path, {"step": taken.step, "losses": {k: v.item() for k, v in taken.losses.items()}, **tensors})
    return f"; its batch is saved in {path}"


# Evaluation and checkpoints


def _score(training: Training, out: Path, log: TextIO, board: Board, console: Console, name: str, signals: Signals) -> dict:
    """Evaluate the student on the validation set, log its score, and save it as best.pt if it is the best so far."""
    recipe, data, method = training.recipe, training.data, training.method
    assert data.val is not None
    names = data.table.names
    with _waiting(signals):
        score = evaluate(
            method.student,
            data.val,
            names,
            training.device,
            recipe.scoring,
            # the teacher is only needed for the criterion `agreement`, and one evaluation leaves nothing to choose
            teacher=method.teacher.model if method.teacher is not None and recipe.eval_every else None,
            workers=0 if recipe.in_memory else recipe.workers,
            skip=recipe.bad_files == "skip",
            progress=lambda done, total: console.count(f"{name}, validation", done, total),
        )
        if data.held_out is not None:
            score["held_out"] = evaluate(method.student, data.held_out, names, training.device, recipe.scoring)["miou"]
    console.say(f"{name}, step {training.step}: {headline(score)}")
    board.scored(training.step, score)
    if board.shows_pictures:
        for title, picture in pictures(method, data, training.device).items():
            board.picture(training.step, title, picture)
    values = {key: score[key] for key in ("miou", "miou_all", *CRITERIA, "iou") if key in score}
    _write(log, {"step": training.step, "val": values})
    by = recipe.best_by if recipe.best_by in score else "infomax"  # miou of images without labels
    if training.best is None or is_better(by, score[by], training.best["value"]):
        training.best = {"by": by, "step": training.step, "value": score[by], "miou": score.get("miou")}
        _write_checkpoint(out / "best.pt", {**_student(training), "best": training.best})
    training.evaluated = True
    return score


def _save(training: Training, out: Path) -> None:
    """Write last.pt, with everything that resuming needs."""
    running = {
        "method": training.method.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "best": training.best,
        "seconds": training.seconds,
        "evaluated": training.evaluated,
        "skipped": training.skipped,
        "inputs": training.inputs,
        "machine": training.machine,
        "faults": {name: list(stream.faults) for name, stream in training.streams.items()},
    }
    _write_checkpoint(out / "last.pt", {**_student(training), **running}, keep=out / "previous.pt")


def _write_checkpoint(path: Path, state: dict, keep: Path | None = None) -> None:
    """Write a checkpoint. All processes have the same state, so only process 0 writes it."""
    if distributed.rank() == 0:
        checkpoint.save(path, state, keep)


def _student(training: Training) -> dict:
    """Return the part of a checkpoint that scoring and prediction need."""
    data, student = training.data, training.method.student
    return {
        "step": training.step,
        "recipe": training.recipe.model_dump(),
        "table": data.table_name,
        "classes": data.table.colors,
        "splits": {stream: [item.key for item in items] for stream, items in data.lists.items()},
        "weights_format": training.weights_format,
        "preprocessing": student.preprocessing.to_dict(),
        "student": student.state_dict(),
    }
