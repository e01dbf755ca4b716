"""The one ignore label, in train ids, everywhere."""

IGNORE = 255
