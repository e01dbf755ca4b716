"""The images with the highest and the lowest mIoU: label, prediction and errors."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sda.data.dataset import Sample
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.pictures import GREY, colorize, overlay, picture_table, resize_image, resize_nearest, size_within
from sda.protocol import Protocol
from sda.report.facts import Subject
from sda.runs import trained
from sda.runs.trained import Run
from sda.scoring.inference import predict_logits
from sda.system.progress import Bars

SHOWN = 4  # maximum number of best images, and of worst images
MAX_WIDTH = 512  # of a picture, in px
TITLES = ("image", "ground truth", "prediction", "overlay", "errors")
ERROR = (235, 60, 45)  # red
DARKEN = 0.4  # factor for the image where the prediction is correct


@dataclass(frozen=True)
class Example:
    """An image of the validation set.

    Attributes:
        key: its name in the dataset. miou: of this image alone, percent. pictures: RGB (H, W, 3) uint8, one for each of TITLES,
            all of one size.
    """

    key: str
    miou: float
    pictures: list[np.ndarray]

    @property
    def sources(self) -> dict[str, str]:
        """Title → the picture as a data URL."""
        return {
            title: data_url(picture, photo=title in ("image", "overlay"))
            for title, picture in zip(TITLES, self.pictures, strict=True)
        }


def ranked(image_miou: dict[str, float | None]) -> tuple[list[str], list[str]]:
    """Return the images with the highest mIoU, the best first, and those with the lowest, the worst first; no image is in both.

    Args:
        image_miou: image → mIoU of this image alone; None (no labelled pixel) is ignored.
    """
    known = {key: value for key, value in image_miou.items() if value is not None}
    order = sorted(known, key=lambda key: -known[key])
    best = order[: min(SHOWN, (len(order) + 1) // 2)]
    return best, order[: len(best) - 1 : -1][:SHOWN]


def draw(subject: Subject, root: str, device: torch.device, bars: Bars) -> tuple[list[Example], list[Example]]:
    """Predict the best and the worst images of a score, and draw them.

    Args:
        root: folder of the scored dataset; "" for the one used in training.

    Raises:
        SdaError: the checkpoint, the dataset or one of its files cannot be read.
    """
    values = subject.values
    run = trained.load(subject.folder, values.get("checkpoint", "last"), values.get("network", "student"), device)
    dataset, split = subject.score.subject
    protocol = Protocol.from_dict(values["protocol"])
    data = run.labelled_images(protocol, dataset, root, split, bars.count).val
    assert data is not None
    places = {item.key: index for index, item in enumerate(data.items)}
    groups = ranked(values["image_miou"])
    if missing := [key for group in groups for key in group if key not in places]:
        raise SdaError(f"the dataset has changed since it was scored: {missing[0]} is missing")
    best, worst = (
        [Example(key, values["image_miou"][key], _pictures(run, data[places[key]], protocol)) for key in group]
        for group in groups
    )
    return best, worst


def _pictures(run: Run, sample: Sample, protocol: Protocol) -> list[np.ndarray]:
    """Return a picture for each of TITLES, in the shape of the label, MAX_WIDTH px wide at most."""
    assert sample.label is not None
    label = sample.label.numpy()
    logits = predict_logits(run.network, sample.image[None].to(run.device), label.shape, protocol)
    predicted = logits[0].argmax(dim=0).byte().cpu().numpy()
    colors = list(run.table.colors.values())
    size = size_within(label.shape, min(MAX_WIDTH, label.shape[1]))
    image = np.asarray(resize_image(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), size))
    label, predicted = resize_nearest(label, size), resize_nearest(predicted, size)
    prediction = colorize(predicted, colors)
    return [image, colorize(label, colors), prediction, overlay(image, prediction), errors(image, label, predicted)]


def errors(image: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Draw where a prediction is wrong: wrong pixels red, correct ones as in the image but grey and dark, ignored ones GREY.

    Args:
        image: RGB (H, W, 3) uint8. label, predicted: train ids (H, W); 255 in the label is ignored.
    """
    grey = np.repeat(DARKEN * image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    grey[(predicted != label) & (label != IGNORE)] = ERROR
    grey[label == IGNORE] = GREY
    return grey


def sheet(examples: list[Example], colors: dict[str, list[int]]) -> bytes:
    """Return all pictures of some images as one table, as the bytes of a PNG file."""
    return _file(picture_table([each.pictures for each in examples], list(TITLES), colors), "PNG")


def data_url(picture: np.ndarray, photo: bool) -> str:
    """Return an RGB picture as a data URL, a photo as JPEG and anything else as PNG."""
    form = "JPEG" if photo else "PNG"
    return f"data:image/{form.lower()};base64,{base64.b64encode(_file(Image.fromarray(picture), form)).decode()}"


def _file(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    if form == "JPEG":
        picture.save(out, form, quality=88)
    else:
        picture.save(out, form, optimize=True)
    return out.getvalue()
