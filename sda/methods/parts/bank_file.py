"""Write memory banks to HDF5 files, and read them."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from sda.data.packs import hdf5
from sda.errors import SdaError
from sda.methods.parts.bank import SOURCE, TARGET, ClassBank
from sda.models.stored import SHA256, digest
from sda.system.atomic import written_whole

KIND = "sda bank"
FORMAT = 1
TYPES = {"features": "float32", "valid": "bool", "domain": "int64", "confidence": "float32", "step": "int64"}
PARTS = tuple(TYPES)


def write(file: Path, parts: dict[str, np.ndarray], classes: list[str], step: int, run: str) -> None:
    """Write a bank to an HDF5 file, one dataset per part.

    Args:
        parts: the PARTS of a bank, as in `sda.methods.parts.bank.ClassBank`. classes: C class names.
        step: training step of the checkpoint. run: folder of the run.

    Raises:
        SdaError: the file exists or cannot be written.
    """
    if file.exists():
        raise SdaError(f"{file}: exists and is not overwritten; choose another file")
    # In memory first: HDF5 may crash if the disk is full when it closes a file.
    with h5py.File("bank", "w", driver="core", backing_store=False, libver=("v110", "v110")) as out:
        out.attrs["kind"], out.attrs["format"], out.attrs["run"] = KIND, FORMAT, run
        out.attrs["classes"], out.attrs["step"] = classes, step
        for name in PARTS:
            out.create_dataset(name, data=parts[name], compression="gzip", fletcher32=True)
        out["features"].attrs["about"] = "(C, psi, D) entries, newest first: outputs of the teacher's head g"
        out["valid"].attrs["about"] = "(C, psi) which entries are filled"
        out["domain"].attrs["about"] = "(C, psi) 0: source, 1: target"
        out["confidence"].attrs["about"] = "(C, psi) the teacher's confidence when the entry was added"
        out["step"].attrs["about"] = "(C, psi) the training step at which the entry was added"
        out.attrs[SHA256] = _digest(classes, {name: torch.from_numpy(parts[name]) for name in PARTS})
        out.flush()
        content = out.id.get_file_image()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as place:
            place.write(content)
    except OSError as error:
        raise SdaError(f"{file}: cannot be written ({error.strerror or error})") from None


def _digest(classes: list[str], parts: Mapping[str, torch.Tensor]) -> str:
    return digest([classes, {name: parts[name] for name in PARTS}])


def read(file: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Read the PARTS of a bank, with the classes in the order of `names`. Files without a hash are accepted.

    Raises:
        SdaError: the file is missing, damaged, not a bank of sda, or has other classes.
    """
    try:
        with hdf5.open_file(file) as there:
            if not hdf5.is_kind(there, KIND) or hdf5.number(there, "format") != FORMAT:
                raise SdaError(f"{file}: not a bank of sda; make one with sda bank RUN --export FILE")
            classes = hdf5.text_list(there, "classes")
            parts = {
                name: torch.from_numpy(hdf5.dataset(there, name, TYPES[name], (None,) * (3 if name == "features" else 2))[()])
                for name in PARTS
            }
            if SHA256 in there.attrs and hdf5.text(there, SHA256) != _digest(classes, parts):
                raise ValueError("damaged: its SHA-256 is wrong")
        check(parts, len(classes))
    except hdf5.FAULTS as error:
        raise SdaError(hdf5.unreadable(file, error, "make one with sda bank RUN --export FILE")) from None
    if len({*classes}) < len(classes) or sorted(classes) != sorted(names):
        other = sorted({*classes} ^ {*names})
        found = f"{', '.join(other[:5])}{', …' if len(other) > 5 else ''}"
        raise SdaError(
            f"{file}: the bank has other classes than the recipe; only one of the two has {found}; "
            "give a bank with the same classes"
        )
    order = [classes.index(name) for name in names]
    return {name: values[order] for name, values in parts.items()}


def check(parts: Mapping[str, torch.Tensor], classes: int) -> None:
    """Raise ValueError if the PARTS do not form a bank of so many classes."""
    size = (classes, *parts["valid"].shape[1:2])
    for name in PARTS:
        kind, shape = str(parts[name].dtype).removeprefix("torch."), tuple(parts[name].shape)
        if kind != TYPES[name] or shape[:2] != size or len(shape) != (3 if name == "features" else 2):
            raise ValueError(f"{name} has shape {shape} and type {kind}, which is no part of a bank of {classes} classes")
        if not torch.isfinite(parts[name]).all():
            raise ValueError(f"{name} has values that are NaN or infinite")
    if not ((parts["domain"] == SOURCE) | (parts["domain"] == TARGET)).all():
        raise ValueError("domain has other values than 0 and 1")


@torch.no_grad()
def fill(bank: ClassBank, file: Path, names: list[str]) -> None:
    """Fill an empty bank with the newest entries of a file, as if they had been added at step 0.

    Args:
        names: the class names of `bank`.

    Raises:
        SdaError: the file is missing, is not a bank of sda, or has other classes or features of another length.
    """
    parts = read(file, names)
    if parts["features"].shape[2] != bank.features.shape[2]:
        raise SdaError(
            f"{file}: its features have length {parts['features'].shape[2]}, expected {bank.features.shape[2]}; give another bank"
        )
    parts["step"].zero_()
    count = min(parts["valid"].shape[1], bank.valid.shape[1])
    for name, values in parts.items():
        getattr(bank, name)[:, :count] = values[:, :count].to(bank.valid.device)
