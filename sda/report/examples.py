"""The images that a network does best and worst on: the truth, what it says, and where it is wrong."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sda.data.dataset import Sample
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.pictures import colorize, overlay, picture_table, resize_image, resize_nearest
from sda.protocol import Protocol
from sda.report.facts import Subject
from sda.runs.trained import Run, load_run
from sda.scoring.inference import predict_logits
from sda.system.progress import Bars

SHOWN = 4  # best, and as many worst
WIDTH = 512  # px of a picture, at most
TITLES = ("image", "truth", "prediction", "overlay", "mistakes")
WRONG, RIGHT, VOID = (235, 60, 45), 0.4, (90, 90, 90)  # mistakes: red; where there are none the image in dark grey


@dataclass(frozen=True)
class Example:
    """An image. pictures: RGB (H, W, 3) uint8 by TITLES, all of one size."""

    key: str
    miou: float
    pictures: list[np.ndarray]

    @property
    def sources(self) -> dict[str, str]:
        """Title → the picture as a data: address."""
        return {
            title: data_address(picture, title in ("image", "overlay"))
            for title, picture in zip(TITLES, self.pictures, strict=True)
        }


def ranked(image_miou: dict[str, float | None]) -> tuple[list[str], list[str]]:
    """The images with the highest mIoU of their own, and those with the lowest, the worst first; none is in both."""
    order = sorted((key for key, value in image_miou.items() if value is not None), key=lambda key: -image_miou[key])
    best = order[: min(SHOWN, (len(order) + 1) // 2)]
    return best, order[: len(best) - 1 : -1][:SHOWN]


def draw(subject: Subject, root: str, device: torch.device, bars: Bars) -> tuple[list[Example], list[Example]]:
    """The best and the worst images of a score with `image_miou`.

    Args:
        root: of the dataset; "" for where the training had it.

    Raises:
        SdaError: the checkpoint, the dataset or one of its files cannot be read.
    """
    values = subject.values
    run = load_run(subject.folder, values.get("checkpoint", "last"), device, values.get("network", "student"))
    dataset, split = subject.score.subject
    protocol = Protocol.from_dict(values["protocol"])
    data = run.labelled_images(protocol, dataset, root, split, bars.count).val
    places = {item.key: index for index, item in enumerate(data.items)}
    groups = ranked(values["image_miou"])
    if missing := [key for group in groups for key in group if key not in places]:
        raise SdaError(f"the data set has changed since the score was made: there is no {missing[0]} any more")
    best, worst = (
        [Example(key, values["image_miou"][key], _pictures(run, data[places[key]], protocol)) for key in group]
        for group in groups
    )
    return best, worst


def _pictures(run: Run, sample: Sample, protocol: Protocol) -> list[np.ndarray]:
    """By TITLES, at the label's shape, no wider than WIDTH."""
    label = sample.label.numpy()
    logits = predict_logits(run.network, run.normalise, sample.image[None].to(run.device), label.shape, protocol)
    predicted = logits[0].argmax(dim=0).byte().cpu().numpy()
    colors = list(run.table.colors.values())
    size = (round(label.shape[0] * min(1, WIDTH / label.shape[1])), min(WIDTH, label.shape[1]))
    image = np.asarray(resize_image(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), size))
    label, predicted = resize_nearest(label, size), resize_nearest(predicted, size)
    said = colorize(predicted, colors)
    return [image, colorize(label, colors), said, overlay(image, said), mistakes(image, label, predicted)]


def mistakes(image: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Where a prediction (H, W) is wrong: red; where it is right: the image (H, W, 3), dark and grey; ignored: plain grey."""
    grey = np.repeat(RIGHT * image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    grey[(predicted != label) & (label != IGNORE)] = WRONG
    grey[label == IGNORE] = VOID
    return grey


def sheet(examples: list[Example], colors: dict[str, list[int]]) -> bytes:
    """All of them in one table, as a PNG file."""
    size = examples[0].pictures[0].shape[:2]
    rows = [[resize_nearest(picture, size) for picture in each.pictures] for each in examples]
    return _file(picture_table(rows, list(TITLES), colors), "PNG")


def data_address(picture: np.ndarray, photo: bool) -> str:
    """An RGB picture as a data: address; a photo as JPEG."""
    form = "JPEG" if photo else "PNG"
    return f"data:image/{form.lower()};base64,{base64.b64encode(_file(Image.fromarray(picture), form)).decode()}"


def _file(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **({"quality": 88} if form == "JPEG" else {"optimize": True}))
    return out.getvalue()
