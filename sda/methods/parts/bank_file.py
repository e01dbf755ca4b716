"""Write memory banks to HDF5 files, and read them."""

from pathlib import Path

import h5py
import numpy as np
import torch

from sda.errors import SdaError
from sda.methods.parts.bank import ClassBank
from sda.system.atomic import written_whole

KIND = "sda bank"
FORMAT = 1
PARTS = ("features", "valid", "domain", "confidence", "step")


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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # In memory, because HDF5 may crash if the disk is full.
        with h5py.File(file.name, "w", driver="core", backing_store=False) as out:
            out.attrs["kind"], out.attrs["format"], out.attrs["run"] = KIND, FORMAT, run
            out.attrs["classes"], out.attrs["step"] = classes, step
            for name in PARTS:
                out.create_dataset(name, data=parts[name], compression="gzip", fletcher32=True)
            out["features"].attrs["about"] = "(C, psi, D) entries, newest first: outputs of the teacher's head g"
            out["valid"].attrs["about"] = "(C, psi) which entries are filled"
            out["domain"].attrs["about"] = "(C, psi) 0: source, 1: target"
            out["confidence"].attrs["about"] = "(C, psi) the teacher's confidence when the entry was added"
            out["step"].attrs["about"] = "(C, psi) the training step at which the entry was added"
            out.flush()
            content = out.id.get_file_image()
        with written_whole(file) as place:
            place.write(content)
    except (OSError, RuntimeError) as error:
        raise SdaError(f"{file}: cannot be written ({str(error).splitlines()[0]})") from None


def read(file: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Read the PARTS of a bank, with the classes in the order of `names`.

    Raises:
        SdaError: the file is missing, is not a bank of sda, or has other classes.
    """
    try:
        with h5py.File(file, "r", locking=False) as there:
            if there.attrs.get("kind") != KIND or there.attrs.get("format") != FORMAT:
                raise SdaError(f"{file}: not a bank of sda; make one with sda bank RUN --export FILE")
            parts = {name: torch.from_numpy(there[name][:]) for name in PARTS}
            classes = list(there.attrs["classes"])
    except (OSError, KeyError, RuntimeError) as error:
        reason = "no such file" if not file.exists() else f"cannot be read ({str(error).splitlines()[0]})"
        raise SdaError(f"{file}: {reason}; make one with sda bank RUN --export FILE") from None
    if sorted(classes) != sorted(names):
        other = sorted({*classes} ^ {*names})
        found = f"{', '.join(other[:5])}{', …' if len(other) > 5 else ''}"
        raise SdaError(
            f"{file}: the bank has other classes than the recipe; only one of the two has {found}; "
            "give a bank with the same classes"
        )
    order = [classes.index(name) for name in names]
    return {name: values[order] for name, values in parts.items()}


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
