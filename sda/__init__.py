"""sda: semi-supervised domain adaptation of semantic segmentation."""

__version__ = "0.1.0"


def load(run, checkpoint: str = "last", network: str = "student", device: str = "auto"):
    """A trained run, by its folder: `sda.load("runs/a").predict("photo.jpg")`. See `sda.trained.load`."""
    from sda import trained  # PyTorch comes with it

    return trained.load(run, checkpoint, network, device)
