"""The shards of an unfinished feature cache, and the HDF5 file that they are appended to."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from sda import __version__
from sda.analysis.cache import FORMAT, IMAGES, KIND, LISTS, PIXELS, all_texts, text_hash
from sda.system.resumable import check_space, h5py_errors, new_shard, read_shard

COMPRESSIONS: dict[str, dict] = {
    "none": {},
    "lzf": {"compression": "lzf", "shuffle": True},
    "gzip": {"compression": "gzip", "shuffle": True},
}
HELD_BACK = 2**25  # bytes that HDF5 may keep in memory before it writes them
CHUNK_BYTES = 2**18  # size of a chunk in the cache, the smallest unit that is read
TEXT_BYTES = 64  # assumed size of a text, to choose the chunk size

Arrays = dict[str, np.ndarray]


class Shard:
    """The rows of some consecutive images, collected in memory."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Arrays, Arrays]] = []
        self.faults: list[str] = []
        self.bytes = 0

    def add(self, domain: int, of_pixels: Arrays, of_image: Arrays) -> None:
        """Add an image: the index of its domain, its pixels by the names in PIXELS, and its values by the names in IMAGES."""
        self.rows.append((domain, of_pixels, of_image))
        self.bytes += sum(part.nbytes for part in of_pixels.values())

    def arrays(self) -> Arrays:
        """Concatenate the images: pixels under their names, values of images under image_NAME."""
        rows = self.rows
        whole: Arrays = {
            "domains": np.array([domain for domain, _, _ in rows], np.uint8),
            "counts": np.array([len(of_pixels["label"]) for _, of_pixels, _ in rows], np.int64),
            "faults": np.array(self.faults, dtype=np.str_),
        }
        if rows:
            whole |= {name: np.concatenate([part[name] for _, part, _ in rows]) for name in rows[0][1]}
            whole |= {f"image_{name}": np.stack([part[name] for _, _, part in rows]) for name in rows[0][2]}
        return whole


def shard_path(parts: Path, begin: int, end: int) -> Path:
    """Return the path of the shard of the images from `begin` to before `end`."""
    return parts / f"{begin:08}-{end:08}.npz"


def finished_shards(parts: Path) -> tuple[list[Path], int]:
    """Return the shards that an interrupted run left, without gaps, and the number of images in them. Remove all others."""
    found, images = [], 0
    for path in sorted(parts.glob("*-*.npz")):
        begin, end = (int(number) for number in path.stem.split("-"))
        if begin != images:
            path.unlink()
            continue
        found.append(path)
        images = end
    return found, images


class Writer:
    """Writes each shard to its own file, and appends shards to the cache in a background thread.

    Args:
        file: the unfinished cache, empty.
        finished: shards that an earlier run wrote.
        compression: a name in COMPRESSIONS.
    """

    def __init__(self, file: h5py.File, finished: list[Path], compression: str):
        self._file, self._finished, self._compression = file, finished, compression
        self._skipped: list[str] = []
        self._written = 0

    def __enter__(self) -> "Writer":
        self._pool = ThreadPoolExecutor(1)
        self._jobs: list[Future[None]] = [self._pool.submit(self._append, path) for path in self._finished]
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, path: Path, shard: Shard) -> None:
        """Write a shard to `path`, and let the thread append it to the cache."""
        with new_shard(path) as add:
            for name, array in shard.arrays().items():
                add(name, array)
        for job in self._jobs:
            if job.done():
                job.result()  # raises the error of a job that failed
        self._jobs.append(self._pool.submit(self._append, path))

    def finish(self) -> list[str]:
        """Wait until all shards are in the cache. Return why files were skipped."""
        for job in self._jobs:
            job.result()
        return self._skipped

    def _append(self, path: Path) -> None:
        part, size = dict(read_shard(path)), path.stat().st_size
        check_space(path.parent, size + min(self._written, HELD_BACK))
        self._written += size
        with h5py_errors():
            self._add(part)

    def _add(self, part: Arrays) -> None:
        """Append a shard to the datasets of the cache."""
        self._skipped += part["faults"].tolist()
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


def describe(file: h5py.File, settings: dict, about: dict) -> None:
    """Write the metadata of a cache to which all shards have been appended."""
    about = {**about, "settings": settings, "sda": __version__}
    with h5py_errors():
        file.attrs["kind"], file.attrs["format"] = KIND, FORMAT
        file.attrs["classes"], file.attrs["domains"] = list(about["classes"]), [d["name"] for d in about["domains"]]
        file.attrs["preprocessing"], file.attrs["network_sha256"] = json.dumps(settings["preprocessing"]), settings["network"]
        file.attrs["about"] = json.dumps({key: value for key, value in about.items() if key not in LISTS})
        for name, meaning in LISTS.items():
            dataset = _create(file, name, (len(about[name]),), None, "none")
            dataset[:] = _encoded(about[name])
            dataset.attrs["unit"], dataset.attrs["about"] = "", meaning
        file.attrs["text_sha256"] = text_hash(*all_texts(file))


def _append(file: h5py.File, name: str, values: np.ndarray, compression: str) -> None:
    """Append rows to a dataset, which is created if it does not exist. An object array contains text."""
    if name not in file:
        _create(file, name, (0, *values.shape[1:]), None if values.dtype == object else values.dtype, compression)
    dataset = file[name]
    dataset.resize(len(dataset) + len(values), axis=0)
    dataset[len(dataset) - len(values) :] = _encoded(values) if values.dtype == object else values


def _encoded(texts: Iterable[str]) -> np.ndarray:
    """Return texts as bytes: h5py itself refuses file names that are not UTF-8."""
    return np.array([text.encode(errors="surrogateescape") for text in texts], object)


def _create(file: h5py.File, name: str, shape: Sequence[int], kind: np.dtype | None, compression: str) -> h5py.Dataset:
    """Create a resizable dataset with checksums, and its unit and meaning as attributes. With kind None it contains text."""
    row = 16 * (TEXT_BYTES if kind is None else kind.itemsize) * max(1, int(np.prod(shape[1:])))
    chunk = (max(16, 16 * (CHUNK_BYTES // row)), *shape[1:])
    options = {} if kind is None else {**COMPRESSIONS[compression], "fletcher32": True}  # HDF5 cannot check text
    dtype = h5py.string_dtype() if kind is None else kind
    dataset = file.create_dataset(name, shape, dtype, maxshape=(None, *shape[1:]), chunks=chunk, **options)
    table = IMAGES if name.startswith("images/") else PIXELS
    if (about := table.get(name.removeprefix("images/"))) is not None:
        dataset.attrs["unit"], dataset.attrs["about"] = about[1:]
    return dataset
