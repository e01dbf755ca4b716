"""The only training loop, for every method and every setting."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from sda import checkpoint
from sda.data.assemble import Data
from sda.data.streams import Batch, Labelled, RareClassSampling, Stream
from sda.errors import SdaError
from sda.evaluate import evaluate
from sda.methods import METHODS
from sda.models import SegmentationNetwork, build, load_weights, read_weights
from sda.models.weights import PREPROCESSING
from sda.recipe import Recipe

LOG_EVERY = 10  # steps between readings of the losses: each waits for the device


@dataclass(frozen=True)
class Report:
    """What the loop tells whoever watches: `step(k, losses or None)` and `evaluation(done, total)`."""

    step: Callable[[int, dict[str, float] | None], None] = lambda step, losses: None
    evaluation: Callable[[int, int], None] = lambda done, total: None
    scored: Callable[[int, dict], None] = lambda step, score: None


def train(recipe: Recipe, data: Data, out: Path, device: torch.device, report: Report = Report()) -> dict:
    """Train `recipe` on `data` and write metrics, checkpoints and the final score to the folder `out`.

    Every step's randomness is a function of (seed, step), and the streams' of (seed, stream, position).

    Returns:
        The final score (see `evaluate`) with `seed`, `steps`, `seconds` (of training, without evaluation) and `best`.

    Raises:
        SdaError: an unusable file, or a loss that is no longer finite.
    """
    torch.manual_seed(recipe.seed)
    names = data.table.names
    pretrained = read_weights(recipe.backbone, recipe.weights, recipe.weights_format)
    network = build_network(recipe, len(names), pretrained.format)
    load_weights(network.backbone, recipe.backbone, pretrained, out / "weights.txt")
    normalise = PREPROCESSING[pretrained.format]
    if recipe.freeze_norm != "none":
        network.freeze_norms(statistics=recipe.freeze_norm == "all")
    maker = METHODS[recipe.method]
    settings = maker.Settings(**{field.name: getattr(recipe, field.name) for field in fields(maker.Settings)})
    labelled_images = sum(len(part) for part in (data.source, data.labelled) if part is not None)
    method = maker(network, len(names), normalise, labelled_images, settings).to(device)
    if recipe.class_statistics:
        method.balance.start(torch.from_numpy(sum(pixels.sum(axis=0) for pixels in data.pixels.values())).float())
    optimizer = make_optimizer(method, recipe)
    streams = open_streams(recipe, data)

    def state() -> dict:
        return {
            "step": step + 1,
            "recipe": recipe.model_dump(),
            "table": data.table_name,
            "classes": data.table.colors,
            "splits": {stream: [item.key for item in items] for stream, items in data.lists.items()},
            "weights_format": pretrained.format,
            "preprocessing": normalise.to_dict(),
            "student": method.student.state_dict(),
        }

    best, seconds, began = None, 0.0, time.perf_counter()
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(recipe.steps):
            torch.manual_seed(step_seed(recipe.seed, step))
            resting = ("labelled", "source")[step % 2] if recipe.alternate else None
            drawn = {name: next(stream) if stream and name != resting else None for name, stream in streams.items()}
            batch = Batch(**{name: part if part is None else _to(part, device) for name, part in drawn.items()})
            factor = (1 - step / recipe.steps) ** recipe.poly_power
            set_rate(optimizer, factor)

            losses = method.step(batch, step)
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            optimizer.step()
            method.follow(step)

            last = step + 1 == recipe.steps
            values = None
            if step % LOG_EVERY == 0 or last:
                values = {name: loss.item() for name, loss in losses.items()}
                check_finite(values, step)
                _write(log, {"step": step, **values, **method.diagnostics(), "rate": recipe.learning_rate * factor})
            report.step(step, values)
            if last or (recipe.eval_every and (step + 1) % recipe.eval_every == 0):
                seconds += time.perf_counter() - began
                score = evaluate(
                    method.student,
                    data.val,
                    normalise,
                    names,
                    device,
                    workers=0 if recipe.in_memory else recipe.workers,
                    skip=recipe.bad_files == "skip",
                    progress=report.evaluation,
                )
                report.scored(step + 1, score)
                _write(log, {"step": step + 1, "val": {key: score[key] for key in ("miou", "miou_all", "infomax", "iou")}})
                if best is None or score[recipe.best_by] > best["value"]:
                    best = {"by": recipe.best_by, "step": step + 1, "value": score[recipe.best_by], "miou": score["miou"]}
                    checkpoint.save(out / "best.pt", {**state(), "best": best})
                checkpoint.save(out / "last.pt", {**state(), "method": method.state_dict(), "optimizer": optimizer.state_dict()})
                began = time.perf_counter()
    faults = [fault for stream in streams.values() if stream for fault in stream.faults]
    return {
        **score,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "seconds": round(seconds, 1),
        "best": best,
        "skipped": list(dict.fromkeys(faults + score["skipped"])),
    }


def open_streams(recipe: Recipe, data: Data) -> dict[str, Stream | None]:
    """The three streams of `Batch`, None where the setting has none."""
    batches = {"source": recipe.batch_source, "labelled": recipe.batch_labelled, "unlabelled": recipe.batch_unlabelled}
    return {
        name: getattr(data, name)
        and Stream(
            name,
            getattr(data, name),
            batch,
            recipe.crop_size,
            recipe.seed,
            workers=0 if recipe.in_memory else recipe.workers,
            skip=recipe.bad_files == "skip",
            sampling=RareClassSampling(data.pixels[name], recipe.rare_class_sampling)
            if recipe.rare_class_sampling and name in data.pixels
            else None,
        )
        for name, batch in batches.items()
    }


def build_network(recipe: Recipe, classes: int, weights_format: str) -> SegmentationNetwork:
    """The recipe's network, with random weights."""
    caffe = weights_format == "caffe"
    return build(
        recipe.network, recipe.backbone, classes, recipe.output_stride, recipe.precision, caffe=caffe, released=recipe.released
    )


def make_optimizer(method: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """A group per stage of the pretrained backbone, at rates that rise by 1/`layer_decay`, and one of everything else, at
    `head_rate_factor` times the rate of the last stage."""
    stages = method.student.backbone.stages()
    known = {id(parameter) for stage in stages for parameter in stage.parameters()}
    rates = [recipe.learning_rate * recipe.layer_decay**depth for depth in reversed(range(len(stages)))]
    parts = [(list(stage.parameters()), rate) for stage, rate in zip(stages, rates, strict=True)]
    parts.append(([p for p in method.parameters() if id(p) not in known], recipe.learning_rate * recipe.head_rate_factor))
    groups = [{"params": [p for p in part if p.requires_grad], "base": rate} for part, rate in parts]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def step_seed(seed: int, step: int) -> int:
    """One number for (seed, step): the randomness of a step needs no history."""
    return (seed * 1_000_003 + step) % 2**63


def check_finite(values: dict[str, float], step: int) -> None:
    """SdaError when a loss is NaN or infinite."""
    wrong = [name for name, value in values.items() if not abs(value) < float("inf")]
    if wrong:
        raise SdaError(f"step {step}: the loss {' and '.join(wrong)} is no longer finite; lower learning_rate")


def _to(part: Labelled | Tensor, device: torch.device) -> Labelled | Tensor:
    if isinstance(part, Labelled):
        return Labelled(part.images.to(device, non_blocking=True), part.labels.to(device, non_blocking=True))
    return part.to(device, non_blocking=True)


def _write(log, record: dict) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()
