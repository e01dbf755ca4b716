"""The record of a prediction folder: which network made each output, from which file. `--resume` compares it.

OUT/predictions.jsonl has one JSON object per line. A line with "made_by" begins each call and describes the network and the
options; each line after it names a source and its outputs, and is written before new outputs, and after those that it replaces.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sda import __version__
from sda.errors import SdaError, naming
from sda.prediction.plan import Input
from sda.reading import read_bytes
from sda.runs.trained import Run

RECORD = "predictions.jsonl"


def made_by(run: Run, size: str | tuple[int, int], scales: tuple[float, ...], flip: bool, values: dict[str, np.ndarray]) -> dict:
    """Return what makes the outputs, as plain values.

    Args:
        size, scales, flip: see `Run.predict`. values: see `sda.prediction.render.id_values`.
    """
    return {
        "run": os.path.abspath(run.folder),
        "network": f"{run.network_name} of {run.which}, step {run.step}",
        "sha256": fingerprint(run),
        "size": size if isinstance(size, str) else list(size),
        "scales": list(scales),
        "flip": flip,
        "ids": {kind: table[: len(run.table.names)].tolist() for kind, table in values.items()},
        "device": run.device.type,
        "sda": __version__,
    }


def fingerprint(run: Run) -> str:
    """Return a SHA-256 of everything in a run that its predictions depend on."""
    r = run.recipe
    build = [r.network, r.backbone, r.output_stride, r.precision, r.released, run.weights_format]
    rules = [run.table.colors, run.protocol().to_dict(), r.input_size, r.crop_size, run.network.preprocessing.to_dict()]
    digest = hashlib.sha256(json.dumps([*build, *rules]).encode())
    for name, tensor in sorted(run.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Record:
    """The record of the prediction folder `out`; a missing file counts as an empty one, and damaged lines as missing.

    Args:
        by: see `made_by`.
    """

    def __init__(self, out: Path, by: dict):
        self.out, self.by = out, by
        self.path = out / RECORD
        self._lock = threading.Lock()
        self._begun = False

    def check(self, tasks: Iterable[Input]) -> str:
        """Compare the existing outputs of tasks with the record.

        Returns:
            A note for the user, or "".

        Raises:
            SdaError: another network, other options or another source made an existing output, or it is unknown what did.
        """
        known, note = self._read(), ""
        way_out = "add --overwrite to replace the existing outputs, or choose another --out"
        for task in tasks:
            existing = {kind: file for kind, file in task.outputs.items() if os.path.exists(file)}
            for kind, file in existing.items():
                if self._name(file) not in known:
                    raise SdaError(f"--resume: {self.path} does not say which network made {file}; {way_out}")
                by, source = known[self._name(file)]
                if reason := self._difference(by, kind):
                    raise SdaError(f"--resume: {file} was made with {reason}; {way_out}")
                if not _is_same(task.source, source):
                    raise SdaError(f"--resume: {task.source} has changed since {file} was made; {way_out}")
                if by.get("device") != self.by["device"]:
                    note = f"existing outputs were made on {by.get('device')}, new ones on {self.by['device']}: pixels may differ"
        return note

    def add(self, source: dict, outputs: Iterable[Path]) -> None:
        """Note the source of outputs, if there are any. Safe in several threads.

        Args:
            source: see `identity`.

        Raises:
            OSError: the record cannot be written.
        """
        if not (names := [self._name(file) for file in outputs]):
            return
        with self._lock:
            if not self._begun:
                self._append({"made_by": self.by})
                self._begun = True
            self._append({"source": source, "outputs": names})

    def _name(self, file: Path) -> str:
        return file.relative_to(self.out).as_posix()

    def _append(self, line: dict) -> None:
        with naming(self.path), self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a kill or a full disk cut the last line
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> dict[str, tuple[dict, dict]]:
        """Return output → "made_by" and the identity of the source."""
        known: dict[str, tuple[dict, dict]] = {}
        by: dict = {}
        try:
            lines = read_bytes(self.path).splitlines()
        except FileNotFoundError:
            return known
        for line in lines:
            try:
                values = json.loads(line)
                if "made_by" in values:
                    by = dict(values["made_by"])
                else:
                    known |= {str(name): (by, dict(values["source"])) for name in values["outputs"]}
            except (ValueError, TypeError, KeyError, RecursionError):  # perhaps it was the start of a call
                by = {}
        return {name: made for name, made in known.items() if made[0]}

    def _difference(self, by: dict, kind: str) -> str:
        """Return what differs between `by` and this call, for one kind of output; "" if nothing does."""
        if by.get("sha256") != self.by["sha256"]:
            return f"another network: {_network(by)}, not {_network(self.by)}"
        for key in ("size", "scales", "flip"):
            if by.get(key) != self.by[key]:
                return f"another --{key}: {_shown(by.get(key))}, not {_shown(self.by[key])}"
        ids = by.get("ids")
        if kind in self.by["ids"] and (ids.get(kind) if isinstance(ids, dict) else None) != self.by["ids"][kind]:
            return "other ids of the classes"
        return ""


def identity(path: Path) -> dict:
    """Return what identifies the content of a file. Raise OSError if it cannot be read."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        return {
            "path": os.path.abspath(path),
            "bytes": about.st_size,
            "modified": about.st_mtime_ns,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _is_same(path: Path, source: dict) -> bool:
    """Return whether a file has the content that `identity` described. Only if its time has changed, all of it is read."""
    try:
        about = path.stat()
        if about.st_size != source.get("bytes"):
            return False
        return about.st_mtime_ns == source.get("modified") or identity(path)["sha256"] == source.get("sha256")
    except OSError:
        return False


def _network(by: dict) -> str:
    return f"{by.get('run')} ({by.get('network')})"


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
