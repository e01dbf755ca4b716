"""The training methods by name."""

from sda.methods.base import Method
from sda.methods.class_bank import ClassBankMethod
from sda.methods.dacs import DACS
from sda.methods.mean_teacher import MeanTeacher
from sda.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "class_bank": ClassBankMethod,
    "dacs": DACS,
}
