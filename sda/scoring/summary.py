"""The metrics that tables and reports show in addition to mIoU. Does not import PyTorch.

A new metric is computed in `sda.scoring.metrics`, returned by `sda.scoring.evaluate.evaluate`, and listed here.
"""

from typing import NamedTuple


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
