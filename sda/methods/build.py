"""The methods by name."""

from sda.methods.class_bank import ClassBankMethod
from sda.methods.dacs import DACS
from sda.methods.mean_teacher import MeanTeacher
from sda.methods.supervised import Supervised

METHODS = {"supervised": Supervised, "mean_teacher": MeanTeacher, "class_bank": ClassBankMethod, "dacs": DACS}
