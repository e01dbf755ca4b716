"""The only evaluator: scores a network on a labelled dataset, under a named protocol."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sda.data.dataset import Dataset, Guarded, Loader, Sample
from sda.data.descriptor import class_table
from sda.data.files import FileError
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.models.network import SegmentationNetwork
from sda.pictures import resize_nearest
from sda.protocol import Protocol
from sda.scoring import metrics
from sda.scoring.inference import predict_logits
from sda.system import distributed
from sda.system.tables import mean_of_present

BATCH_PIXELS = 2**20  # maximum number of input pixels per batch, because logits at the labels' size take memory too
BATCH = 8  # maximum number of images per batch
SUBSETS = ("cityscapes16", "cityscapes13")  # class tables whose mean is also reported if they are subsets of the classes


@torch.no_grad()
def evaluate(
    network: SegmentationNetwork,
    dataset: Dataset,
    names: list[str],
    device: torch.device,
    protocol: Protocol = Protocol(),
    teacher: SegmentationNetwork | None = None,
    workers: int = 0,
    skip: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Score a network.

    Args:
        network: the network; its training mode is restored afterwards.
        dataset: images resized to the protocol's input size with its fit, and labels at their original size, if it has labels.
            If the protocol has no input size, images are processed one at a time.
        names: the C class names.
        teacher: another network, to measure its agreement with `network`.
        workers: number of loader processes.
        skip: skip unusable files and list them under `skipped`, instead of raising an error.
        progress: called with the number of processed images and the total.

    Returns:
        - `protocol`, `images` (their number), `skipped`;
        - criteria that need no labels: `entropy`, mean entropy of the predictions divided by log C, 0 to 1; `infomax`, entropy
          of the mean prediction minus the mean entropy, divided by log C, 0 to 1; `agreement`, share of pixels for which
          `teacher` predicts the same class, 0 to 1.

        If the dataset has labels:

        - the fields of `sda.scoring.metrics.score`, and `confusion` (C×C list);
        - `missing_classes`: those without a labelled pixel in these images;
        - `miou16`, `miou13`: mean over the 16 or 13 classes of SYNTHIA → Cityscapes, if `names` has more than these;
        - `interval`: 95 % bootstrap interval of `miou` over images; `image_miou`: image → its own mIoU, percent;
        - `boundary_miou` and `boundary_iou`: Boundary IoU, mean over the classes present and per class, percent;
        - `ece` and `reliability`: see `sda.scoring.metrics.calibration`.

    Raises:
        SdaError: an unusable file (without `skip`), no usable image, or no labelled pixel.
        ValueError: the dataset's size or fit is not that of the protocol's input.
    """
    if (dataset.size, dataset.fit) != (protocol.input, protocol.fit):
        raise ValueError(f"dataset with images of size {dataset.size} ({dataset.fit}), but protocol {protocol.name}")
    networks = [network] if teacher is None else [network, teacher]
    were_training = [each.training for each in networks]
    for each in networks:
        each.eval()
    classes = len(names)
    mean_p = torch.zeros(classes, device=device)
    mean_h, agreeing = torch.zeros((), device=device), torch.zeros((), device=device)
    edges = torch.zeros(3, classes, dtype=torch.int64, device=device)
    bins = torch.zeros(3, metrics.BINS, dtype=torch.float64, device=device)
    matrices: dict[int, Tensor] = {}
    skipped = []
    mine = range(distributed.rank(), len(dataset), distributed.world_size())
    with Loader(Guarded(dataset), batch_size(protocol), mine, workers) as batches:
        for found in batches:
            faults = [str(sample) for _, sample in found if isinstance(sample, FileError)]
            if faults and not skip:
                raise SdaError(faults[0])
            skipped += faults
            for group in _of_one_size([(index, sample) for index, sample in found if isinstance(sample, Sample)], protocol):
                images = torch.stack([sample.image for _, sample, _ in group]).to(device)
                size = tuple(group[0][2].shape)
                logits = predict_logits(network, images, size, protocol)
                if teacher is not None:
                    theirs = predict_logits(teacher, images, size, protocol).argmax(dim=1)
                    agreeing += (theirs == logits.argmax(dim=1)).float().mean(dim=(1, 2)).sum()
                for one, (index, _, label) in zip(logits, group, strict=True):
                    label, predicted, p = label.to(device), one.argmax(dim=0), one.softmax(dim=0)
                    mean_p += p.mean(dim=(1, 2))
                    mean_h -= (p * p.clamp(min=1e-12).log()).sum(dim=0).mean()
                    matrices[index] = metrics.confusion_matrix(predicted, label, classes)
                    edges += metrics.boundary_counts(predicted, label, classes)
                    counted = label < classes
                    bins += metrics.calibration_counts(p.amax(dim=0)[counted], (predicted == label)[counted])
            progress(min(distributed.world_size() * (len(matrices) + len(skipped)), len(dataset)), len(dataset))
    for each, training in zip(networks, were_training, strict=True):
        each.train(training)
    skipped = distributed.all_gather_objects(skipped)
    matrices = {index: matrix.cpu() for index, matrix in matrices.items()}
    matrices = dict(sorted(pair for part in distributed.all_gather_objects([matrices]) for pair in part.items()))
    sums = (mean_p, mean_h, agreeing, edges, bins)
    mean_p, mean_h, agreeing, edges, bins = (distributed.all_reduce_sum(x) for x in sums)
    if not matrices:
        raise SdaError(f"no image could be evaluated; first error: {skipped[0]}")
    each_image = torch.stack(list(matrices.values()))
    confusion = each_image.sum(dim=0)
    mean_p, entropy = mean_p / len(matrices), (mean_h / len(matrices)).item() / math.log(classes)
    marginal = -(mean_p * mean_p.clamp(min=1e-12).log()).sum().item() / math.log(classes)
    unlabelled = {
        "protocol": protocol.to_dict(),
        "images": len(matrices),
        "skipped": skipped,
        "entropy": entropy,
        "infomax": marginal - entropy,
        **({} if teacher is None else {"agreement": agreeing.item() / len(matrices)}),
    }
    if dataset.codec is None:
        return unlabelled
    if not confusion.any():
        raise SdaError(
            f"no labelled pixel in the {len(matrices)} images to evaluate: all labels, such as {dataset.items[0].label}, "
            f"are void for the classes {', '.join(names)}"
        )
    scores = metrics.score(confusion, names)
    along_edges = {
        name: None if value.isnan() else 100 * value.item()
        for name, value in zip(names, metrics.boundary_iou(edges.cpu()), strict=True)
    }
    return {
        **unlabelled,
        **scores,
        "missing_classes": [name for name, pixels in zip(names, confusion.sum(dim=1), strict=True) if not pixels],
        **{f"miou{len(subset)}": mean_of_present(scores["iou"][name] for name in subset) for subset in _subsets(names)},
        "interval": metrics.bootstrap(each_image.numpy()),
        "boundary_miou": mean_of_present(along_edges.values()),
        "boundary_iou": along_edges,
        **metrics.calibration(bins),
        "image_miou": {dataset.items[i].key: metrics.score(matrix, names)["miou"] for i, matrix in matrices.items()},
        "confusion": confusion.tolist(),
    }


def batch_size(protocol: Protocol) -> int:
    """Return the number of images per batch."""
    return max(1, min(BATCH, BATCH_PIXELS // math.prod(protocol.input))) if protocol.input else 1


def _of_one_size(samples: list[tuple[int, Sample]], protocol: Protocol) -> list[list[tuple[int, Sample, Tensor]]]:
    """Return (index, sample, label at the size to score), in groups whose images and whose labels have the same size."""
    groups: dict[tuple[torch.Size, torch.Size], list[tuple[int, Sample, Tensor]]] = {}
    for index, sample in samples:
        label = torch.full(sample.image.shape[1:], IGNORE, dtype=torch.uint8) if sample.label is None else sample.label
        if protocol.score and label.shape != protocol.score:
            label = torch.from_numpy(resize_nearest(label.numpy(), protocol.score).copy())
        groups.setdefault((sample.image.shape, label.shape), []).append((index, sample, label))
    return list(groups.values())


def _subsets(names: list[str]) -> list[list[str]]:
    """Return the SUBSETS whose classes are a proper subset of `names`."""
    return [subset for subset in (class_table(name).names for name in SUBSETS) if set(subset) < set(names)]
