"""Semi-supervised domain adaptation of semantic segmentation."""

__version__ = "0.1.0"


def load(run, checkpoint: str = "last", network: str = "student", device: str = "auto"):
    """Load a trained run: `sda.load("runs/a").predict("photo.jpg")`. See `sda.runs.trained.load`."""
    from sda.runs import trained

    return trained.load(run, checkpoint, network, device)
