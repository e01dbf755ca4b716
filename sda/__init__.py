"""sda: semi-supervised domain adaptation of semantic segmentation."""

__version__ = "0.1.0"
