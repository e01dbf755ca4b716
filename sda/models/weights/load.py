"""Load pretrained weights into a network, and report which tensors were loaded."""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sda.errors import SdaError
from sda.models.backbones.base import Backbone
from sda.models.backbones.low_rank import ADAPTERS
from sda.models.heads.base import Head
from sda.models.stored import fit
from sda.models.weights.files import examples
from sda.models.weights.read import Pretrained

logger = logging.getLogger(__name__)

CLASSIFIERS = ("fc.", "classifier.", "aux_classifier.", "layer5.", "head.")  # of the files' networks

# Share of the backbone's tensors. 0.5 is too low: a resnet50 file matches 51 % of resnet101 by name and shape, and would leave
# 17 of its 33 blocks random.
MATCH_AT_LEAST = 0.9


@dataclass(frozen=True)
class LoadReport:
    """Which tensors were loaded.

    Attributes:
        matched: names of loaded tensors.
        missing: names that only the backbone has, except the batch norms' step counters, which old files lack and nothing reads.
        unexpected: names that only the file has, except those in `skipped`.
        unfit: names of tensors of another shape, or of integers instead of floats, as in a quantised file.
        skipped: names of the file's classifier and of blocks that the backbone does not use.
        summary: one line for the log.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    unfit: list[str]
    skipped: list[str]
    summary: str = ""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.unfit)

    def details(self) -> str:
        """Return the summary and all names, grouped."""
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape or type": self.unfit}
        lists |= {"skipped": self.skipped, "matched": self.matched}
        parts = [f"\n{what}:\n" + "\n".join(f"  {name}" for name in names) for what, names in lists.items() if names]
        return "\n".join([self.summary, *parts]) + "\n"

    def __str__(self) -> str:
        lists = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape or type": self.unfit,
            "skipped": self.skipped,
        }
        parts = [f"{len(names)} {what} ({examples(names)})" for what, names in lists.items() if names]
        return ", ".join([f"{len(self.matched)} tensors matched", *parts])


def load_weights(backbone: Backbone, name: str, pretrained: Pretrained) -> LoadReport | None:
    """Copy weights into `backbone`, the result of `build_backbone(name, ...)`. Return a report, or None for weights "none".

    Adapters that the file lacks keep their initial values.

    Log how many tensors were loaded, renamed and skipped, as a warning if some did not match; the report has the details.
    Raise SdaError if the weights belong to another network.
    """
    weights = pretrained.where
    if weights == "none":
        return None
    report = load_state(backbone, pretrained.state)
    expected = len(report.matched) + len(report.missing) + len(report.unfit)
    if len(report.matched) < MATCH_AT_LEAST * expected:
        raise SdaError(
            f"weights {weights}: only {len(report.matched)} of the {expected} tensors of {name} match; expected names such as "
            f"{examples(list(backbone.body.state_dict()))}, found {examples(list(pretrained.state))}; "
            f"give weights of {name}, or change backbone"
        )
    broken = [key for key in report.matched if not pretrained.state[key].isfinite().all()]
    if broken:
        raise SdaError(f"weights {weights}: {examples(broken)} have values that are NaN or infinite; give other weights")
    facts = f"{report}; {pretrained.format} format" + (f", renamed like {pretrained.renamed}" if pretrained.renamed else "")
    logger.log(logging.INFO if report.complete else logging.WARNING, "weights %s for %s: %s", weights, name, facts)
    return replace(report, summary=facts)


def load_state(backbone: Backbone, state: dict[str, Tensor]) -> LoadReport:
    """Copy the tensors that match by name and shape into `backbone`, and report the others."""
    own = backbone.body.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and fits(value, own[key])}
    backbone.body.load_state_dict(fitting, strict=False)
    ignored = (*CLASSIFIERS, *backbone.unused)
    return LoadReport(
        matched=[key for key in fitting if not is_counter(key)],
        missing=[key for key in own if key not in state and not is_counter(key) and not key.endswith(ADAPTERS)],
        unexpected=[key for key in state if key not in own and not key.startswith(ignored)],
        unfit=[key for key in state if key in own and key not in fitting],
        skipped=[key for key in state if key not in own and key.startswith(ignored)],
    )


def fits(value: Tensor, own: Tensor) -> bool:
    """Return whether `value` can replace `own`: same shape and layout, and both floats or both integers."""
    same_kind = value.layout == own.layout and value.is_floating_point() == own.is_floating_point()
    return same_kind and value.shape == own.shape


def is_counter(key: str) -> bool:
    """Return whether `key` names a batch norm's step counter."""
    return key.endswith("num_batches_tracked")


def load_head(head: Head, network: str, classes: list[str], pretrained: Pretrained) -> str:
    """Copy the head of a network of sda, if it is the same network. Classes are matched by name; new ones keep random weights.

    Args:
        network: the recipe's network. classes: the names of its classes.

    Returns:
        A line that says which classes were loaded, or why the head was not; empty if the weights have none.

    Raises:
        SdaError: the tensors do not fit the head.
    """
    if not pretrained.head:
        return ""
    where, theirs = f"weights {pretrained.where}", pretrained.network
    if theirs != network:
        return f"{where}: its head is left out, because it is of network {theirs}, not {network}"
    new = [name for name in classes if name not in pretrained.classes]
    fit(head, {**pretrained.head, **_rows_by_class(head, classes, pretrained)}, f"{where}: its head")
    if classes == pretrained.classes:
        return f"{where}: backbone and head, for the same classes"
    known = f"{where}: backbone and head, with {len(classes) - len(new)} of {len(classes)} classes by their names"
    return known + (f"; {examples(new)} start at random" if new else "")


def _rows_by_class(head: Head, classes: list[str], pretrained: Pretrained) -> dict[str, Tensor]:
    """Return the tensors of a head's classifier with the rows of the classes that the weights have."""
    known = [name for name in classes if name in pretrained.classes]
    places, rows = (
        torch.tensor([names.index(name) for name in known], dtype=torch.int64) for names in (classes, pretrained.classes)
    )
    found = {}
    for key, own in head.state_dict().items():
        given = pretrained.head.get(key)
        if key.startswith(head.classifiers) and given is not None and given.shape[1:] == own.shape[1:]:
            found[key] = own.clone()
            found[key][places] = given[rows].to(own.dtype)
    return found
