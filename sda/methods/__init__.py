"""The methods by name. Each is a module with `Settings`, `student`, `step`, `follow` and `diagnostics`."""

from sda.methods.class_bank import ClassBankMethod
from sda.methods.supervised import Supervised

METHODS = {"supervised": Supervised, "class_bank": ClassBankMethod}
