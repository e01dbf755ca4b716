"""One file instead of thousands: the images and labels of a dataset at training resolution, checksummed, read by number.

A pack is an HDF5 file of format 1.10:

    /images/SPLIT           uint8 (N, height, width, 3) RGB, one chunk per image
    /labels/train           uint8 (N, height, width) train ids of the dataset's own class table, 255 = ignored or no label
    /labels/SPLIT/000012    any other split: uint8 at the label file's own size, because scores are taken there
    /about                  JSON: what was packed and how, and for every image its file, size, time and SHA-256

Every chunk carries a Fletcher-32 checksum, so that a damaged one is noticed when it is read. Making a pack of a large set
takes an hour: what is done is kept in OUT.parts, 64 images a file, and a second run goes on from there. Those files are
joined to the pack in the end, which therefore needs twice its size on the disk until then.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
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

from sda.data.descriptor import Descriptor, Item, Listing, list_items
from sda.data.files import FileError, LabelCodec, read_image, read_pair
from sda.errors import SdaError
from sda.labels import IGNORE

FORMAT = 1
COMPRESSIONS = {"none": {}, "lzf": {"compression": "lzf"}, "gzip": {"compression": "gzip"}}  # of images

_KIND = "sda pack"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LABELS = "gzip"  # they shrink to a thirtieth and are read no slower than from lzf, which only h5py knows
_SHARD = 64  # images per file of OUT.parts: what a kill can lose

Count = Callable[[str, int, int], None]  # what is being done, how many are done, how many there are


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a pack, and its files as they were when they were read.

    Attributes:
        key: the image's path relative to the root.
        bytes, mtime_ns: of the image file; -1 when there was none.
        label_bytes, label_mtime_ns: of the label file; -1 when there was none.
        sha256: of the image file's bytes, in hexadecimal digits.
        fault: why the pair was left out; empty for what is in the pack.
    """

    key: str
    bytes: int
    mtime_ns: int
    label_bytes: int
    label_mtime_ns: int
    sha256: str = ""
    fault: str = ""

    @property
    def has_label(self) -> bool:
        return self.label_bytes >= 0

    @property
    def stamps(self) -> tuple:
        return self.key, self.bytes, self.mtime_ns, self.label_bytes, self.label_mtime_ns


class Pack:
    """A pack that is read. It may be pickled and forked: every process opens the file itself, when it first reads an image.

    Attributes:
        path, name, title: the file; the name of the dataset it was made from; that dataset's title.
        descriptor: the dataset's descriptor as plain values, with its classes written out: name → [r, g, b].
        classes: their names, in the order of the train ids.
        root: the folder it was made from, which may be gone.
        size: (height, width) of images and training labels.
        splits: split → its images, in the order in which they are numbered.
        left_out: split → the images that could not be used.
        settings: what it was made with.

    Raises:
        SdaError: missing, no HDF5 file, cut short, not a pack, or of another format.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._stamp = _stamp(self.path)
        about = _read_about(self.path)
        self.name: str = about["name"]
        self.descriptor: dict = about["descriptor"]
        self.title: str = self.descriptor["title"]
        self.classes = list(self.descriptor["classes"])
        self.settings: dict = about["settings"]
        self.root = Path(self.settings["root"])
        self.size: tuple[int, int] = tuple(self.settings["size"])
        self.splits = {split: [Entry(**entry) for entry in entries] for split, entries in about["splits"].items()}
        self.left_out = {split: [Entry(**entry) for entry in entries] for split, entries in about["left_out"].items()}
        self._opened: tuple[int, h5py.File] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    @property
    def faults(self) -> list[str]:
        """Why each of the images left out could not be used."""
        return [entry.fault for entries in self.left_out.values() for entry in entries]

    def image(self, split: str, index: int) -> np.ndarray:
        """The image as (H, W, 3) uint8 RGB, at the size of the pack. Raises FileError when it cannot be read."""
        return self._read(self.splits[split][index], f"images/{split}", index)

    def label(self, split: str, index: int) -> np.ndarray:
        """The label as (H, W) uint8 train ids of the pack's own classes, 255 = ignored.

        At the size of the pack for `train`, at that of its file for any other split.

        Raises:
            FileError: the image has no label, or it cannot be read.
        """
        entry = self.splits[split][index]
        if not entry.has_label:
            raise FileError(f"{self.path}: {entry.key} has no label")
        if _is_native(split):
            return self._read(entry, _native_label(split, index), ())
        return self._read(entry, f"labels/{split}", index)

    def _read(self, entry: Entry, dataset: str, place: int | tuple[()]) -> np.ndarray:
        try:
            return self._file()[dataset][place]
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py knows no exception of its own
            raise FileError(
                f"{self.path}: {entry.key} cannot be read from this pack ({_line(error)}); make the pack anew with sda pack, "
                "or leave it out with --bad-files skip"
            ) from None

    def _file(self) -> h5py.File:
        """The file as this process opened it. Two threads may open it at once: both are served, one handle is kept."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            if opened is not None:  # inherited by a fork: HDF5 would hand out the parent's handle again
                opened[1].close()
            if _stamp(self.path) != self._stamp:
                raise OSError("the file is gone or was replaced after it was opened first")
            # nobody writes to a pack, and locks fail on many network file systems
            self._opened = opened = os.getpid(), h5py.File(self.path, "r", locking=False)
        return opened[1]


@dataclass(frozen=True)
class Packed:
    """One image of a pack: a `Stored`."""

    pack: Pack
    split: str
    index: int
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        return self.pack.path

    def image(self) -> np.ndarray:
        return self.pack.image(self.split, self.index)

    def label(self) -> np.ndarray:
        return self.pack.label(self.split, self.index)


def list_packed(path: Path, descriptor: Descriptor, split: str, size: tuple[int, int] | None) -> Listing:
    """The images of a split in a pack, in the place of `list_items`.

    Args:
        size: (height, width) that they are wanted at; None: at their own.

    Raises:
        SdaError: the pack cannot be read or is stale, lacks the split, or holds another size.
    """
    pack = Pack(path)
    check_fresh(pack, descriptor)
    if split not in pack.splits:
        raise SdaError(f"{path}: a pack without the split {split!r}, of {', '.join(pack.splits)}; pack that, too")
    if pack.size != size:
        wanted = f"{size[0]}x{size[1]}" if size else "images at their own size"
        raise SdaError(
            f"{path}: a pack at {pack.size[0]}x{pack.size[1]}, where {wanted} is wanted; pack that, or give the folder"
        )
    return _listing(pack, split)


def list_packed_splits(path: Path, descriptor: Descriptor, splits: Sequence[str]) -> dict[str, Listing]:
    """Those of the splits that a pack holds, at its own size. SdaError: as `list_packed`, or it holds none of them."""
    pack = Pack(path)
    check_fresh(pack, descriptor)
    listings = {split: _listing(pack, split) for split in splits if split in pack.splits}
    if not listings:
        raise SdaError(f"{path}: a pack of {', '.join(pack.splits)}, without {' or '.join(splits)}")
    return listings


def _listing(pack: Pack, split: str) -> Listing:
    items = []
    for index, entry in enumerate(pack.splits[split]):
        stored = Packed(pack, split, index, entry.bytes, entry.sha256)
        items.append(Item(entry.key, pack.root / entry.key, pack.path if entry.has_label else None, stored))
    return Listing(items, "train_ids")


def _read_about(path: Path) -> dict:
    """All of a pack but its images and labels."""
    if not path.is_file():
        what = "a folder, not a pack" if path.is_dir() else "no such pack; make it with sda pack"
        raise SdaError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                raise SdaError(f"{path}: not an HDF5 file, let alone a pack; give a dataset's folder, or a file made by sda pack")
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("kind") != _KIND:
                raise SdaError(f"{path}: an HDF5 file, but not a pack; give a dataset's folder, or a file made by sda pack")
            found = file.attrs["format"]
            if found != FORMAT:
                raise SdaError(f"{path}: a pack of format {found}, this sda reads format {FORMAT}; make it anew with sda pack")
            return json.loads(file["about"][()].tobytes())
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py knows no exception of its own
        raise SdaError(
            f"{path}: this pack cannot be read, is it cut short? ({_line(error)}); make it anew with sda pack"
        ) from None


def check_fresh(pack: Pack, descriptor: Descriptor) -> None:
    """Refuse a pack that no longer holds what its dataset does.

    The labels' decoding is compared always; where the folder that was packed still exists, so are its files: their names,
    sizes and times, at the cost of looking each of them up.

    Args:
        descriptor: the dataset's, as it is now.

    Raises:
        SdaError: another dataset, a changed descriptor, or a file that is new, gone or changed; names it.
    """
    again = f"run sda pack again, into a new file, or give the folder {pack.root} instead"
    if pack.title != descriptor.title:
        raise SdaError(
            f"{pack.path}: a pack of {pack.title}, where {descriptor.title} is expected; give that one's pack or folder"
        )
    for part, value in _decoding(descriptor).items():
        if pack.settings[part] != value:
            raise SdaError(
                f"{pack.path}: the descriptor of {pack.title} has changed since this was packed: other {part}; "
                "run sda pack again, into a new file, or undo the change"
            )
    if not pack.root.is_dir():
        return
    for split, entries in pack.splits.items():
        try:
            listing = list_items(descriptor, pack.root, split)
        except SdaError as error:
            raise SdaError(f"{pack.path}: the folder has changed since it was packed: {error}; {again}") from None
        packed = {entry.key: entry for entry in entries + pack.left_out[split]}
        for item in listing.items:
            entry = packed.pop(item.key, None)
            if entry is None:
                raise SdaError(f"{pack.path}: {item.image} is new since this was packed; {again}")
            if change := _change(entry, item):
                raise SdaError(f"{pack.path}: {change} since it was packed; {again}")
        for key in packed:
            raise SdaError(f"{pack.path}: {pack.root / key} is gone since it was packed; {again}")
        if listing.encoding != pack.settings["encodings"][split]:
            raise SdaError(f"{pack.path}: the labels of {split} are now read as {listing.encoding}; {again}")


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
        **_decoding(descriptor),
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
            f"{out}: cannot be written ({_line(error)}); {what} and run the same command again: it goes on from {parts}"
        ) from None
    except BrokenProcessPool:
        raise SdaError(
            f"{out}: a process that read images was killed, for want of memory perhaps; run the same command again with "
            f"fewer processes: it goes on from {parts}"
        ) from None
    return left_out


# Settings and stamps: what makes one pack another


def _decoding(descriptor: Descriptor) -> dict:
    """All of a descriptor that decides which train id a label value becomes; the order of the classes counts."""
    return {
        "classes": [[name, *color] for name, color in descriptor.table().colors.items()],
        "ids": dict(sorted(descriptor.ids.items())),
        "void": sorted(descriptor.void),
        "void_colors": sorted(descriptor.void_colors),
    }


def _is_native(split: str) -> bool:
    """Whether labels keep their own size: all but the training split's are scored at it."""
    return split != "train"


def _native_label(split: str, index: int) -> str:
    return f"labels/{split}/{index:06}"


def _stamp(path: Path | None) -> tuple[int, int]:
    """Size and time of a file; (-1, -1) for none."""
    try:
        status = os.stat(path) if path else None
    except OSError:
        status = None
    return (status.st_size, status.st_mtime_ns) if status else (-1, -1)


def _entry(item: Item) -> Entry:
    return Entry(item.key, *_stamp(item.image), *_stamp(item.label))


def _change(entry: Entry, item: Item) -> str:
    """What happened to the files of an item since `entry` was made, or nothing."""
    now = _entry(item)
    if now.stamps[1:3] != entry.stamps[1:3]:
        return f"{item.image} has changed"
    if now.has_label != entry.has_label:
        return f"{item.label} is new" if now.has_label else f"the label of {item.image} is gone"
    return f"{item.label} has changed" if now.stamps != entry.stamps else ""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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


# Making a pack: OUT.parts


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
        with _written_whole(parts / "settings.json") as file:
            file.write(json.dumps(settings).encode())
    elif other := _difference(there or {}, settings):
        raise SdaError(f"{parts}: holds an unfinished pack ({other}); remove this folder, or name another --out")


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator:
    """A file to write to, which takes the name `path` once it is whole and on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _rename(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # the new name too has to survive a power cut
        os.fsync(folder)
    finally:
        os.close(folder)


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

    def run(self) -> tuple[_Record, bytes, bytes]:
        """Read the pair, resize it as `Dataset` does, and make chunks of it, empty where there is none.

        A fault is part of the record: an exception would end the pool.
        """
        item, entry, label = self.item, _entry(self.item), None
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
        if not _is_native(self.split) and label.shape != self.size:
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
        tasks += [_Task(split, item, codec, tuple(settings["size"]), settings["compression"]) for item in listing.items]
    places = range(0, len(tasks), _SHARD)
    shards = {parts / f"{number:05}.zip": tasks[place : place + _SHARD] for number, place in enumerate(places)}
    missing = {path: shard for path, shard in shards.items() if not _is_done(path, shard, skip)}
    done = len(tasks) - sum(map(len, missing.values()))
    progress("reading images", done, len(tasks))
    with contextlib.closing(_run([task for shard in missing.values() for task in shard], processes)) as results:
        for path, shard in missing.items():
            records = []
            with _written_whole(path) as file, zipfile.ZipFile(file, "w") as archive:
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
    return found == [(task.split, _entry(task.item).stamps) for task in tasks]


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
    with ProcessPoolExecutor(min(processes, len(tasks)), context, _begin_worker) as pool:
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


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends: a pool's workers outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Making a pack: from OUT.parts to OUT


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
        _rename(temporary, out)
    except RuntimeError as error:  # h5py's other word for a failed write
        raise OSError(_line(error)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return [entry.fault for entries in left_out.values() for entry in entries]


def _fill(file: h5py.File, records: dict[Path, list[_Record]], about: dict, progress: Count) -> None:
    """Write all that a pack holds."""
    size, compression = tuple(about["settings"]["size"]), about["settings"]["compression"]
    for split, entries in about["splits"].items():
        _create(file, f"images/{split}", (len(entries), *size, 3), (1, *size, 3), compression)
        if not _is_native(split):
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
    file.attrs["kind"], file.attrs["format"] = _KIND, FORMAT


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
    if _is_native(record.split):
        shape = tuple(record.label_shape)
        labels, corner = _create(file, _native_label(record.split, index), shape, shape, _LABELS), (0, 0)
    else:
        labels, corner = file[f"labels/{record.split}"], (index, 0, 0)
    labels.id.write_direct_chunk(corner, label, record.label_mask)


def _create(file: h5py.File, name: str, shape: tuple, chunks: tuple, compression: str) -> h5py.Dataset:
    filters = COMPRESSIONS[compression]
    return file.create_dataset(name, shape, np.uint8, chunks=chunks, fillvalue=IGNORE, fletcher32=True, **filters)


def _plain(splits: dict[str, list[Entry]]) -> dict[str, list[dict]]:
    return {split: [asdict(entry) for entry in entries] for split, entries in splits.items()}
