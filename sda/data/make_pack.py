"""`sda pack`: making a pack of a dataset.

It takes an hour for a large set, so what is done is kept in OUT.parts, 64 images a file, and a second run goes on from there.
Those files are joined to the pack in the end, which therefore needs twice its size on the disk until then.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from sda.data.descriptor import Descriptor
from sda.data.files import FileError, LabelCodec, read_image, read_pair
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.item import Item
from sda.data.listing import Listing, list_items
from sda.data.pack import FORMAT, KIND, Entry, Pack, check_fresh, decoding, entry_of, first_line, is_native, native_label
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.system.atomic import rename, written_whole
from sda.system.signals import begin_worker

COMPRESSIONS = {"none": {}, "lzf": {"compression": "lzf"}, "gzip": {"compression": "gzip"}}  # of images

_LABELS = "gzip"  # they shrink to a thirtieth and are read no slower than from lzf, which only h5py knows
_SHARD = 64  # images per file of OUT.parts: what a kill can lose

Count = Callable[[str, int, int], None]  # what is being done, how many are done, how many there are


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
) -> list[str]:
    """Pack `splits` of a dataset into the file `out`, or go on with what an interrupted run left in `out`.parts.

    Images without a label file are packed too. Nothing stands under the name `out` before it is complete; a pack that is
    there already, made with these settings and fresh, is left as it is.

    Args:
        name: of the dataset, as the user gave it.
        size: (height, width) that images and training labels are resized to, exactly as `Dataset` does.
        compression: of the images, a name in COMPRESSIONS. Photographs shrink by a fifth (lzf) or by half (gzip) and take over
            ten times as long to read; what lzf makes of one image may differ by a few bytes from run to run.
        processes: that read and resize, by default one per core; 1 works in this process.
        progress: told of each image read, then of each written.
        skip: leave out unusable files rather than raise.

    Returns:
        Why each of the images left out could not be used.

    Raises:
        FileError: an unusable file.
        SdaError: `out` exists; `out`.parts comes from other settings; a full disk, after which the next run goes on.
    """
    listings = {split: list_items(descriptor, root, split) for split in splits}
    settings = {
        "format": FORMAT,
        "root": str(root.resolve()),
        "size": list(size),
        "compression": compression,
        "encodings": {split: listing.encoding for split, listing in listings.items()},
        **decoding(descriptor),
    }
    parts = out.with_name(out.name + ".parts")
    if os.path.lexists(out):
        pack = _existing(out, settings, descriptor, skip)
        if _read_settings(parts) == settings:  # killed between the last two strokes of an earlier run
            shutil.rmtree(parts, ignore_errors=True)
        return pack.faults
    try:
        _begin(parts, settings)
        shards = _make_shards(parts, listings, descriptor, settings, processes or os.cpu_count() or 1, progress, skip)
        whole = {**descriptor.model_dump(mode="json"), "classes": descriptor.table().colors}
        left_out = _join(parts, shards, {"name": name, "descriptor": whole, "settings": settings}, out, progress)
        shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full: make room" if full else "mend that"
        raise SdaError(
            f"{out}: cannot be written ({first_line(error)}); {what} and run the same command again: it goes on from {parts}"
        ) from None
    except BrokenProcessPool:
        raise SdaError(
            f"{out}: a process that read images was killed, for want of memory perhaps; run the same command again with "
            f"fewer processes: it goes on from {parts}"
        ) from None
    return left_out


def _existing(out: Path, settings: dict, descriptor: Descriptor, skip: bool) -> Pack:
    """The pack that stands under the name `out`, if it is the one that would be made."""
    try:
        pack = Pack(out)
        reason = _difference(pack.settings, settings)
        if not reason:
            check_fresh(pack, descriptor)
            if pack.faults and not skip:
                reason = f"it lacks {len(pack.faults)} unusable images; {pack.faults[0]}"
    except SdaError as error:
        reason = str(error).removeprefix(f"{out}: ")
    if reason:
        raise SdaError(f"{out}: exists already ({reason}); nothing is overwritten: remove it, or name another --out")
    return pack


def _difference(there: dict, here: dict) -> str:
    """The first setting that is another there than here, or nothing."""
    for key in here:
        if there.get(key) != here[key]:
            short = max(len(str(there.get(key))), len(str(here[key]))) < 80
            return f"another {key}: {there.get(key)}, not {here[key]}" if short else f"other {key}"
    return ""


# OUT.parts


def _read_settings(parts: Path) -> dict | None:
    try:
        return json.loads((parts / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _begin(parts: Path, settings: dict) -> None:
    """Make the folder of an unfinished pack, or see that it is this one's."""
    parts.mkdir(parents=True, exist_ok=True)
    there = _read_settings(parts)
    if there is None and not any(path.suffix == ".zip" for path in parts.iterdir()):
        with written_whole(parts / "settings.json", f".{os.getpid()}") as file:
            file.write(json.dumps(settings).encode())
    elif other := _difference(there or {}, settings):
        raise SdaError(f"{parts}: holds an unfinished pack ({other}); remove this folder, or name another --out")


@dataclass(frozen=True)
class _Record:
    """How an image's chunks go into HDF5: the masks say which filters were left out, as lzf is where it saves nothing."""

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
    compression: str
    fault: str  # what sda doctor found wrong, or nothing

    def run(self) -> tuple[_Record, bytes, bytes]:
        """Read the pair, resize it as `Dataset` does, and make chunks of it, empty where there is none.

        A fault is part of the record: an exception would end the pool.
        """
        item, entry, label = self.item, entry_of(self.item), None
        if self.fault:
            fault = f"{self.fault}; sda doctor found that: mend it, or leave such pairs out with --bad-files skip"
            return _Record(self.split, Entry(*entry.stamps, fault=fault)), b"", b""
        try:
            if item.label is None:
                image = read_image(item.image)
            else:
                image, label = read_pair(item.image, item.label, self.codec)
            digest = hashlib.sha256(item.image.read_bytes()).hexdigest()
        except (FileError, OSError) as error:
            return _Record(self.split, Entry(*entry.stamps, fault=str(error))), b"", b""
        if image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        image_mask, image_chunk = _chunk(np.asarray(image), self.compression)
        entry = Entry(*entry.stamps, sha256=digest)
        if label is None:
            return _Record(self.split, entry, image_mask), image_chunk, b""
        if not is_native(self.split) and label.shape != self.size:
            label = np.asarray(Image.fromarray(label).resize(self.size[::-1], Image.Resampling.NEAREST))
        label_mask, label_chunk = _chunk(label, _LABELS)
        return _Record(self.split, entry, image_mask, label_mask, label.shape), image_chunk, label_chunk


def _chunk(array: np.ndarray, compression: str) -> tuple[int, bytes]:
    """`array` as one chunk with its filter mask, compressed and checksummed by HDF5 itself, in a file in memory."""
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("chunk", data=array, chunks=array.shape, fletcher32=True, **COMPRESSIONS[compression])
        return dataset.id.read_direct_chunk((0,) * array.ndim)


def _make_shards(
    parts: Path, listings: dict[str, Listing], descriptor: Descriptor, settings: dict, processes: int, progress: Count, skip: bool
) -> list[Path]:
    """Write those shards that are not there yet, in order.

    Returns:
        All shards: zip files of chunks as they are, each with its checksum, and of a list of what they are.
    """
    tasks = []
    for split, listing in listings.items():
        codec = LabelCodec(descriptor, listing.encoding, np.arange(256, dtype=np.uint8))
        bad = bad_pairs(Path(settings["root"]), listing.items, descriptor)
        size, compression = tuple(settings["size"]), settings["compression"]
        tasks += [_Task(split, item, codec, size, compression, bad.get(item.key, "")) for item in listing.items]
    places = range(0, len(tasks), _SHARD)
    shards = {parts / f"{number:05}.zip": tasks[place : place + _SHARD] for number, place in enumerate(places)}
    missing = {path: shard for path, shard in shards.items() if not _is_done(path, shard, skip)}
    done = len(tasks) - sum(map(len, missing.values()))
    progress("reading images", done, len(tasks))
    with contextlib.closing(_run([task for shard in missing.values() for task in shard], processes)) as results:
        for path, shard in missing.items():
            records = []
            with written_whole(path, f".{os.getpid()}") as file, zipfile.ZipFile(file, "w") as archive:
                for record, image, label in itertools.islice(results, len(shard)):
                    if record.entry.fault and not skip:
                        raise FileError(record.entry.fault)
                    archive.writestr(f"{len(records)}.image", image)
                    archive.writestr(f"{len(records)}.label", label)
                    records.append(record)
                    done += 1
                    progress("reading images", done, len(tasks))
                archive.writestr("records.json", json.dumps([asdict(record) for record in records]))
    return list(shards)


def _is_done(path: Path, tasks: list[_Task], skip: bool) -> bool:
    """Whether a shard holds just these images, from these files as they are now."""
    try:
        records = _records(path)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
        return False
    found = [(record.split, record.entry.stamps) for record in records if skip or not record.entry.fault]
    return found == [(task.split, entry_of(task.item).stamps) for task in tasks]


def _records(shard: Path) -> list[_Record]:
    with zipfile.ZipFile(shard) as archive:
        records = json.loads(archive.read("records.json"))
    return [_Record(**{**record, "entry": Entry(**record["entry"])}) for record in records]


def _run(tasks: list[_Task], processes: int) -> Iterator[tuple[_Record, bytes, bytes]]:
    """What the tasks give, in their order; few at a time, so that memory does not grow with the data set."""
    if min(processes, len(tasks)) <= 1:
        yield from map(_Task.run, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), context, begin_worker) as pool:
        waiting = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(task.run))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller gave up: what has not begun does not begin
            for future in waiting:
                future.cancel()


# From OUT.parts to OUT


def _join(parts: Path, shards: list[Path], about: dict, out: Path, progress: Count) -> list[str]:
    """Copy the chunks of all shards, as they are, into one HDF5 file, and give it the name `out`; the faults."""
    temporary = parts / "pack.h5.tmp"
    temporary.unlink(missing_ok=True)
    needed = sum(shard.stat().st_size for shard in shards)
    free = shutil.disk_usage(parts).free
    if needed > free:  # seen beforehand: it takes long until the disk is full
        raise OSError(errno.ENOSPC, f"joining what was read takes {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
    records = {shard: _records(shard) for shard in shards}
    splits = {split: [] for split in about["settings"]["encodings"]}
    left_out = {split: [] for split in splits}
    for record in itertools.chain.from_iterable(records.values()):
        (left_out if record.entry.fault else splits)[record.split].append(record.entry)
    for split, entries in splits.items():
        if not entries:
            raise SdaError(f"{out}: not one image of {split} can be used; the first: {left_out[split][0].fault}")
    about |= {"splits": _plain(splits), "left_out": _plain(left_out)}
    try:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:  # the oldest with checksums in its indices
            _fill(file, records, about, progress)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if os.path.lexists(out):
            raise SdaError(
                f"{out}: was made by somebody else meanwhile; nothing is overwritten: remove it, or name another --out"
            )
        rename(temporary, out)
    except RuntimeError as error:  # h5py's other word for a failed write
        raise OSError(first_line(error)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return [entry.fault for entries in left_out.values() for entry in entries]


def _fill(file: h5py.File, records: dict[Path, list[_Record]], about: dict, progress: Count) -> None:
    """Write all that a pack holds."""
    size, compression = tuple(about["settings"]["size"]), about["settings"]["compression"]
    for split, entries in about["splits"].items():
        _create(file, f"images/{split}", (len(entries), *size, 3), (1, *size, 3), compression)
        if not is_native(split):
            _create(file, f"labels/{split}", (len(entries), *size), (1, *size), _LABELS)
    done, total, counts = 0, sum(map(len, records.values())), dict.fromkeys(about["splits"], 0)
    for shard in records:
        with zipfile.ZipFile(shard) as archive:
            for place, record in enumerate(records[shard]):
                if not record.entry.fault:
                    _copy(file, counts[record.split], record, archive, place)
                    counts[record.split] += 1
                done += 1
                progress("writing the pack", done, total)
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    _create(file, "about", text.shape, text.shape, "gzip")[...] = text
    file.attrs["kind"], file.attrs["format"] = KIND, FORMAT


def _copy(file: h5py.File, index: int, record: _Record, archive: zipfile.ZipFile, place: int) -> None:
    """Copy the image at `place` in a shard to `index` of its split, and its label if it has one."""
    try:
        image, label = archive.read(f"{place}.image"), archive.read(f"{place}.label")
    except zipfile.BadZipFile as error:
        os.unlink(archive.filename)
        raise SdaError(
            f"{archive.filename}: damaged on the disk ({error}) and therefore removed; run the same command again"
        ) from None
    file[f"images/{record.split}"].id.write_direct_chunk((index, 0, 0, 0), image, record.image_mask)
    if not label:
        return
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
