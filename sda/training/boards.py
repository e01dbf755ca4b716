"""Curves and pictures during training, on TensorBoard or Weights & Biases (optional dependencies)."""

import importlib.util
import json
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sda.data.assemble import Data
from sda.errors import SdaError
from sda.methods.base import Method
from sda.reading import read_text
from sda.scoring.gallery import pseudo_labels, spread, truth_and_predictions
from sda.system.atomic import write_text

logger = logging.getLogger(__name__)

PICTURES = 4  # images per table


class Board:
    """A board that shows nothing, for `board = none`; the other boards replace the methods that begin with an underscore.

    A board that fails, for example because its disk is full, is not used again; training goes on.
    """

    shows_pictures = False
    _failed = False

    def __init__(self, folder: Path, name: str, recipe: dict, step: int):
        """See `open_board`."""

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        self._try(self._numbers, step, values)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Add a picture."""
        self._try(self._picture, step, name, picture)

    def close(self) -> None:
        """Write pending data."""
        self._try(self._close)

    def _numbers(self, step: int, values: dict[str, float]) -> None: ...

    def _picture(self, step: int, name: str, picture: Image.Image) -> None: ...

    def _close(self) -> None: ...

    def _try(self, write: Callable[..., None], *values: Any) -> None:
        if not self._failed:
            try:
                write(*values)
            except Exception as error:  # of the board's package, of its thread, or of the disk
                self._failed = True
                logger.warning("the board failed and shows nothing from now on: %s", error)

    def scored(self, step: int, score: dict) -> None:
        """Add a score, as returned by `sda.scoring.evaluate.evaluate`, to the curves."""
        numbers = {f"val/{key}": score[key] for key in ("miou", "miou_all", "accuracy", "infomax") if key in score}
        per_class = {f"IoU/{name}": value for name, value in score.get("iou", {}).items() if value is not None}
        self.numbers(step, numbers | per_class)


def check_installed(kind: str) -> None:
    """Raise SdaError if the package of a board, which has the same name as the board, is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise SdaError(f"board = {kind}: the package {kind} is not installed: pip install {kind}")


class TensorBoard(Board):
    """Event files in RUN/tensorboard, shown by `tensorboard --logdir runs`."""

    shows_pictures = True

    def __init__(self, folder: Path, name: str, recipe: dict, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        self._writer.add_text("recipe", "\n".join(f"    {key} = {json.dumps(value)}" for key, value in recipe.items()), step)

    def _numbers(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def _picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def _close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Board):
    """A Weights & Biases run, configured by its environment variables (WANDB_PROJECT, WANDB_MODE=offline, …)."""

    shows_pictures = True

    def __init__(self, folder: Path, name: str, recipe: dict, step: int):
        import wandb

        remembered = folder / "wandb-run-id.txt"
        if step and remembered.is_file():
            run_id = read_text(remembered).strip()
        else:
            run_id = uuid.uuid4().hex[:8]
            write_text(remembered, run_id + "\n")
        try:
            self._run = wandb.init(dir=str(folder), id=run_id, name=name, config=recipe, resume="allow")
        except wandb.errors.Error as error:
            raise SdaError(
                f"board = wandb: cannot start a run: {error}; without network access, set WANDB_MODE=offline"
            ) from None
        self._wandb = wandb

    def _numbers(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def _picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def _close(self) -> None:
        self._run.finish()


BOARDS = {"none": Board, "tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def open_board(kind: str, folder: Path, name: str, recipe: dict, step: int) -> Board:
    """Open the board of a run.

    Args:
        kind: a key of BOARDS. folder: the run folder, where the board writes its files. name: name of the run.
        recipe: shown with the run. step: step at which training starts or resumes.

    Raises:
        SdaError: the board cannot be opened.
    """
    return BOARDS[kind](folder, name, recipe, step)


def pictures(method: Method, data: Data, device: torch.device) -> dict[str, Image.Image]:
    """Draw validation images with truth and prediction, and unlabelled images with the teacher's pseudo-labels and confidence."""
    assert data.val is not None
    table, chosen = data.table, spread(len(data.val), PICTURES)
    found = {"validation": truth_and_predictions(data.val, chosen, {"student": method.student}, table, device)}
    if data.unlabelled is not None and method.teacher is not None:
        chosen = spread(len(data.unlabelled), PICTURES)
        found["unlabelled"] = pseudo_labels(data.unlabelled, chosen, method.teacher.model, table, device)
    return found
