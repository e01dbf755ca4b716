"""The methods by name. Each is a module with `Settings`, `student`, `step`, `follow` and `diagnostics`."""

from collections.abc import Iterable
from dataclasses import fields

from sda.methods.class_bank import ClassBankMethod
from sda.methods.dacs import DACS
from sda.methods.mean_teacher import MeanTeacher
from sda.methods.supervised import Supervised

METHODS = {"supervised": Supervised, "mean_teacher": MeanTeacher, "class_bank": ClassBankMethod, "dacs": DACS}
SHARED = {"steps", "released"}  # fields that the loop and the networks read as well


def unread(method: str, names: Iterable[str]) -> list[str]:
    """Of the fields named, those that some method reads, but not this one."""
    read = {name: {field.name for field in fields(kind.Settings)} for name, kind in METHODS.items()}
    idle = set().union(*read.values()) - read[method] - SHARED
    return [name for name in names if name in idle]
