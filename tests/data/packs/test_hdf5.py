"""Reading HDF5 files: crafted files neither show other files nor take more memory than their size explains."""

import tracemalloc

import h5py
import numpy as np
import pytest

from sda.data.packs import hdf5


@pytest.fixture
def make(tmp_path):
    """`make(fill)`: the file that `fill(file)` filled, open for reading."""
    opened = []

    def make(fill):
        with h5py.File(tmp_path / "made.h5", "w", libver=("v110", "v110")) as file:
            fill(file)
        opened.append(hdf5.open_file(tmp_path / "made.h5"))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


def test_datasets_of_the_file_itself_are_read(make):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    file = make(lambda file: file.create_dataset("a/b", data=values, chunks=(1, 3, 4), compression="gzip", fletcher32=True))
    assert np.array_equal(hdf5.dataset(file, "a/b", "uint8", (2, None, 4))[()], values)


def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_bytes(b"password" * 100)
    return path


def external_storage(file, tmp_path):
    file.create_dataset("images/train", (2, 4), np.uint8, external=[(str(secret(tmp_path)), 0, 8)])


def other_file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["held"] = np.zeros((2, 4), np.uint8)
    return str(tmp_path / "other.h5")


def virtual_dataset(file, tmp_path):
    layout = h5py.VirtualLayout((2, 4), np.uint8)
    layout[:] = h5py.VirtualSource(other_file(tmp_path), "held", (2, 4))
    file.create_virtual_dataset("images/train", layout)


def external_link(file, tmp_path):
    file["images/train"] = h5py.ExternalLink(other_file(tmp_path), "held")


def external_group(file, tmp_path):
    with h5py.File(other_file(tmp_path), "a") as other:
        other["train"] = other["held"]
    file["images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")


def soft_link(file, tmp_path):
    file["real"] = np.zeros((2, 4), np.uint8)
    file["images/train"] = h5py.SoftLink("/real")


@pytest.mark.parametrize(
    ("craft", "says"),
    [
        (external_storage, "the data of images/train are in another file"),
        (virtual_dataset, "the data of images/train are in another file"),
        (external_link, "images/train is a link to another file or place"),
        (external_group, "images/train is a link to another file or place"),
        (soft_link, "images/train is a link to another file or place"),
        (lambda file, _: file.create_group("images/train"), "images/train is not a dataset"),
        (lambda file, _: file.create_dataset("images", data=[1]), "it has no dataset images/train"),
        (lambda file, _: None, "it has no dataset images/train"),
        (lambda file, _: file.create_dataset("images/train", data=np.zeros((2, 4))), "type float64, expected uint8"),
        (lambda file, _: file.create_dataset("images/train", data=np.zeros((2, 4), ">u2")), "expected uint8"),
        (lambda file, _: file.create_dataset("images/train", data=[[file.ref]], dtype=h5py.ref_dtype), "expected uint8"),
        (lambda file, _: file.create_dataset("images/train", (2, 5), np.uint8), r"shape \(2, 5\), expected \(2, 4\)"),
        (lambda file, _: file.create_dataset("images/train", data=np.zeros(2, np.uint8)), r"shape \(2,\), expected"),
        (lambda file, _: file.create_dataset("images/train", data=h5py.Empty(np.uint8)), r"shape \(\), expected"),
    ],
)  # fmt: skip
def test_data_elsewhere_and_other_data_are_refused(make, tmp_path, craft, says):
    file = make(lambda file: craft(file, tmp_path))
    with pytest.raises(ValueError, match=says.replace("images/train is a link", "images(/train)? is a link")):
        hdf5.dataset(file, "images/train", "uint8", (2, 4))


HUGE = 10**12


def never_written(file):
    file.create_dataset("a", (HUGE,), np.uint8, chunks=(2**20,))


def never_written_whole(file):
    file.create_dataset("a", (HUGE,), np.uint8, maxshape=(None,), chunks=(2**20,))[:10] = 1


def compressed_twice(file):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((2**20,))
    properties.set_deflate(9)
    properties.set_deflate(9)
    made = h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((2**20,)), properties)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2**20, np.uint8))


@pytest.mark.parametrize("craft", [never_written, never_written_whole, compressed_twice])
def test_impossible_sizes_are_refused_without_memory(make, craft):
    file = make(craft)
    tracemalloc.start()
    with pytest.raises(ValueError, match="were never written|are stored|filters"):
        hdf5.dataset(file, "a", "uint8", (None,))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_many_references_to_one_text_are_refused(tmp_path):
    path = tmp_path / "made.h5"
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("texts", (300,), h5py.string_dtype(), chunks=(300,))
        rows[0] = "x" * 2**16
        place = rows.id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place : place + 300 * 16] = data[place : place + 16] * 300
    path.write_bytes(data)
    with hdf5.open_file(path) as file, pytest.raises(ValueError, match="the texts of texts are longer than the file"):
        hdf5.texts(file, "texts")


@pytest.mark.parametrize("value", [3, [1, 2], h5py.Empty("f"), ["a", "b"]])
def test_attributes_of_other_types_are_refused(make, value):
    def craft(file):
        file.attrs["kind"] = value

    file = make(craft)
    assert not hdf5.is_kind(file, "sda pack")
    with pytest.raises(ValueError, match="the attribute kind is not text"):
        hdf5.text(file, "kind")
    if not isinstance(value, int):
        with pytest.raises(ValueError, match="the attribute kind is not a whole number"):
            hdf5.number(file, "kind")
    if value != ["a", "b"]:
        with pytest.raises(ValueError, match="the attribute kind is not a list of texts"):
            hdf5.text_list(file, "kind")


@pytest.mark.parametrize("size", [0, 1, 8, 3000, 2**63, 2**64 - 8])
def test_damaged_heaps_are_refused(tmp_path, size):
    """HDF5 would never return from some of them."""
    path = tmp_path / "made.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["kind"] = "some text"
    data = bytearray(path.read_bytes())
    free = data.index(b"GCOL") + 16
    while data[free : free + 2] != b"\0\0":
        free += 16 + -(-int.from_bytes(data[free + 8 : free + 16], "little") // 8) * 8
    data[free + 8 : free + 16] = size.to_bytes(8, "little")
    with hdf5.open_file(path) as file:
        assert hdf5.is_kind(file, "some text")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged: its text cannot be read"):
        hdf5.open_file(path)


def test_a_file_that_is_open_for_writing_is_reported_as_such(tmp_path):
    path = tmp_path / "busy.h5"
    with h5py.File(path, "w", libver=("v110", "v110"), locking=False) as file:
        file.flush()
        content = path.read_bytes()
    path.write_bytes(content)  # as a writer left it, or another process sees it
    try:
        hdf5.open_file(path)
    except hdf5.FAULTS as error:
        message = hdf5.unreadable(path, error, "make it again")
    assert message.startswith(f"{path}: another program has opened this file for writing; wait until it closes the file")
