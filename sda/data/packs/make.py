"""Make packs (`sda pack`).

A large dataset takes an hour, so finished work is kept as shards of 64 images (`sda.system.resumable`). At the end they are
copied into the pack, so writing a pack temporarily takes twice its size on disk.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from sda.data.descriptor import Descriptor
from sda.data.files import FileError, LabelCodec, read_image, read_pair
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.encoding import check_encoding
from sda.data.item import Item
from sda.data.listing import Listing, list_items
from sda.data.packs.pack import FORMAT, KIND, Entry, Pack, check_fresh, decoding, entry_of, is_native, native_label
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.pictures import resize_image, resize_nearest
from sda.sizes import Fit, fitted
from sda.system.children import ChildDied, run_in_order
from sda.system.console import Count
from sda.system.resumable import check_space, difference, h5py_errors, new_hdf5, new_shard, read_shard, write_resumable

COMPRESSIONS: dict[str, dict] = {"none": {}, "lzf": {"compression": "lzf"}, "gzip": {"compression": "gzip"}}  # of images

_LABELS = "gzip"  # shrinks labels to a thirtieth and reads as fast as lzf, which only h5py supports
_SHARD = 64  # images per shard: a kill loses at most this many

Chunks = tuple["_Record", bytes, bytes]  # of one image: its record, image chunk and label chunk


def write_pack(
    out: Path,
    name: str,
    descriptor: Descriptor,
    root: Path,
    size: tuple[int, int],
    splits: Sequence[str],
    compression: str = "none",
    processes: int | None = None,
    progress: Count = lambda what, done, total: None,
    skip: bool = False,
    fit: Fit = "stretch",
) -> list[str]:
    """Pack `splits` of a dataset into the file `out`, or resume what an interrupted call left in OUT.parts.

    Images without a label file are packed too. `out` appears only when it is complete. If it exists, was made with these
    settings and is up to date, it stays as it is.

    Args:
        name: name of the dataset, as the user gave it.
        size: (height, width) that images and training labels are resized to, exactly as `Dataset` does. fit: how.
        compression: compression of the images, a name in COMPRESSIONS. Photographs shrink by a fifth (lzf) or by half (gzip)
            and take more than ten times as long to read. lzf may produce slightly different bytes in another run.
        processes: number of processes that read and resize; one per core by default; 1: this process.
        progress: called after each image that is read, then after each that is written.
        skip: skip unusable files instead of raising FileError.

    Returns:
        The reason why each of the skipped images could not be used.

    Raises:
        FileError: a file is unusable.
        SdaError: the labels contradict the descriptor; another `out` exists; OUT.parts has other settings; another process is
            writing `out`; the disk is full. The next call resumes.
    """
    listings = {split: list_items(descriptor, root, split) for split in splits}
    for listing in listings.values():
        check_encoding(name, descriptor, listing, root)
    settings = {
        "format": FORMAT,
        "root": str(root.resolve()),
        "size": list(size),
        "fit": fit,
        "compression": compression,
        "encodings": {split: listing.encoding for split, listing in listings.items()},
        **decoding(descriptor),
    }

    def existing() -> list[str]:
        pack = Pack(out)
        if other := difference({**pack.settings, "fit": pack.fit}, settings):
            raise SdaError(other)
        check_fresh(pack, descriptor)
        if pack.faults and not skip:
            raise SdaError(f"it lacks {len(pack.faults)} unusable images, the first: {pack.faults[0]}")
        return pack.faults

    def write(parts: Path) -> list[str]:
        shards = _write_shards(parts, listings, descriptor, settings, processes or os.cpu_count() or 1, progress, skip)
        whole = {**descriptor.model_dump(mode="json"), "classes": descriptor.table().colors}
        return _join(parts, shards, {"name": name, "descriptor": whole, "settings": settings}, out, progress)

    try:
        return write_resumable(out, settings, existing, write)
    except ChildDied as death:
        raise SdaError(
            f"{out}: while reading images, {death}; run the same command again with fewer processes to resume"
        ) from None


# Shards


@dataclass(frozen=True)
class _Record:
    """How an image's chunks go into HDF5. The masks say which filters HDF5 skipped, for example lzf where it saves nothing."""

    split: str
    entry: Entry
    image_mask: int = 0
    label_mask: int = 0
    label_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Task:
    split: str
    item: Item
    codec: LabelCodec
    size: tuple[int, int]
    fit: Fit
    compression: str
    fault: str  # the problem that sda doctor found, or empty

    def run(self) -> Chunks:
        """Read the pair, resize it as `Dataset` does, and turn it into chunks, which are empty for missing parts.

        An unusable file is reported in the record, because an exception would end the pool.
        """
        item, entry, label = self.item, entry_of(self.item), None
        if self.fault:
            fault = f"{self.fault}; sda doctor found that: fix it, or skip such pairs with --bad-files skip"
            return _Record(self.split, replace(entry, fault=fault)), b"", b""
        try:
            if item.label is None:
                image = read_image(item.image)
            else:
                image, label = read_pair(item, self.codec)
            digest = hashlib.sha256(item.image.read_bytes()).hexdigest()
        except (FileError, OSError) as error:
            return _Record(self.split, replace(entry, fault=str(error))), b"", b""
        height, width = fitted(image.size[::-1], self.size, self.fit)
        image_mask, image_chunk = _chunk(self._padded(np.asarray(resize_image(image, (height, width)))), self.compression)
        entry = replace(entry, sha256=digest, height=height, width=width)
        if label is None:
            return _Record(self.split, entry, image_mask), image_chunk, b""
        if not is_native(self.split):
            label = self._padded(resize_nearest(label, (height, width)))
        label_mask, label_chunk = _chunk(label, _LABELS)
        return _Record(self.split, entry, image_mask, label_mask, label.shape), image_chunk, label_chunk

    def _padded(self, array: np.ndarray) -> np.ndarray:
        """Extend an image or label at the bottom and right to the pack's size."""
        sides = [(0, side - own) for side, own in zip(self.size, array.shape, strict=False)]
        return np.pad(array, sides + [(0, 0)] * (array.ndim - 2), constant_values=IGNORE)


def _chunk(array: np.ndarray, compression: str) -> tuple[int, bytes]:
    """Return the filter mask and bytes of `array` as one chunk, compressed and checksummed by HDF5 in a file in memory."""
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("chunk", data=array, chunks=array.shape, fletcher32=True, **COMPRESSIONS[compression])
        return dataset.id.read_direct_chunk((0,) * array.ndim)


def _write_shards(
    parts: Path, listings: dict[str, Listing], descriptor: Descriptor, settings: dict, processes: int, progress: Count, skip: bool
) -> list[Path]:
    """Write the missing and outdated shards, in order.

    Returns:
        All shards. Each holds an image chunk and a label chunk per image, as bytes, and the JSON list of their records.
    """
    tasks = []
    for split, listing in listings.items():
        codec = LabelCodec(descriptor, listing.encoding, np.arange(256, dtype=np.uint8))
        bad = bad_pairs(Path(settings["root"]), listing.items, descriptor)
        size, fit, compression = tuple(settings["size"]), settings["fit"], settings["compression"]
        tasks += [_Task(split, item, codec, size, fit, compression, bad.get(item.key, "")) for item in listing.items]
    places = range(0, len(tasks), _SHARD)
    shards = {parts / f"{number:05}.npz": tasks[place : place + _SHARD] for number, place in enumerate(places)}
    missing = {path: shard for path, shard in shards.items() if not _is_done(path, shard, skip)}
    done = len(tasks) - sum(map(len, missing.values()))
    progress("reading images", done, len(tasks))
    with closing(_run([task for shard in missing.values() for task in shard], processes)) as results:
        for path, shard in missing.items():
            records: list[_Record] = []
            with new_shard(path) as add:
                for record, image, label in itertools.islice(results, len(shard)):
                    if record.entry.fault and not skip:
                        raise FileError(record.entry.fault)
                    add(f"{len(records)}.image", np.frombuffer(image, np.uint8))
                    add(f"{len(records)}.label", np.frombuffer(label, np.uint8))
                    records.append(record)
                    done += 1
                    progress("reading images", done, len(tasks))
                add("records", _as_bytes([asdict(record) for record in records]))
    return list(shards)


def _is_done(path: Path, tasks: list[_Task], skip: bool) -> bool:
    """Return whether a shard holds exactly these images, read from these files as they are now."""
    try:
        records = _records(path)
    except (FileNotFoundError, SdaError):  # missing or damaged
        return False
    found = [(record.split, record.entry.stamps) for record in records if skip or not record.entry.fault]
    return found == [(task.split, entry_of(task.item).stamps) for task in tasks]


def _records(shard: Path) -> list[_Record]:
    [(_, text)] = read_shard(shard, "records")
    return [_Record(**{**record, "entry": Entry(**record["entry"])}) for record in json.loads(text.tobytes())]


def _as_bytes(values: object) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def _run(tasks: list[_Task], processes: int) -> Generator[Chunks, None, None]:
    """Yield the results of the tasks in order."""
    if min(processes, len(tasks)) <= 1:
        yield from map(_Task.run, tasks)
        return
    yield from run_in_order(_Task.run, tasks, min(processes, len(tasks)))


# From the shards to the pack


def _join(parts: Path, shards: list[Path], about: dict, out: Path, progress: Count) -> list[str]:
    """Copy the chunks of all shards, as they are, into one HDF5 file with the name `out`. Return why images were skipped."""
    records = {shard: _records(shard) for shard in shards}
    splits: dict[str, list[Entry]] = {split: [] for split in about["settings"]["encodings"]}
    left_out: dict[str, list[Entry]] = {split: [] for split in splits}
    for record in itertools.chain.from_iterable(records.values()):
        (left_out if record.entry.fault else splits)[record.split].append(record.entry)
    for split, entries in splits.items():
        if not entries:
            raise SdaError(f"{out}: no image of {split} can be used; the first error: {left_out[split][0].fault}")
    about |= {"splits": _plain(splits), "left_out": _plain(left_out)}
    with new_hdf5(parts, out) as file, h5py_errors():
        check_space(parts, sum(shard.stat().st_size for shard in shards))  # now, because filling the disk takes long
        _fill(file, records, about, progress)
    return [entry.fault for entries in left_out.values() for entry in entries]


def _fill(file: h5py.File, records: dict[Path, list[_Record]], about: dict, progress: Count) -> None:
    """Write the whole content of a pack."""
    (height, width), compression = about["settings"]["size"], about["settings"]["compression"]
    for split, entries in about["splits"].items():
        _create(file, f"images/{split}", (len(entries), height, width, 3), (1, height, width, 3), compression)
        if not is_native(split):
            _create(file, f"labels/{split}", (len(entries), height, width), (1, height, width), _LABELS)
    done, total, counts = 0, sum(map(len, records.values())), dict.fromkeys(about["splits"], 0)
    for shard in records:
        chunks = (array.tobytes() for _, array in read_shard(shard))
        for record in records[shard]:
            image, label = next(chunks), next(chunks)
            if not record.entry.fault:
                _copy(file, counts[record.split], record, image, label)
                counts[record.split] += 1
            done += 1
            progress("writing the pack", done, total)
    text = _as_bytes(about)
    _create(file, "about", text.shape, text.shape, "gzip")[...] = text
    file.attrs["kind"], file.attrs["format"] = np.bytes_(KIND), FORMAT  # of fixed length, because only that has a checksum


def _copy(file: h5py.File, index: int, record: _Record, image: bytes, label: bytes) -> None:
    """Write an image's chunk to `index` of its split, and its label's chunk if it has one."""
    file[f"images/{record.split}"].id.write_direct_chunk((index, 0, 0, 0), image, record.image_mask)
    if not label:
        return
    corner: tuple[int, ...]
    if is_native(record.split):
        shape = tuple(record.label_shape)
        labels, corner = _create(file, native_label(record.split, index), shape, shape, _LABELS), (0, 0)
    else:
        labels, corner = file[f"labels/{record.split}"], (index, 0, 0)
    labels.id.write_direct_chunk(corner, label, record.label_mask)


def _create(file: h5py.File, name: str, shape: tuple, chunks: tuple, compression: str) -> h5py.Dataset:
    filters = COMPRESSIONS[compression]
    return file.create_dataset(name, shape, np.uint8, chunks=chunks, fillvalue=IGNORE, fletcher32=True, **filters)


def _plain(splits: dict[str, list[Entry]]) -> dict[str, list[dict]]:
    return {split: [asdict(entry) for entry in entries] for split, entries in splits.items()}
