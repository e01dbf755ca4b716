"""The ignore label, in train ids."""

IGNORE = 255
