"""Pictures of what networks make of a data set's images, beside the truth."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sda.data.dataset import Dataset
from sda.data.descriptor import ClassTable
from sda.pictures import colorize, heat, picture_table, resize_nearest
from sda.protocol import Protocol
from sda.scoring.inference import predict_logits


def truth_and_predictions(
    dataset: Dataset,
    indices: list[int],
    networks: dict[str, nn.Module],
    table: ClassTable,
    device: torch.device,
) -> Image.Image:
    """A table of labelled images of a data set: image, truth, and what each network (title → network) predicts."""
    colors, rows = list(table.colors.values()), []
    for index in indices:
        sample = dataset[index]
        row = [_at(sample.image, sample.label.shape), colorize(sample.label.numpy(), colors)]
        for network in networks.values():
            label, _ = predict(network, sample.image.to(device), tuple(sample.label.shape))
            row.append(colorize(label, colors))
        rows.append(row)
    size = rows[0][0].shape[:2]
    rows = [[resize_nearest(picture, size) for picture in row] for row in rows]
    return picture_table(rows, ["image", "truth", *networks], table.colors)


def pseudo_labels(
    dataset: Dataset,
    indices: list[int],
    network: nn.Module,
    table: ClassTable,
    device: torch.device,
) -> Image.Image:
    """A table of a data set's images without labels: image, prediction, and its confidence (white is certain)."""
    rows = []
    for index in indices:
        image = dataset[index].image
        label, confidence = predict(network, image.to(device), tuple(image.shape[1:]))
        rows.append([_at(image, image.shape[1:]), colorize(label, list(table.colors.values())), heat(confidence)])
    size = rows[0][0].shape[:2]
    rows = [[resize_nearest(picture, size) for picture in row] for row in rows]
    return picture_table(rows, ["image", "pseudo-label", "confidence"], table.colors)


def predict(network: nn.Module, image: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Train ids (uint8) and confidence (float32, 0 to 1) of a whole image (3, H, W) at `size`; the network's mode is restored."""
    training = network.training
    network.eval()
    p = predict_logits(network, image[None], size, Protocol()).softmax(dim=1)[0]
    network.train(training)
    confidence, label = p.max(dim=0)
    return label.byte().cpu().numpy(), confidence.cpu().numpy()


def spread(length: int, count: int) -> list[int]:
    """Up to `count` indices from all over 0 … length - 1."""
    return sorted({index * length // count for index in range(count)})


def _at(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    return resize_nearest(image.permute(1, 2, 0).numpy(), size)
