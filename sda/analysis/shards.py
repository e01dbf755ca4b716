"""The unfinished feature cache, OUT.parts: shards that an interrupted run leaves, and the HDF5 file that they go into."""

import errno
import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from sda import __version__
from sda.analysis.cache import FORMAT, IMAGES, KIND, LISTS, PIXELS, all_texts, text_hash
from sda.errors import SdaError
from sda.system.atomic import rename, written_whole

COMPRESSIONS = {"none": {}, "lzf": {"compression": "lzf", "shuffle": True}, "gzip": {"compression": "gzip", "shuffle": True}}
HELD_BACK = 2**25  # what HDF5 may hold back of what is written
CHUNK_BYTES = 2**18  # of a chunk in the cache: the least that is read at a time


class Shard:
    """What was made of some images that follow each other."""

    def __init__(self):
        self.rows: list[tuple[int, dict, dict]] = []
        self.faults: list[str] = []
        self.bytes = 0

    def add(self, domain: int, of_pixels: dict[str, np.ndarray], of_image: dict[str, np.ndarray]) -> None:
        self.rows.append((domain, of_pixels, of_image))
        self.bytes += sum(part.nbytes for part in of_pixels.values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Side by side, pixels under their names and images under image_NAME."""
        rows = self.rows
        whole = {
            "domains": np.array([domain for domain, _, _ in rows], np.uint8),
            "counts": np.array([len(of_pixels["label"]) for _, of_pixels, _ in rows], np.int64),
            "faults": np.array(self.faults, dtype=np.str_),
        }
        if rows:
            whole |= {name: np.concatenate([part[name] for _, part, _ in rows]) for name in rows[0][1]}
            whole |= {f"image_{name}": np.stack([part[name] for _, _, part in rows]) for name in rows[0][2]}
        return whole


def shards(parts: Path) -> list[Path]:
    """The shards that an interrupted run left, each beginning where the one before it ends; others are removed."""
    found, images = [], 0
    for path in sorted(parts.glob("*-*.npz")):
        begin, after = (int(number) for number in path.stem.split("-"))
        if begin != images:
            path.unlink()
            continue
        found.append(path)
        images = after
    return found


class Writer:
    """Keeps each shard as a file of its own, and writes them, one at a time, beside the computation into features.h5.tmp."""

    def __init__(self, parts: Path, there: list[Path], compression: str):
        self._parts, self._there, self._compression = parts, there, compression
        self._left_out: list[str] = []
        self._written = 0

    def __enter__(self) -> "Writer":
        self._pool = ThreadPoolExecutor(1)
        # the oldest format with checksums in its indices; no lock of HDF5's own, which loader processes would inherit
        self._file = h5py.File(self._parts / "features.h5.tmp", "w", libver=("v110", "v110"), locking=False)
        self._begun = [self._pool.submit(self._append, path) for path in self._there]
        return self

    def __exit__(self, kind, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            if kind is None:
                raise _as_os_error(error) from None

    def write(self, path: Path, shard: Shard) -> None:
        """Keep a shard; it gets into the cache soon."""
        with written_whole(path) as file:
            np.savez(file, **shard.arrays())
        for job in self._begun:
            if job.done():
                job.result()  # or its fault
        self._begun.append(self._pool.submit(self._append, path))

    def finish(self) -> list[str]:
        """Wait for the last shard. Why files were left out."""
        for job in self._begun:
            job.result()
        return self._left_out

    def _append(self, path: Path) -> None:
        part, size = _read(path), path.stat().st_size
        # HDF5 does not bear a disk that is full when it closes the file, where it writes what it has held back
        if shutil.disk_usage(self._parts).free < size + min(self._written, HELD_BACK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._written += size
        try:
            self._add(part)
        except RuntimeError as error:  # h5py's other word for a failed write
            raise _as_os_error(error) from None

    def _add(self, part: dict[str, np.ndarray]) -> None:
        """Write a shard behind those before it."""
        self._left_out += part["faults"].tolist()
        images, file, compression = len(part["counts"]), self._file, self._compression
        if not images:
            return
        _append(file, "images/path", part["image_path"].astype(object), "none")
        _append(file, "images/domain", part["domains"], "none")
        ends = (len(file["label"]) if "label" in file else 0) + part["counts"].cumsum()
        _append(file, "images/pixels", np.stack([ends - part["counts"], ends], axis=1), "none")
        for name in ("size", "mean", "share", "class_entropy"):
            _append(file, f"images/{name}", part[f"image_{name}"].astype(IMAGES[name][0]), compression)
        first = len(file["images/path"]) - images
        part = {**part, "image": np.repeat(np.arange(first, first + images), part["counts"])}
        for name, (kind, _, _) in PIXELS.items():
            if name in part:
                _append(file, name, part[name].astype(kind), compression)


def finish(parts: Path, out: Path, settings: dict, about: dict) -> None:
    """Write about features.h5.tmp what it is, and give it the name `out`."""
    temporary = parts / "features.h5.tmp"
    with h5py.File(temporary, "r+", libver=("v110", "v110"), locking=False) as file:
        if "images/path" not in file:
            raise SdaError(f"{out}: not one image can be used; the first fault: {about['left_out'][0]}")
        about = {**about, "settings": settings, "sda": __version__}
        file.attrs["kind"], file.attrs["format"] = KIND, FORMAT
        file.attrs["classes"], file.attrs["domains"] = list(about["classes"]), [d["name"] for d in about["domains"]]
        file.attrs["preprocessing"], file.attrs["network_sha256"] = json.dumps(settings["preprocessing"]), settings["network"]
        file.attrs["about"] = json.dumps({key: value for key, value in about.items() if key not in LISTS})
        for name, meaning in LISTS.items():
            dataset = _create(file, name, (len(about[name]),), h5py.string_dtype(), "none")
            dataset[:] = about[name]
            dataset.attrs["unit"], dataset.attrs["about"] = "", meaning
        file.attrs["text_sha256"] = text_hash(all_texts(file))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    rename(temporary, out)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        path.unlink()
        raise SdaError(f"{path}: damaged on the disk ({error}) and therefore removed; run the same command again") from None


def _as_os_error(error: Exception) -> OSError:
    return OSError(str(error).splitlines()[0])


def _append(file: h5py.File, name: str, values: np.ndarray, compression: str) -> None:
    """Add rows to a dataset, which the first rows make."""
    if name not in file:
        kind = h5py.string_dtype() if values.dtype == object else values.dtype
        _create(file, name, (0, *values.shape[1:]), kind, compression)
    dataset = file[name]
    dataset.resize(len(dataset) + len(values), axis=0)
    dataset[len(dataset) - len(values) :] = values


def _create(file: h5py.File, name: str, shape: tuple, kind: object, compression: str) -> h5py.Dataset:
    """A dataset that may grow, checksummed, with its unit and meaning as attributes."""
    row = 16 * (np.dtype(kind).itemsize if kind != h5py.string_dtype() else 64) * max(1, int(np.prod(shape[1:])))
    chunk = (max(16, 16 * (CHUNK_BYTES // row)), *shape[1:])
    options = {} if kind == h5py.string_dtype() else {**COMPRESSIONS[compression], "fletcher32": True}  # HDF5 checks no text
    dataset = file.create_dataset(name, shape, kind, maxshape=(None, *shape[1:]), chunks=chunk, **options)
    table = IMAGES if name.startswith("images/") else PIXELS
    if (about := table.get(name.removeprefix("images/"))) is not None:
        dataset.attrs["unit"], dataset.attrs["about"] = about[1:]
    return dataset
