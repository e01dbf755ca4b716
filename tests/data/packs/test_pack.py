"""Packs: they contain what Dataset reads, are resumed after interruptions, and detect damage and changes."""

import errno
import hashlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import files, owned_elsewhere

from sda import recipe
from sda.data.dataset import Dataset
from sda.data.descriptor import Descriptor
from sda.data.files import FileError, LabelCodec
from sda.data.listing import list_items
from sda.data.packs import make as packs
from sda.data.packs.make import write_pack
from sda.data.packs.pack import Pack, check_fresh
from sda.errors import SdaError

SIZE = (16, 24)
CLASSES = {"stone": [10, 20, 30], "wood": [40, 50, 60], "glass": [0, 0, 255]}
NATIVE = (30, 44)
TRAIN = ["a b.png", "füße.png", "unlabelled.png", *(f"{n}.png" for n in range(6))]

DESCRIPTOR = Descriptor(
    title="Mine",
    classes=CLASSES,
    ids={"3": "stone", "7": "wood", "200": "glass"},
    void=[0],
    layout=[{"images": "{split}/{frame}.png", "labels": "{split}_labels/{frame}.png"}],
)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw(root, split, name, number, labelled=True, size=NATIVE):
    random = np.random.default_rng(number)
    save(root / split / name, random.integers(0, 256, (*size, 3), dtype=np.uint8))
    if labelled:
        blocks = random.choice(np.array([0, 3, 7, 200], np.uint8), ((size[0] + 4) // 5, (size[1] + 4) // 5))
        save(root / f"{split}_labels" / name, blocks.repeat(5, 0).repeat(5, 1)[: size[0], : size[1]].copy())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original") / "data"
    for number, name in enumerate(TRAIN):
        draw(root, "train", name, number, labelled=name != "unlabelled.png")
    for number in range(3):
        draw(root, "val", f"{number}.png", 100 + number, size=(30 + number, 44 - number))
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.h5"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(packs, "_SHARD", 3)


def make(out, root, **options):
    arguments = {"name": "mine", "descriptor": DESCRIPTOR, "size": SIZE, "splits": ["train", "val"], "processes": 1}
    return write_pack(out, root=root, **{**arguments, **options})


@pytest.fixture(scope="module")
def finished(original, tmp_path_factory):
    """A pack of `original`, which tests must not modify."""
    out = tmp_path_factory.mktemp("packs") / "mine.h5"
    assert make(out, original) == []
    return out


def datasets(root, split):
    """Return the same images as Datasets: all images without labels, and the labelled ones with theirs."""
    listing = list_items(DESCRIPTOR, root, split)
    codec = LabelCodec(DESCRIPTOR, listing.encoding, np.arange(256, dtype=np.uint8))
    labelled = [item for item in listing.items if item.label]
    images = Dataset([replace(item, label=None) for item in listing.items], None, SIZE)
    return images, Dataset(labelled, codec, SIZE, native_labels=split != "train")


def indices(pack, split):
    return {entry.key: index for index, entry in enumerate(pack.splits[split])}


def flip(out, dataset, index=0):
    """Flip one bit in the middle of a chunk."""
    with h5py.File(out, "r") as file:
        chunk = file[dataset].id.get_chunk_info(index)
    data = bytearray(out.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 16
    out.write_bytes(data)


# Content


@pytest.mark.parametrize("compression", ["none", "lzf", "gzip"])
def test_pack_contains_what_dataset_reads(original, out, compression):
    assert make(out, original, compression=compression) == []
    pack = Pack(out)
    for split in ("train", "val"):
        images, labelled = datasets(original, split)
        assert [entry.key for entry in pack.splits[split]] == [item.key for item in images.items]
        for index in range(len(images)):
            image = pack.image(split, index)
            assert image.dtype == np.uint8 and image.shape == (*SIZE, 3)
            assert torch.equal(torch.from_numpy(image).permute(2, 0, 1), images[index].image)
        places = indices(pack, split)
        for index, item in enumerate(labelled.items):
            label = pack.label(split, places[item.key])
            assert label.dtype == np.uint8 and np.array_equal(label, labelled[index].label.numpy())
    assert pack.label("train", 0).shape == SIZE and pack.label("val", 2).shape == (32, 42)
    assert [split for split, entries in pack.splits.items() if all(entry.has_label for entry in entries)] == ["val"]


def test_images_of_the_right_size_are_not_changed(root, out):
    make(out, root, size=NATIVE)
    with Image.open(root / "train/0.png") as image:
        assert np.array_equal(Pack(out).image("train", indices(Pack(out), "train")["train/0.png"]), np.asarray(image))


def test_train_ids_follow_the_descriptor(root, out):
    save(root / "train_labels/0.png", np.repeat(np.array([[0, 3, 7, 200]], np.uint8), 11, axis=1).repeat(30, 0))
    make(out, root)
    label = Pack(out).label("train", indices(Pack(out), "train")["train/0.png"])
    assert label[0, ::6].tolist() == [255, 0, 1, 2]


def test_metadata_of_a_pack(finished, original):
    pack = Pack(finished)
    assert (pack.name, pack.title, pack.size, pack.classes) == ("mine", "Mine", SIZE, list(CLASSES))
    assert pack.root == original and pack.faults == []
    assert Descriptor.model_validate(pack.descriptor) == DESCRIPTOR
    entry = pack.splits["train"][indices(pack, "train")["train/füße.png"]]
    image = original / "train/füße.png"
    assert (entry.bytes, entry.mtime_ns) == (image.stat().st_size, image.stat().st_mtime_ns)
    assert entry.sha256 == hashlib.sha256(image.read_bytes()).hexdigest()


def test_reading_needs_no_original_files(root, out):
    named = DESCRIPTOR.model_copy(update={"classes": "cityscapes19", "ids": {"3": "road", "7": "sky", "200": "car"}})
    make(out, root, descriptor=named)
    shutil.rmtree(root)
    pack = Pack(out)
    assert Descriptor.model_validate(pack.descriptor).table().names == named.table().names == pack.classes
    assert pack.image("val", 0).shape == (*SIZE, 3)
    check_fresh(pack, named)


def test_file_names_may_be_invalid_utf8(root, out):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        draw(root, "train", name, 1)
    except OSError:
        pytest.skip("this file system accepts UTF-8 names only")
    make(out, root)
    assert f"train/{name}" in indices(Pack(out), "train")
    check_fresh(Pack(out), DESCRIPTOR)


def test_an_unlabelled_image_has_no_label(finished):
    pack = Pack(finished)
    with pytest.raises(FileError, match=r"mine\.h5: train/unlabelled\.png has no label"):
        pack.label("train", indices(pack, "train")["train/unlabelled.png"])


def test_chunks_are_images_with_checksums(finished):
    with h5py.File(finished) as file:
        assert file["images/train"].chunks == (1, *SIZE, 3) and file["labels/train"].chunks == (1, *SIZE)
        file.visititems(lambda name, thing: None if isinstance(thing, h5py.Group) else (thing.fletcher32 or pytest.fail(name)))


def test_number_of_processes_does_not_change_the_file(root, out, tmp_path):
    counted = []
    make(out, root, processes=2, progress=lambda *step: counted.append(step))
    make(tmp_path / "alone.h5", root)
    assert out.read_bytes() == (tmp_path / "alone.h5").read_bytes()
    assert counted == [
        *(("reading images", done, 12) for done in range(13)),
        *(("writing the pack", done, 12) for done in range(1, 13)),
    ]


# Reading in other processes


class Images(torch.utils.data.Dataset):
    def __init__(self, pack):
        self.pack = pack

    def __len__(self):
        return len(self.pack.splits["train"])

    def __getitem__(self, index):
        return torch.from_numpy(self.pack.image("train", index))


@pytest.mark.parametrize(
    ("context", "opened"), [("fork", False), ("fork", True), pytest.param("spawn", True, marks=pytest.mark.slow)]
)
def test_loader_workers_open_the_file_themselves(finished, context, opened):
    pack = Pack(finished)
    images = np.stack([Pack(finished).image("train", index) for index in range(len(TRAIN))])
    if opened:
        pack.image("train", 3)
    loader = torch.utils.data.DataLoader(
        Images(pack), 2, num_workers=1 if context == "spawn" else 2, multiprocessing_context=context
    )
    assert np.array_equal(torch.cat(list(loader)).numpy(), images)
    assert np.array_equal(pack.image("train", 1), images[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns if the process has used threads
def test_a_fork_has_its_own_handle(finished):
    pack = Pack(finished)
    pack.image("train", 0)
    before = pack._opened[1]
    child = os.fork()
    if not child:
        try:
            pack.image("train", 1)
            os._exit(0 if pack._opened[0] == os.getpid() and not before.id.valid else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0 and before.id.valid


def test_threads_can_read_concurrently(finished):
    images = [Pack(finished).image("train", index) for index in range(len(TRAIN))]
    for _ in range(20):  # a new pack each time, because the race is in its first read
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(Pack(finished).image, itertools.repeat("train"), range(len(TRAIN))))
        assert all(map(np.array_equal, read, images))


def test_a_pack_can_be_pickled(finished):
    pack = Pack(finished)
    first = pack.image("train", 0)
    copy = pickle.loads(pickle.dumps(pack))
    assert copy._opened is None and np.array_equal(copy.image("train", 0), first) and copy.splits == pack.splits


def test_a_replaced_pack_is_detected(finished, out):
    shutil.copy(finished, out)
    pack = Pack(out)
    os.utime(out, ns=(0, 0))
    with pytest.raises(FileError, match=r"out\.h5: train/0\.png cannot be read .*replaced"):
        pack.image("train", 0)


# Interruptions


class Stop(Exception):
    pass


def stop_after(count, phase="reading images"):
    def progress(what, done, total):
        if what == phase and done == count:
            raise Stop

    return progress


@pytest.fixture
def reads(monkeypatch):
    """The paths of the images that are read during the test."""
    read = []
    monkeypatch.setattr(packs, "read_pair", lambda item, codec: read.append(item.image) or packs_read_pair(item, codec))
    monkeypatch.setattr(packs, "read_image", lambda path: read.append(path) or packs_read_image(path))
    return read


packs_read_pair, packs_read_image = packs.read_pair, packs.read_image


@pytest.mark.parametrize(("count", "kept"), [(2, 0), (3, 0), (4, 3), (11, 9)])
def test_resumes_after_an_interruption(original, out, finished, reads, count, kept):
    with pytest.raises(Stop):
        make(out, original, progress=stop_after(count))
    assert not out.exists() and not list(out.parent.glob("*.parts/*.partial"))
    reads.clear()
    seen = []
    make(out, original, progress=lambda *step: seen.append(step))
    assert len(reads) == 12 - kept and seen[0] == ("reading images", kept, 12)
    assert out.read_bytes() == finished.read_bytes() and files(out.parent) == {"out.h5": out.read_bytes()}


def test_resumes_an_interrupted_join(original, out, finished, reads):
    with pytest.raises(Stop):
        make(out, original, progress=stop_after(7, "writing the pack"))
    assert not out.exists()
    reads.clear()
    make(out, original)
    assert not reads and out.read_bytes() == finished.read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from sda.data.packs import make
from sda.data.descriptor import Descriptor

def progress(what, done, total):
    if (what, done) == ("{what}", {done}):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    make._SHARD = 3
    descriptor = Descriptor.model_validate_json(sys.argv[3])
    out, root = Path(sys.argv[1]), Path(sys.argv[2])
    make.write_pack(out, "mine", descriptor, root, {size}, ["train", "val"], processes=1, progress=progress)
"""


@pytest.mark.parametrize(("what", "done", "kept"), [("reading images", 8, 6), ("writing the pack", 8, 12)])
def test_resumes_after_a_kill(original, out, finished, reads, what, done, kept):
    script = KILLED.format(what=what, done=done, size=SIZE)
    run = subprocess.run([sys.executable, "-c", script, out, original, DESCRIPTOR.model_dump_json()], check=False)
    assert run.returncode == -signal.SIGKILL and not out.exists()
    make(out, original)
    assert len(reads) == 12 - kept
    assert out.read_bytes() == finished.read_bytes() and files(out.parent) == {"out.h5": out.read_bytes()}


def test_files_changed_since_the_interruption_are_read_again(root, out, reads):
    with pytest.raises(Stop):
        make(out, root, progress=stop_after(8))
    os.utime(root / "train/0.png", ns=(1, 1))  # in the first of the two finished shards
    reads.clear()
    make(out, root)
    assert len(reads) == 12 - 3 and root / "train/0.png" in reads


def test_removing_a_file_keeps_finished_shards(root, out, reads):
    (root / "train_labels/a b.png").write_bytes(b"")
    with pytest.raises(FileError, match=r"train_labels/a b\.png: this label cannot be read"):
        make(out, root)
    (root / "train/a b.png").unlink()
    reads.clear()
    make(out, root)
    assert len(reads) == 11 - 6 and len(Pack(out).splits["train"]) == 8


def test_a_damaged_shard_is_recreated(original, out, finished, reads):
    with pytest.raises(Stop):
        make(out, original, progress=stop_after(1, "writing the pack"))
    first, second = sorted(out.with_name("out.h5.parts").glob("*.npz"))[:2]
    first.write_bytes(first.read_bytes()[:-5])
    data = bytearray(second.read_bytes())
    data[500] ^= 1  # in its first image
    second.write_bytes(data)
    reads.clear()
    with pytest.raises(SdaError, match=r"00001\.npz: damaged on the disk .*run the same command again"):
        make(out, original)
    assert len(reads) == 3 and not out.exists()
    make(out, original)
    assert len(reads) == 6 and out.read_bytes() == finished.read_bytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": (8, 8)}, r"size is \[16, 24\], not \[8, 8\]"),
        ({"compression": "lzf"}, "compression is none, not lzf"),
        ({"splits": ["train"]}, "encodings is {'train': 'ids', 'val': 'ids'}, not {'train': 'ids'}"),
        ({"descriptor": DESCRIPTOR.model_copy(update={"void": [0, 9]})}, r"void is \[0\], not \[0, 9\]"),
    ],
)
def test_other_settings_are_refused(original, out, finished, options, named):
    with pytest.raises(Stop):
        make(out, original, progress=stop_after(5))
    before = files(out.parent)
    with pytest.raises(
        SdaError,
        match=rf"out\.h5\.parts: was started with other settings \({named}\); remove this folder or choose another --out",
    ):
        make(out, original, **options)
    assert files(out.parent) == before
    shutil.copy(finished, out)
    with pytest.raises(
        SdaError, match=rf"out\.h5: already exists \({named}\) and is not overwritten; remove it or choose another --out"
    ):
        make(out, original, **options)
    assert out.read_bytes() == finished.read_bytes()


@pytest.mark.parametrize("place", ["shard", "join"])
def test_a_full_disk_is_reported_and_resumed(original, out, finished, reads, monkeypatch, place):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "join":
            patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(
            SdaError,
            match=r"out\.h5: cannot be written \(No space left on device.*\); free disk space .*it resumes from .*\.parts$",
        ):
            make(out, original, progress=full_after(patch, 5, full) if place == "shard" else lambda *step: None)
    assert not out.exists()
    reads.clear()
    make(out, original)
    assert len(reads) == (9 if place == "shard" else 0) and out.read_bytes() == finished.read_bytes()


def full_after(patch, count, full):
    return lambda what, done, total: done == count and patch.setattr(packs.os, "fsync", full)


def test_a_killed_worker_is_reported(original, out, finished):
    def kill(what, done, total):
        if done == 1:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                if b"children import serve" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    with pytest.raises(SdaError, match="while reading images, its process was killed, perhaps because memory.*fewer processes"):
        make(out, original, processes=2, progress=kill)
    make(out, original)
    assert out.read_bytes() == finished.read_bytes()


def test_a_second_process_is_refused(original, out, finished):
    parts = out.with_name("out.h5.parts")
    with owned_elsewhere(parts), pytest.raises(SdaError, match=r"out\.h5: process \d+ on .* is writing it; wait"):
        make(out, original)
    make(out, original)
    assert out.read_bytes() == finished.read_bytes()


# Files that exist already


def test_a_finished_pack_is_not_rewritten(original, out, finished, reads):
    shutil.copy2(finished, out)
    before = out.stat().st_ino, out.stat().st_mtime_ns
    assert make(out, original) == [] and not reads
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == before


def test_remaining_parts_of_a_finished_pack_are_removed(original, out, finished):
    with pytest.raises(Stop):
        make(out, original, progress=stop_after(12, "writing the pack"))
    shutil.copy(finished, out)
    make(out, original)
    assert [path.name for path in out.parent.iterdir()] == ["out.h5"]


@pytest.mark.parametrize(
    ("there", "named"), [(b"mine", "not an HDF5 file"), (b"", "not an HDF5 file"), (None, "this is a folder")]
)
def test_other_files_are_not_overwritten(original, out, there, named):
    if there is None:
        out.mkdir()
    else:
        out.write_bytes(there)
    before = files(out.parent)
    with pytest.raises(SdaError, match=rf"out\.h5: already exists \({named}.*\) and is not overwritten; remove it or choose"):
        make(out, original)
    assert files(out.parent) == before


def test_a_stale_pack_is_not_overwritten(root, out):
    make(out, root)
    before = out.read_bytes()
    draw(root, "train", "new.png", 9)
    with pytest.raises(SdaError, match=r"out\.h5: already exists \(.*new\.png was added since this pack was made"):
        make(out, root)
    assert out.read_bytes() == before


def test_a_file_created_in_the_meantime_is_not_overwritten(original, out):
    def progress(what, done, total):
        out.write_bytes(b"theirs")

    with pytest.raises(SdaError, match=r"out\.h5: another process created it in the meantime; it is not overwritten"):
        make(out, original, progress=progress)
    assert out.read_bytes() == b"theirs"


def test_an_unwritable_folder_is_reported(original, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdaError, match=r"file/out\.h5: cannot be written"):
        make(tmp_path / "file/out.h5", original)


# Unusable files


def test_skipped_files_are_named(root, out):
    (root / "train/0.png").write_bytes(b"")
    save(root / "val_labels/1.png", np.full((31, 43), 99, np.uint8))
    with pytest.raises(FileError, match=r"train/0\.png: this image cannot be read"):
        make(out, root)
    faults = make(out, root, skip=True)
    assert [fault.partition(":")[0] for fault in faults] == [str(root / "train/0.png"), str(root / "val_labels/1.png")]
    pack = Pack(out)
    assert pack.faults == faults and len(pack.splits["train"]) == 8 and list(indices(pack, "val")) == ["val/0.png", "val/2.png"]
    images, labelled = datasets(root, "val")
    assert torch.equal(torch.from_numpy(pack.image("val", 1)).permute(2, 0, 1), images[2].image)
    assert np.array_equal(pack.label("val", 1), labelled[2].label.numpy())
    check_fresh(pack, DESCRIPTOR)
    assert make(out, root, skip=True) == faults
    with pytest.raises(SdaError, match=r"out\.h5: already exists \(it lacks 2 unusable images, the first: .*train/0\.png"):
        make(out, root)
    draw(root, "train", "0.png", 0)
    with pytest.raises(SdaError, match=r"out\.h5: .*train/0\.png has changed"):
        check_fresh(pack, DESCRIPTOR)


def test_resuming_without_skip_fails_on_the_bad_file(root, out, reads):
    (root / "train/0.png").write_bytes(b"")
    with pytest.raises(Stop):
        make(out, root, skip=True, progress=stop_after(8))
    reads.clear()
    with pytest.raises(FileError, match=r"train/0\.png"):
        make(out, root)
    make(out, root, skip=True)
    assert len(Pack(out).splits["train"]) == 8


def test_a_split_without_usable_images_is_refused(root, out):
    for path in (root / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SdaError, match=r"no image of val can be used; the first error: .*val/0\.png"):
        make(out, root, skip=True)
    assert not out.exists()


# Stale packs


def edit(path):
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda root: edit(root / "train/3.png"), r"train/3\.png has changed since this pack was made"),
        (lambda root: edit(root / "val_labels/2.png"), r"val_labels/2\.png has changed since this pack was made"),
        (lambda root: (root / "val/1.png").unlink(), r"val/1\.png was removed since this pack was made"),
        (
            lambda root: (root / "train_labels/3.png").unlink(),
            r"the label of .*train/3\.png was removed since this pack was made",
        ),
        (lambda root: draw(root, "val", "x y.png", 5), r"val/x y\.png was added since this pack was made"),
        (
            lambda root: shutil.copy(root / "train_labels/1.png", root / "train_labels/unlabelled.png"),
            r"unlabelled\.png was added since",
        ),
        (lambda root: shutil.rmtree(root / "val"), "its folder has changed since it was packed: Mine: no images of split 'val'"),
    ],
)
def test_changed_files_are_named(root, out, change, named):
    make(out, root)
    check_fresh(Pack(out), DESCRIPTOR)
    change(root)
    with pytest.raises(SdaError, match=rf"^\S*out\.h5: .*{named}.*; run sda pack again with a new --out, or give the folder"):
        check_fresh(Pack(out), DESCRIPTOR)


@pytest.mark.parametrize(
    ("update", "named"),
    [
        ({"ids": {"3": "wood", "7": "stone", "200": "glass"}}, "ids differs"),
        ({"classes": dict(reversed(CLASSES.items()))}, "classes differs"),
        ({"void": [0, 1]}, "void differs"),
        ({"void_colors": [[1, 1, 1]]}, "void_colors differs"),
        ({"title": "Yours"}, "this is a pack of Mine, not of Yours"),
    ],
)
def test_a_changed_descriptor_is_detected(finished, update, named):
    with pytest.raises(SdaError, match=rf"mine\.h5: .*{named}"):
        check_fresh(Pack(finished), DESCRIPTOR.model_copy(update=update))


def test_a_changed_label_encoding_is_detected(finished):
    layout = DESCRIPTOR.layout[0].model_copy(update={"encoding": "train_ids"})
    with pytest.raises(SdaError, match="the labels of train are now read as train_ids"):
        check_fresh(Pack(finished), DESCRIPTOR.model_copy(update={"layout": [layout]}))


def test_descriptor_changes_without_effect_on_labels_are_accepted(finished):
    check_fresh(Pack(finished), DESCRIPTOR.model_copy(update={"licence": "free", "maps": {"x": {"stone": "road"}}}))


# Damage


@pytest.mark.parametrize(("dataset", "place"), [("images/train", 4), ("labels/train", 4), ("labels/val/000001", 0)])
@pytest.mark.parametrize("compression", ["none", "lzf", "gzip"])
def test_a_flipped_bit_is_detected(original, out, dataset, place, compression):
    make(out, original, compression=compression)
    flip(out, dataset, place)
    pack = Pack(out)
    what, split = dataset.split("/")[:2]
    index = place or 1
    with pytest.raises(FileError, match=rf"out\.h5: {pack.splits[split][index].key} cannot be read from this pack"):
        (pack.image if what == "images" else pack.label)(split, index)
    pack.image("val", 0)  # other chunks are intact


def test_a_flipped_bit_in_the_metadata_is_detected(finished, out):
    shutil.copy(finished, out)
    flip(out, "about")
    with pytest.raises(SdaError, match=r"out\.h5: cannot be read"):
        Pack(out)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_pack_is_refused(finished, out, share):
    data = finished.read_bytes()
    out.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        SdaError, match=r"out\.h5: cannot be read \(.*\); if it is truncated or damaged, make it again with sda pack"
    ) as caught:
        Pack(out)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_packs_are_refused(tmp_path, finished):
    with pytest.raises(SdaError, match=r"none\.h5: no such pack"):
        Pack(tmp_path / "none.h5")
    with pytest.raises(SdaError, match="this is a folder, not a pack"):
        Pack(tmp_path)
    text = tmp_path / "text.h5"
    text.write_text("images")
    with pytest.raises(SdaError, match=r"text\.h5: not an HDF5 file"):
        Pack(text)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["images"] = [1, 2, 3]
    with pytest.raises(SdaError, match=r"foreign\.h5: an HDF5 file, but not a pack"):
        Pack(foreign)
    old = shutil.copy(finished, tmp_path / "old.h5")
    with h5py.File(old, "r+") as file:
        file.attrs["format"] = 0
    with pytest.raises(SdaError, match=r"old\.h5: a pack of format 0, but this sda reads format 2; make it again"):
        Pack(Path(old))


# A pack instead of a folder


@pytest.fixture
def world(tmp_path):
    return tiny.write_world(tmp_path / "world")


def packed(world, monkeypatch, *options):
    for name, file in (("toy", world.toy), ("field", world.field)):
        arguments = [
            "pack",
            file,
            "--root",
            world.root / name,
            "--size",
            48,
            64,
            "--processes",
            1,
            "--out",
            world.folder / f"{name}.h5",
        ]
        assert tiny.run_main(monkeypatch, *arguments, *options) == 0


@pytest.mark.slow
def test_training_from_packs_equals_training_from_folders(world, monkeypatch, capsys, tmp_path):
    """Streams, losses and scores are the same to the last bit, even if the folders no longer exist."""
    packed(world, monkeypatch)
    roots = ["--source-root", world.folder / "toy.h5", "--target-root", world.folder / "field.h5"]
    statistics = ["--rare-class-sampling", "0.01", "--workers", "1"]
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    results = []
    for run, options in (("files", []), ("packs", roots), ("alone", roots)):
        if run == "alone":
            (world.root / "toy").rename(world.root / "elsewhere")
            (world.root / "field").rename(world.root / "elsewhere too")
        arguments = [*tiny.BANK, *statistics, *options, "--out", tmp_path / run, "--device", "cpu"]
        assert tiny.run_main(monkeypatch, "train", world.recipe, *arguments) == 0, capsys.readouterr().err
        made = json.loads((tmp_path / run / "result.json").read_text())
        results.append({key: value for key, value in made.items() if key != "seconds"})
    assert results[0] == results[1] == results[2]
    lists = [tiny.files(tmp_path / run / "splits") for run in ("files", "packs", "alone")]
    assert lists[0] == lists[1] == lists[2]


def test_packs_of_another_size_and_stale_packs_are_refused(world, monkeypatch, capsys, tmp_path):
    packed(world, monkeypatch)
    roots = ["--source-root", world.folder / "toy.h5", "--target-root", world.folder / "field.h5", "--out", tmp_path / "run"]
    assert tiny.run_main(monkeypatch, "train", world.recipe, *roots, "--size", "[64, 64]") == 2
    assert "this pack is at 48x64, but 64x64 is needed" in capsys.readouterr().err
    (world.root / "field/pictures/train/north/00.jpg").unlink()
    assert tiny.run_main(monkeypatch, "train", world.recipe, *roots) == 2
    assert "was removed since this pack was made" in capsys.readouterr().err


def test_a_pack_in_the_root_is_found(world, monkeypatch):
    """root/NAME.h5 is used if there is no folder root/NAME."""
    packed(world, monkeypatch, "--split", "train")
    (world.folder / "toy.h5").rename(world.root / "toy.h5")
    loaded = recipe.load(str(world.recipe))
    assert loaded.with_absolute_paths().source_root == str(world.root / "toy")
    (world.root / "toy").rename(world.folder / "moved")
    assert loaded.with_absolute_paths().source_root == str(world.root / "toy.h5")


def test_shared_images_are_detected_across_pack_and_folder(world, monkeypatch, capsys, tmp_path):
    """A source image is a copy of a validation image: detected by content, although one of them is in a pack."""
    copy = world.root / "toy/train/00.png"
    copy.write_bytes((world.root / "field/pictures/val/west/08.jpg").read_bytes())
    packed(world, monkeypatch)
    arguments = ["--source-root", world.folder / "toy.h5", "--out", tmp_path / "run"]
    assert tiny.run_main(monkeypatch, "train", world.recipe, *arguments) == 2
    assert "is the same image as" in capsys.readouterr().err


# Damaged and crafted packs


def content_of(path):
    """Read everything of a pack."""
    pack = Pack(path)
    found = {name: getattr(pack, name) for name in ("name", "descriptor", "classes", "settings", "size", "splits", "left_out")}
    for split, entries in pack.splits.items():
        found[f"images of {split}"] = [pack.image(split, index) for index in range(len(entries))]
        found[f"labels of {split}"] = [pack.label(split, index) for index, entry in enumerate(entries) if entry.has_label]
    return found


def test_damage_is_noticed(finished, out):
    shutil.copy(finished, out)
    tiny.check_damage(out, content_of, 150)


def about_of(path):
    with h5py.File(path) as file:
        return json.loads(file["about"][()].tobytes())


def craft(path, about=..., **datasets):
    """Replace the metadata, or datasets, of a pack."""
    with h5py.File(path, "r+") as file:
        for name, values in datasets.items():
            del file[name]
            file.create_dataset(name, data=values, chunks=getattr(values, "shape", None) or None)
        if about is not ...:
            text = np.frombuffer(json.dumps(about).encode(), np.uint8)
            del file["about"]
            file.create_dataset("about", data=text)


def test_metadata_of_other_types_are_refused(finished, out):
    whole = about_of(finished)
    wrong = [[1], 3, "text", None, {}, {**whole, "more": 1}]
    wrong += [{**whole, key: value} for key in whole for value in (3, None, [1], {"a": 1})]
    wrong += [{**whole, "settings": {**whole["settings"], "size": size}} for size in ([0, 4], [4], ["4", "4"], [2**20, 2**20])]
    wrong += [{**whole, "splits": {**whole["splits"], "train": entries}} for entries in ([], [{}], [3], whole["splits"]["val"])]
    entry = whole["splits"]["val"][0]
    for field in entry:
        wrong.append({**whole, "splits": {**whole["splits"], "val": [{**entry, field: [1]}, *whole["splits"]["val"][1:]]}})
    for about in wrong:
        shutil.copy(finished, out)
        craft(out, about)
        with pytest.raises(SdaError) as caught:
            Pack(out)
        assert str(caught.value).startswith(f"{out}: ") and "\n" not in str(caught.value)


def test_metadata_that_is_nested_too_deep_is_refused(finished, out):
    shutil.copy(finished, out)
    with h5py.File(out, "r+") as file:
        del file["about"]
        file["about"] = np.frombuffer(b"[" * 100_000, np.uint8)
    with pytest.raises(SdaError, match="cannot be read"):
        Pack(out)


def test_datasets_of_other_shapes_are_refused(finished, out):
    for name in ("images/train", "labels/train", "labels/val/000000"):
        for values in (np.zeros((1, 2), np.uint8), np.zeros((5, 9, 9), np.uint8), np.zeros(3), np.uint8(3)):
            if name.startswith("labels/val") and values.ndim == 2:
                continue  # labels of a validation image may have any size
            shutil.copy(finished, out)
            craft(out, **{name: values})
            with pytest.raises(SdaError, match=rf"{out}: .*(type|shape)"):
                content_of(out)


def test_pixels_of_other_files_are_not_read(finished, out, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"password" * 10_000)
    for name in ("images/train", "labels/train", "labels/val/000000"):
        shutil.copy(finished, out)
        with h5py.File(out, "r+") as file:
            shape = file[name].shape
            del file[name]
            file.create_dataset(name, shape, np.uint8, external=[(str(secret), 0, int(np.prod(shape)))])
        with pytest.raises(SdaError, match=rf"the data of {name} are in another file"):
            content_of(out)


def test_a_pack_that_another_program_writes_is_reported_as_such(finished, out):
    shutil.copy(finished, out)
    code = "import h5py, sys\nwith h5py.File(sys.argv[1], 'r+'):\n print(1, flush=True)\n input()"
    with subprocess.Popen([sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(SdaError, match=r"out\.h5: another program has opened this file for writing; wait until it closes"):
            Pack(out)
        other.communicate(b"\n")
    assert len(Pack(out).splits) == 2


@pytest.mark.parametrize("version", [None, 1])
def test_a_pack_of_an_older_decoding_is_stale(finished, out, version):
    shutil.copy(finished, out)
    about = about_of(out)
    about["settings"]["decoding"] = version
    craft(out, about if version else {**about, "settings": {k: v for k, v in about["settings"].items() if k != "decoding"}})
    with pytest.raises(
        SdaError, match=r"out\.h5: this pack was made by a version of sda that reads label files differently; run"
    ):
        check_fresh(Pack(out), DESCRIPTOR)
