"""The only evaluator: a network over a labelled dataset, under a named protocol."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sda.data.dataset import Dataset, Guarded, Sample
from sda.data.descriptor import class_table
from sda.data.files import FileError
from sda.errors import SdaError
from sda.protocol import Protocol
from sda.scoring import metrics
from sda.scoring.inference import predict_logits
from sda.system import distributed
from sda.system.tables import mean_of_present

BATCH_PIXELS = 2**20  # that enter a network at a time: scores need logits at the labels' size as well
BATCH = 8  # images, at most
SUBSETS = ("cityscapes16", "cityscapes13")  # class tables whose mean is given too, where all their classes are there


@torch.no_grad()
def evaluate(
    network: nn.Module,
    dataset: Dataset,
    names: list[str],
    device: torch.device,
    protocol: Protocol = Protocol(),
    teacher: nn.Module | None = None,
    workers: int = 0,
    skip: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Score a network.

    Args:
        network: images → (logits, features); its training mode is restored afterwards.
        dataset: samples resized to the protocol's input size, labels at their own. Without a size they go one by one.
        names: the C classes.
        teacher: another network, whose agreement with this one is measured.
        skip: leave unusable files out (they are listed under `skipped`) rather than raise.

    Returns:
        - `protocol`, `images`, `skipped`, the fields of `sda.scoring.metrics.score`, `confusion` (C×C list);
        - `miou16`, `miou13`: where the classes hold those of SYNTHIA → Cityscapes, the mean over these;
        - `interval`: of `miou`, 95 %, over images drawn with replacement; `image_miou`: image → mIoU of it alone, percent;
        - `boundary_miou` and `boundary_iou`: Boundary IoU, mean over the classes present and per class, percent;
        - `ece` and `reliability`: see `sda.scoring.metrics.calibration`;
        - criteria that need no labels, from 0 to 1: `entropy`, mean entropy of the predictions over log C; `infomax`, entropy of
          the mean prediction less the mean entropy, over log C; `agreement`, share of pixels that the teacher calls the same.
    """
    if dataset.size != protocol.input:
        raise ValueError(f"images of {dataset.size} for the protocol {protocol.name}")
    networks = [network] if teacher is None else [network, teacher]
    were_training = [each.training for each in networks]
    for each in networks:
        each.eval()
    classes = len(names)
    mean_p = torch.zeros(classes, device=device)
    mean_h, agreeing = torch.zeros((), device=device), torch.zeros((), device=device)
    edges = torch.zeros(3, classes, dtype=torch.int64, device=device)
    sureness = torch.zeros(3, metrics.BINS, dtype=torch.float64, device=device)
    matrices: dict[int, Tensor] = {}
    skipped = []
    mine = range(distributed.rank(), len(dataset), distributed.size())
    loader = DataLoader(Guarded(dataset), batch_size(protocol), sampler=mine, num_workers=workers, collate_fn=list)
    for found in loader:
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
                sureness += metrics.calibration_counts(p.amax(dim=0)[counted], (predicted == label)[counted])
        progress(min(distributed.size() * (len(matrices) + len(skipped)), len(dataset)), len(dataset))
    for each, training in zip(networks, were_training, strict=True):
        each.train(training)
    skipped = distributed.listed(skipped)
    matrices = {index: matrix.cpu() for index, matrix in matrices.items()}
    matrices = dict(sorted(pair for part in distributed.listed([matrices]) for pair in part.items()))
    mean_p, mean_h, agreeing, edges, sureness = (distributed.total(x) for x in (mean_p, mean_h, agreeing, edges, sureness))
    if not matrices:
        raise SdaError(f"no image could be evaluated; the first fault: {skipped[0]}")
    each_image = torch.stack(list(matrices.values()))
    confusion = each_image.sum(dim=0)
    if not confusion.any():
        raise SdaError(
            f"no labelled pixel in the {len(matrices)} images to evaluate: every label, such as "
            f"{dataset.items[0].label}, is void in the classes {', '.join(names)}"
        )
    mean_p, mean_h = mean_p / len(matrices), (mean_h / len(matrices)).item() / math.log(classes)
    marginal = -(mean_p * mean_p.clamp(min=1e-12).log()).sum().item() / math.log(classes)
    scores = metrics.score(confusion, names)
    along_edges = {
        name: None if value.isnan() else 100 * value.item()
        for name, value in zip(names, metrics.boundary_iou(edges.cpu()), strict=True)
    }
    return {
        "protocol": protocol.to_dict(),
        "images": len(matrices),
        "skipped": skipped,
        **scores,
        **{f"miou{len(subset)}": mean_of_present(scores["iou"][name] for name in subset) for subset in _subsets(names)},
        "interval": metrics.bootstrap(each_image.numpy()),
        "boundary_miou": mean_of_present(along_edges.values()),
        "boundary_iou": along_edges,
        **metrics.calibration(sureness),
        "entropy": mean_h,
        "infomax": marginal - mean_h,
        **({} if teacher is None else {"agreement": agreeing.item() / len(matrices)}),
        "image_miou": {dataset.items[i].key: metrics.score(matrix, names)["miou"] for i, matrix in matrices.items()},
        "confusion": confusion.tolist(),
    }


def batch_size(protocol: Protocol) -> int:
    """How many images are taken at once."""
    return max(1, min(BATCH, BATCH_PIXELS // math.prod(protocol.input))) if protocol.input else 1


def _of_one_size(samples: list[tuple[int, Sample]], protocol: Protocol) -> list[list[tuple[int, Sample, Tensor]]]:
    """(index, sample, label at the size that is scored), in groups whose labels are of one size."""
    groups: dict[torch.Size, list[tuple[int, Sample, Tensor]]] = {}
    for index, sample in samples:
        label = sample.label
        if protocol.score and label.shape != protocol.score:
            label = F.interpolate(label[None, None], protocol.score, mode="nearest-exact")[0, 0]
        groups.setdefault(label.shape, []).append((index, sample, label))
    return list(groups.values())


def _subsets(names: list[str]) -> list[list[str]]:
    return [subset for subset in (class_table(name).names for name in SUBSETS) if set(subset) < set(names)]
