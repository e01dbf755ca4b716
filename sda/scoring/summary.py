"""What tables and reports read of a stored score: its metrics, and the classes that it is about. Does not import PyTorch.

A new metric is computed in `sda.scoring.metrics`, returned by `sda.scoring.evaluate.evaluate`, and listed here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from sda import shelf
from sda.errors import SdaError
from sda.reading import read_object
from sda.sizes import Fit
from sda.system.tables import named


class Metric(NamedTuple):
    """A field of a score, in percent.

    Attributes:
        key: its name in the score. title: on tables. remark: what it measures, in a few words.
        subset: whether it is a mean over some classes, which is missing if a class table lacks these.
    """

    key: str
    title: str
    remark: str
    subset: bool = False


SUMMARY = (
    Metric("miou16", "mIoU, 16 classes", "classes that SYNTHIA shares with Cityscapes", subset=True),
    Metric("miou13", "mIoU, 13 classes", "classes of earlier work on SYNTHIA", subset=True),
    Metric("accuracy", "pixel accuracy", "over all labelled pixels"),
    Metric("boundary_miou", "Boundary IoU", "along class boundaries"),
    Metric("fwiou", "weighted IoU", "classes weighted by frequency"),
    Metric("ece", "ECE", "expected calibration error"),
)


# Stored scores: result.json and evaluations/*.json. A stranger or a crash may have changed them.

Number = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[list[Annotated[int, Field(gt=0, le=2**14)]], Field(min_length=2, max_length=2)]


class _Protocol(shelf.Strict):
    name: str
    input: Size | Literal["native size"]
    labels: Size | Literal["native size"]
    window: Size | Literal["whole image"]
    scales: list[Annotated[float, Field(ge=0.1, le=10)]] = Field(min_length=1)
    flip: bool
    fit: Fit = "stretch"


class _Bin(shelf.Strict):
    confidence: Number
    accuracy: Number
    share: Number


class _Choice(shelf.Strict):
    step: int
    miou: Number
    behind: Number


class _Unscored(shelf.Strict, extra="allow"):
    """The fields of `sda.scoring.evaluate.evaluate` for images without labels, and those of a run that are read again."""

    protocol: _Protocol
    images: int = Field(gt=0)
    skipped: list[str] = Field([])
    seconds: Number = 0
    step: int = 0
    steps: int = 0
    infomax: Number | None = None


class _Stored(_Unscored):
    """The fields for images with labels. Metrics may be missing from the scores of other versions."""

    miou: Number
    miou_all: Number
    iou: dict[str, Number | None] = Field(min_length=1)
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)]
    image_miou: dict[str, Number | None]
    confusion: list[list[Annotated[int, Field(ge=0)]]]
    boundary_iou: dict[str, Number | None]
    reliability: list[_Bin]
    miou16: Number | None = None
    miou13: Number | None = None
    accuracy: Number | None = None
    boundary_miou: Number | None = None
    fwiou: Number | None = None
    ece: Number | None = None
    dataset: str = ""
    split: str = ""
    checkpoint: str = ""
    network: str = ""
    selection: dict[str, _Choice] = Field({})

    @model_validator(mode="after")
    def _of_one_table(self) -> "_Stored":
        if [len(row) for row in self.confusion] != [len(self.iou)] * len(self.iou):
            raise ValueError(f"confusion: expected {len(self.iou)} rows and columns, one per class")
        if self.boundary_iou.keys() != self.iou.keys():
            raise ValueError("boundary_iou: expected the classes of iou")
        if not any(map(any, self.confusion)):
            raise ValueError("confusion: counts no pixel")
        return self


def read_result(file: Path) -> dict:
    """Return a stored result: the fields of `sda.scoring.evaluate.evaluate`, with or without those that need labels, and others.

    Raises:
        FileNotFoundError: no such file.
        SdaError: a damaged file, or one that is not a result.
    """
    values = read_object(file)
    shelf.check(_Stored if is_scored(values) else _Unscored, values, f"{file}: not a score of sda")
    return values


def read_score(file: Path) -> dict:
    """Return a stored result that has a score. Raises as `read_result`, and SdaError if there were no labels to score on."""
    values = read_result(file)
    if not is_scored(values):
        raise SdaError(
            f"{file}: the run was trained without labels to score on, so it has no mIoU: look at its predictions with sda "
            "predict; or label some images, then score it with: sda eval RUN --split train"
        )
    return values


def is_scored(result: Mapping[str, object]) -> bool:
    """Return whether there were labels to score on."""
    return "miou" in result or "confusion" in result


# The classes that a score is about


def missing_classes(score: dict) -> list[str]:
    """Return the classes without a labelled pixel in the scored images, whose IoU therefore says nothing.

    The counts tell this of scores of every version. Summaries without counts, such as the demo's, are of sets with all classes.
    """
    return [name for name, row in zip(score["iou"], score.get("confusion", []), strict=False) if not any(row)]


def classes_scored(score: dict) -> str:
    """Return how many of the classes the labels have, such as "1 of 7 classes"; "" if they have all."""
    missing, count = len(missing_classes(score)), len(score["iou"])
    return f"{count - missing} of {count} classes" if missing else ""


def headline(score: dict) -> str:
    """Return the mIoU of a score, its protocol, and how many classes it is about if not all; infomax if it has no mIoU."""
    if not is_scored(score):
        return f"infomax {score['infomax']:.3f}, without labels ({score['protocol']['name']})"
    scored = classes_scored(score)
    return f"mIoU {score['miou']:.2f}{f' over {scored}' if scored else ''} ({score['protocol']['name']})"


def warning(score: dict, title: str) -> str:
    """Return a sentence about the classes that the labels of a score lack; "" if they have all.

    Args:
        title: what was scored, to begin the sentence with.
    """
    missing = missing_classes(score)
    if not missing:
        return ""
    return (
        f"warning: {title}: the labels have {classes_scored(score)}, and no pixel of {named(missing)}. Pixels that are predicted "
        "as these count as errors, and the mIoU is not one over all classes"
    )
