"""Tables of pictures: a dataset's images with the ground truth and predictions."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sda.data.dataset import Dataset
from sda.data.descriptor import ClassTable
from sda.models.network import SegmentationNetwork
from sda.pictures import colorize, heat, picture_table, resize_nearest
from sda.protocol import Protocol
from sda.scoring.inference import predict_logits


def truth_and_predictions(
    dataset: Dataset,
    indices: list[int],
    networks: Mapping[str, SegmentationNetwork],
    table: ClassTable,
    device: torch.device,
) -> Image.Image:
    """Draw a table of images: image, ground truth if there are labels, and the prediction of each network (title → network)."""
    colors, rows = list(table.colors.values()), []
    for index in indices:
        sample = dataset[index]
        height, width = sample.image.shape[1:] if sample.label is None else sample.label.shape
        row = [_at(sample.image, (height, width))]
        if sample.label is not None:
            row.append(colorize(sample.label.numpy(), colors))
        for network in networks.values():
            label, _ = predict(network, sample.image.to(device), (height, width))
            row.append(colorize(label, colors))
        rows.append(row)
    truth = [] if dataset.codec is None else ["ground truth"]
    return picture_table(rows, ["image", *truth, *networks], table.colors)


def pseudo_labels(
    dataset: Dataset,
    indices: list[int],
    network: SegmentationNetwork,
    table: ClassTable,
    device: torch.device,
) -> Image.Image:
    """Draw a table of unlabelled images: image, prediction, and its confidence (white: 1)."""
    rows = []
    for index in indices:
        image = dataset[index].image
        _, height, width = image.shape
        label, confidence = predict(network, image.to(device), (height, width))
        rows.append([_at(image, (height, width)), colorize(label, list(table.colors.values())), heat(confidence)])
    return picture_table(rows, ["image", "pseudo-label", "confidence"], table.colors)


def predict(network: SegmentationNetwork, image: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Predict train ids (uint8) and confidence (float32, 0 to 1) of an image (3, H, W) at `size` (height, width).

    The network's training mode is restored afterwards.
    """
    training = network.training
    network.eval()
    p = predict_logits(network, image[None], size, Protocol()).softmax(dim=1)[0]
    network.train(training)
    confidence, label = p.max(dim=0)
    return label.byte().cpu().numpy(), confidence.cpu().numpy()


def spread(length: int, count: int) -> list[int]:
    """Return up to `count` evenly spread indices from 0 to length - 1."""
    return sorted({index * length // count for index in range(count)})


def _at(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Convert an image (3, H, W) to a picture (height, width, 3) of the given size."""
    return resize_nearest(image.permute(1, 2, 0).numpy(), size)
