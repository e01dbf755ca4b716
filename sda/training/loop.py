"""The only training loop, for every method and every setting."""

import contextlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sda.data.assemble import Data
from sda.data.streams import Batch, Labelled, Stream, open_streams, parts_of, takes_part, to_device
from sda.errors import SdaError
from sda.methods.build import METHODS
from sda.methods.parts import bank_file
from sda.methods.parts.teacher import Teacher
from sda.models.build import build_network
from sda.models.network import recompute_activations, synchronise_norms
from sda.models.preprocessing import PREPROCESSING
from sda.models.weights import load_weights, read_weights
from sda.recipe import Recipe
from sda.runs import checkpoint
from sda.scoring.criteria import CRITERIA, is_better, selection
from sda.scoring.evaluate import evaluate
from sda.system import distributed
from sda.system.atomic import written_whole
from sda.system.signals import Interrupted, Signals
from sda.training.guard import Guard
from sda.training.optimizer import make_optimizer, set_rate

LOG_EVERY = 10  # steps between readings of the losses: each waits for the device
MOST_SKIPPED = 100  # steps without a finite loss that a run survives
KEPT_BATCHES = 3  # of those that gave no finite loss


@dataclass(frozen=True)
class Report:
    """What the loop tells whoever watches.

    Attributes:
        step: a step was taken; on logged steps with all its numbers. evaluation: how many images are scored, of how many.
        scored: the score after so many steps. look: then, a moment to look at the training, and to change nothing. say: something
            in words.
    """

    step: Callable[[int, dict[str, float] | None], None] = lambda step, values: None
    evaluation: Callable[[int, int], None] = lambda done, total: None
    scored: Callable[[int, dict], None] = lambda step, score: None
    look: Callable[["Training"], None] = lambda training: None
    say: Callable[[str], None] = lambda text: None


class Training:
    """A recipe being trained on its data, into the folder `out`: metrics, checkpoints and the final score.

    Every step's randomness is a function of (seed, step), and the streams' of (seed, stream, position). So a training that goes
    on from a checkpoint does, on the same machine, bit for bit what it would have done.

    Args:
        resumed: the state in a `last.pt` of the same training (see `sda.training.resume`).

    Raises:
        SdaError: weights that cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        out: Path,
        device: torch.device,
        report: Report = Report(),
        resumed: dict | None = None,
    ):
        self.recipe, self.data, self.out, self.device, self.report = recipe, data, out, device, report
        torch.manual_seed(recipe.seed)
        names = data.table.names
        if resumed is None:
            pretrained = read_weights(recipe.backbone, recipe.weights, recipe.weights_format)
            self.weights_format = pretrained.format
        else:
            self.weights_format = resumed["weights_format"]
        network = build_network(recipe, len(names), self.weights_format)
        if resumed is None:
            details = out / "weights.txt" if distributed.rank() == 0 else None
            load_weights(network.backbone, recipe.backbone, pretrained, details)
        self.normalise = PREPROCESSING[self.weights_format]
        if recipe.freeze_norm != "none":
            network.freeze_norms(statistics=recipe.freeze_norm == "all")
        maker = METHODS[recipe.method]
        settings = maker.Settings(**{field.name: getattr(recipe, field.name) for field in fields(maker.Settings)})
        labelled_images = sum(len(part) for part in (data.source, data.labelled) if part is not None)
        self.method = maker(network, len(names), self.normalise, labelled_images, settings).to(device)
        if recipe.class_statistics and resumed is None:
            self.method.balance.start(torch.from_numpy(sum(pixels.sum(axis=0) for pixels in data.pixels.values())).float())
        if recipe.bank and resumed is None:
            bank_file.fill(self.method.bank, Path(recipe.bank), names)
        if distributed.size() > 1 and recipe.sync_norm:
            synchronise_norms(self.method.student)
        if recipe.recompute:
            recompute_activations(self.method.student)
        if recipe.compile:
            for network in (self.method.student, *(part.model for part in self.method.children() if isinstance(part, Teacher))):
                network.compile()
        self.optimizer = make_optimizer(self.method, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.step, self.best, self.seconds, self.evaluated, self.skipped = 0, None, 0.0, True, 0
        faults = {}
        if resumed is not None:
            try:
                self.method.load_state_dict(resumed["method"])
            except RuntimeError as error:
                lines = str(error).splitlines()
                raise SdaError(
                    f"{out}: what the checkpoint holds is not what method {recipe.method} of this version needs "
                    f"({' '.join(lines[1:2]).strip()}): start anew in another --out"
                ) from None
            self.optimizer.load_state_dict(resumed["optimizer"])
            self.scaler.load_state_dict(resumed["scaler"])
            self.step, self.best, self.seconds, self.evaluated, self.skipped, faults = (
                resumed[key] for key in ("step", "best", "seconds", "evaluated", "skipped", "faults")
            )
        self.streams = open_streams(recipe, data, self.step)
        for name, found in faults.items():
            self.streams[name].faults.update(dict.fromkeys(found))
        self._losses = _Losses(self.method)
        if distributed.size() > 1:
            with warnings.catch_warnings():  # PyTorch 2.13 renames broadcast_buffers; 2.11 does not know the new name
                warnings.simplefilter("ignore", FutureWarning)
                # buffers are made equal by what they are made of
                self._losses = DistributedDataParallel(self._losses, find_unused_parameters=True, broadcast_buffers=False)
        self._began = time.perf_counter()

    def run(self, stop_at: int | None = None) -> dict | None:
        """Train to the end, or to the step `stop_at`, as if it were interrupted there.

        Returns:
            The final score (see `evaluate`) with `seed`, `steps`, `seconds` (of training, without evaluation) and `best`; None
            when `stop_at` ended it.

        Raises:
            Interrupted: SIGTERM or SIGINT came, and the checkpoint is written.
            SdaError: an unusable file, a loss that is no longer finite, or a checkpoint that cannot be written.
        """
        recipe, score, unchecked = self.recipe, None, []
        guard = Guard(recipe, self.data.table.names)
        self._began = time.perf_counter()
        log_file = self.out / "metrics.jsonl" if distributed.rank() == 0 else Path(os.devnull)
        with log_file.open("a", encoding="utf-8") as log, Signals() as signals:
            if not self.evaluated or self.step == recipe.steps:  # it was interrupted between a step and its score
                score = self._score(log)
                self._save()
            while self.step < recipe.steps:
                taken = self._advance()
                unchecked.append(taken)
                self.step += 1
                last = self.step == recipe.steps
                due = last or bool(recipe.eval_every and self.step % recipe.eval_every == 0)
                stop = self._asked_to_stop(signals) or self.step == stop_at
                keep = due or stop or (recipe.checkpoint_every and self.step % recipe.checkpoint_every == 0)
                logged, numbers = (self.step - 1) % LOG_EVERY == 0 or last, None
                if logged or keep:  # only now, because to look at a number is to wait for the device
                    self._refuse_nonfinite(unchecked)
                    unchecked = []
                if taken.skipped:
                    self.report.say(f"step {taken.step}: {taken.nonfinite()} is not finite: skipped{self._keep_batch(taken)}")
                    _write(log, {"step": taken.step, "skipped": taken.nonfinite()})
                elif logged:
                    numbers = {name: loss.item() for name, loss in taken.losses.items()}
                    numbers |= {"loss": sum(numbers.values()), **self.method.diagnostics()}
                    numbers |= {"gradient": taken.gradient.item(), "rate": taken.rate}
                    _write(log, {"step": taken.step, **numbers})
                    for warning in guard.look(taken.step, numbers, self.method):
                        self.report.say(warning)
                self.report.step(self.step - 1, numbers)
                self.evaluated = not due
                if due and not stop:
                    score = self._score(log)
                if keep:
                    self._save()
                if stop:
                    break
        if not self.evaluated or self.step < recipe.steps:
            if signals.caught:
                name = signal.Signals(signals.caught).name
                raise Interrupted(
                    signals.caught, f"{name} at step {self.step} of {recipe.steps}: {self.out / 'last.pt'} is written"
                )
            return None
        if distributed.rank() == 0:
            about = {key: value for key, value in self._student().items() if key != "student"}
            with written_whole(self.out / "student.safetensors") as file:
                file.write(checkpoint.alone(self.method.student.state_dict(), about))
        faults = [fault for stream in self.streams.values() if stream for fault in stream.faults]
        return {
            **score,
            "seed": recipe.seed,
            "steps": recipe.steps,
            "seconds": round(self.seconds, 1),
            "skipped_steps": self.skipped,
            "best": self.best,
            "selection": selection(self.out / "metrics.jsonl"),
            "skipped": list(dict.fromkeys(faults + score["skipped"])),
        }

    def _asked_to_stop(self, signals: Signals) -> int:
        """The signal that came to any process, or 0: all stop at the same step."""
        if distributed.size() > 1 and self.step % LOG_EVERY:
            return 0
        signals.caught = distributed.largest(signals.caught or 0)
        return signals.caught

    def _advance(self) -> "_Taken":
        """One step."""
        recipe, step = self.recipe, self.step
        torch.manual_seed(step_seed(recipe.seed, step, distributed.rank()))
        taking = {name: stream for name, stream in self.streams.items() if stream and takes_part(recipe, name, step)}
        batch = Batch(**{name: to_device(next(stream), self.device) for name, stream in taking.items()})
        factor = (1 - step / recipe.steps) ** recipe.poly_power
        set_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        losses = {}
        parts = parts_of(batch, recipe.accumulate)
        for part in parts:
            apart = distributed.size() > 1 and part is not parts[-1]  # gradients are exchanged once
            with self._losses.no_sync() if apart else contextlib.nullcontext():
                found = self._losses(part, step)
                self.scaler.scale(sum(found.values()) / recipe.accumulate).backward()
            for name, loss in found.items():
                losses[name] = losses.get(name, 0.0) + loss.detach() / recipe.accumulate
        taken = _Taken(step, batch, losses, recipe.learning_rate * factor)
        if recipe.nonfinite == "skip" and taken.nonfinite():
            self.skipped += 1
            if self.skipped > MOST_SKIPPED:
                raise SdaError(f"step {step}: more than {MOST_SKIPPED} steps had a loss that is not finite; lower learning_rate")
            return replace(taken, skipped=True)
        self.scaler.unscale_(self.optimizer)
        if step % LOG_EVERY == 0 or step + 1 == recipe.steps:
            gradients = [parameter.grad for parameter in self.method.parameters() if parameter.grad is not None]
            taken = replace(taken, gradient=torch.nn.utils.get_total_norm(gradients))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if distributed.size() > 1 and not recipe.sync_norm:
            share_statistics(self.method.student)
        self.method.follow(step)
        return taken

    def _refuse_nonfinite(self, steps: list["_Taken"]) -> None:
        """SdaError when a loss of a step that was not skipped is NaN or infinite; the batch of the first is kept."""
        for taken in steps:
            if not taken.skipped and (names := taken.nonfinite()):
                last = self.out / "last.pt"
                unharmed = f"; {last} is unharmed: go on from it with --resume auto" if last.exists() else ""
                raise SdaError(
                    f"step {taken.step}: the loss {names} is no longer finite{self._keep_batch(taken)}; lower learning_rate, or "
                    f"leave such batches out with --nonfinite skip{unharmed}"
                )

    def _keep_batch(self, taken: "_Taken") -> str:
        """Write the images and labels of a step to a file, for inspection, and say so; of the first few only."""
        path = self.out / f"nonfinite-step{taken.step}.pt"
        if distributed.rank() > 0:
            path = path.with_stem(f"{path.stem}-process{distributed.rank()}")
        if len(list(self.out.glob("nonfinite-step*.pt"))) >= KEPT_BATCHES * distributed.size():
            return ""
        parts = {name: getattr(taken.batch, name) for name in Stream.NAMES}
        tensors = {
            name: {"images": part.images, "labels": part.labels} if isinstance(part, Labelled) else {"images": part}
            for name, part in parts.items()
            if part is not None
        }
        checkpoint.save(path, {"step": taken.step, "losses": {k: v.item() for k, v in taken.losses.items()}, **tensors})
        return f"; its batch is in {path}"

    def _score(self, log: TextIO) -> dict:
        """Evaluate the student on the validation set; keep it where it is the best so far."""
        self._stop_clock()
        recipe = self.recipe
        score = evaluate(
            self.method.student,
            self.data.val,
            self.normalise,
            self.data.table.names,
            self.device,
            recipe.scoring,
            # with one evaluation there is nothing to choose
            teacher=self.method.teacher.model if recipe.unlabelled and recipe.eval_every else None,
            workers=0 if recipe.in_memory else recipe.workers,
            skip=recipe.bad_files == "skip",
            progress=self.report.evaluation,
        )
        if self.data.held_out is not None:
            network, names = self.method.student, self.data.table.names
            few = evaluate(network, self.data.held_out, self.normalise, names, self.device, recipe.scoring)
            score["held_out"] = few["miou"]
        self.report.scored(self.step, score)
        self.report.look(self)
        values = {key: score[key] for key in ("miou", "miou_all", *CRITERIA, "iou") if key in score}
        _write(log, {"step": self.step, "val": values})
        if self.best is None or is_better(recipe.best_by, score[recipe.best_by], self.best["value"]):
            self.best = {"by": recipe.best_by, "step": self.step, "value": score[recipe.best_by], "miou": score["miou"]}
            self._write_checkpoint("best.pt", {**self._student(), "best": self.best})
        self.evaluated, self._began = True, time.perf_counter()
        return score

    def _save(self) -> None:
        """Write last.pt: all that going on takes."""
        self._stop_clock()
        running = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "seconds": self.seconds,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            "faults": {name: list(stream.faults) for name, stream in self.streams.items() if stream},
        }
        self._write_checkpoint("last.pt", {**self._student(), **running}, keep=self.out / "previous.pt")

    def _write_checkpoint(self, name: str, state: dict, keep: Path | None = None) -> None:
        """Of several processes, which have the same state, the first writes."""
        if distributed.rank() == 0:
            checkpoint.save(self.out / name, state, keep)

    def _student(self) -> dict:
        """What scoring and prediction take."""
        return {
            "step": self.step,
            "recipe": self.recipe.model_dump(),
            "table": self.data.table_name,
            "classes": self.data.table.colors,
            "splits": {stream: [item.key for item in items] for stream, items in self.data.lists.items()},
            "weights_format": self.weights_format,
            "preprocessing": self.normalise.to_dict(),
            "student": self.method.student.state_dict(),
        }

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self.seconds, self._began = self.seconds + now - self._began, now


class _Losses(torch.nn.Module):
    """A method's step as a forward pass, which DistributedDataParallel wraps."""

    def __init__(self, method: torch.nn.Module):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.method.step(batch, step)


@dataclass(frozen=True)
class _Taken:
    """A step that was taken: its losses are still on the device."""

    step: int
    batch: Batch
    losses: dict[str, Tensor]
    rate: float
    gradient: Tensor | None = None
    skipped: bool = False

    def nonfinite(self) -> str:
        """The losses that are NaN or infinite, in words."""
        return " and ".join(name for name, loss in self.losses.items() if not torch.isfinite(loss).item())


def share_statistics(network: torch.nn.Module) -> None:
    """Make the batch norms' running statistics the means over all processes."""
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(distributed.total(buffer) / distributed.size())


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """One number for (seed, step, process): the randomness of a step needs no history."""
    return (seed * 1_000_003 + step + rank * 7_368_787_000_003) % 2**63


def _write(log, record: dict) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()
