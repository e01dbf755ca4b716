"""A training's curves and pictures while it runs, on TensorBoard or Weights & Biases, which are extras."""

import importlib.util
import json
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from sda.errors import SdaError
from sda.scoring.gallery import pseudo_labels, spread, truth_and_predictions
from sda.training.loop import Report, Training

PICTURES = 4  # images in a table


def open_board(kind: str, folder: Path, name: str, recipe: dict, step: int):
    """A board of one run.

    Args:
        kind: tensorboard or wandb. folder: of the run; the board's files go there. recipe: shown with the run.
        step: at which it goes on.

    Raises:
        SdaError: it does not start.
    """
    return {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}[kind](folder, name, recipe, step)


def check_installed(kind: str) -> None:
    """SdaError when the package of a board, which has the board's name, is not installed."""
    if importlib.util.find_spec(kind) is None:
        raise SdaError(f"board = {kind}: the package {kind} is not installed: pip install {kind}")


class TensorBoard:
    """Event files under RUN/tensorboard: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, name: str, recipe: dict, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        self._writer.add_text("recipe", "\n".join(f"    {key} = {json.dumps(value)}" for key, value in recipe.items()), step)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its own environment variables (WANDB_PROJECT, WANDB_MODE=offline, …) say where it goes."""

    def __init__(self, folder: Path, name: str, recipe: dict, step: int):
        import wandb

        remembered = folder / "wandb-run-id.txt"
        if step and remembered.exists():
            run_id = remembered.read_text(encoding="utf-8").strip()
        else:
            run_id = uuid.uuid4().hex[:8]
            remembered.write_text(run_id + "\n", encoding="utf-8")
        try:
            self._run = wandb.init(dir=str(folder), id=run_id, name=name, config=recipe, resume="allow")
        except wandb.errors.Error as error:
            raise SdaError(f"board = wandb does not start: {error}; without a network: WANDB_MODE=offline") from None
        self._wandb = wandb

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


def reporting(board, report: Report) -> Report:
    """A report that also goes to a board: losses, rates, scores, and pictures of validation and unlabelled images."""

    def step(k: int, values: dict[str, float] | None) -> None:
        report.step(k, values)
        if values:
            board.numbers(k, {f"train/{key}": value for key, value in values.items()})

    def scored(k: int, score: dict) -> None:
        report.scored(k, score)
        numbers = {f"val/{key}": score[key] for key in ("miou", "miou_all", "accuracy", "infomax")}
        per_class = {f"IoU/{name}": value for name, value in score["iou"].items() if value is not None}
        board.numbers(k, numbers | per_class)

    def look(training: Training) -> None:
        report.look(training)
        for name, picture in pictures(training).items():
            board.picture(training.step, name, picture)

    return replace(report, step=step, scored=scored, look=look)


def pictures(training: Training) -> dict[str, Image.Image]:
    """Tables of validation images (truth, student), and of unlabelled ones (the teacher's pseudo-labels, their confidence)."""
    method, data, normalise, device = training.method, training.data, training.normalise, training.device
    found = {
        "validation": truth_and_predictions(
            data.val, spread(len(data.val), PICTURES), {"student": (method.student, normalise)}, data.table, device
        )
    }
    if data.unlabelled is not None:
        indices = spread(len(data.unlabelled), PICTURES)
        found["unlabelled"] = pseudo_labels(data.unlabelled, indices, method.teacher.model, normalise, data.table, device)
    return found
