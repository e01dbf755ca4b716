"""Pickled indices of the paper: valid files are read, and hostile ones are refused without running their code."""

import builtins
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sda.data.item import Item
from sda.data.splits.pickled import MAX_BYTES, from_indices, read_pickle
from sda.errors import SdaError

PROTOCOLS = range(6)
INDICES = [5, 0, 300, 70_000, 2]


@pytest.fixture
def pickled(tmp_path):
    def write(data):
        path = tmp_path / "split_0.pkl"
        path.write_bytes(data)
        return path

    return write


def refused(path, entry="", says="."):
    with pytest.raises(SdaError, match=says) as caught:
        read_pickle(path, entry)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1500
    return message


# Pickles that are read


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        INDICES,
        tuple(INDICES),
        np.array(INDICES),
        np.array(INDICES, np.int32),
        np.array(INDICES, np.uint64),
        np.array(INDICES, ">i4"),
        np.array(INDICES, order="F"),
        np.repeat(INDICES, 2)[::2],
        list(np.array(INDICES)),
        [np.uint32(n) for n in INDICES],
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', type(value[0]).__name__)}",
)
def test_sequences_of_every_protocol(pickled, value, protocol):
    indices = read_pickle(pickled(pickle.dumps(value, protocol)))
    assert indices == INDICES and {type(index) for index in indices} == {int}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_byte_value(pickled, protocol):
    """Bytes above 127 are encoded differently in some protocols."""
    assert read_pickle(pickled(pickle.dumps(np.arange(256, dtype=np.uint8), protocol))) == list(range(256))
    shuffled = np.random.default_rng(0).permutation(2975)  # as in the files of the paper
    assert read_pickle(pickled(pickle.dumps(shuffled, protocol))) == shuffled.tolist()


def test_read_only_arrays_are_read(pickled):
    array = np.array(INDICES)
    array.flags.writeable = False
    assert read_pickle(pickled(pickle.dumps(array, 5))) == INDICES


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_numpy_1_and_2(pickled, protocol):
    """The core of numpy 1 is `numpy.core`, that of numpy 2 `numpy._core`."""
    data = pickle.dumps(np.array(INDICES), protocol)
    new, old = b"numpy._core.", b"numpy.core."
    assert new in data or old in data
    if protocol >= 4:  # the lengths of the names and of the frame precede them
        module = next(name for name in (b"multiarray", b"numeric") if name in data)
        for ours, other in ((new, old), (old, new)):
            here, there = (bytes([len(name + module)]) + name + module for name in (ours, other))
            data_there = data.replace(here, there)
            (frame,) = struct.unpack("<Q", data[3:11])
            data_there = data[:3] + struct.pack("<Q", frame + len(data_there) - len(data)) + data_there[11:]
            assert read_pickle(pickled(data_there)) == INDICES
    else:
        assert read_pickle(pickled(data.replace(new, old))) == INDICES
        assert read_pickle(pickled(data.replace(old, new))) == INDICES


PYTHON_2 = {
    "list": b"(lp0\nI5\naI0\naI300\naI70000\naL2L\na.",
    "array of protocol 0": b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n"
    b"(I1\n(I5\ntp6\ncnumpy\ndtype\np7\n(S'i4'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\n"
    b"S'\\x05\\x00\\x00\\x00\\x00\\x00\\x00\\x00,\\x01\\x00\\x00p\\x11\\x01\\x00\\x02\\x00\\x00\\x00'\np13\ntp14\nb.",
    "array of protocol 2": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
    b"(K\x01K\x05\x85cnumpy\ndtype\nq\x04U\x02i4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x14" + np.array(INDICES, "<i4").tobytes() + b"tb.",
}


@pytest.mark.parametrize("data", PYTHON_2.values(), ids=PYTHON_2)
def test_pickles_of_python_2(pickled, data):
    assert list(pickle.loads(data, encoding="latin1")) == INDICES
    assert read_pickle(pickled(data)) == INDICES


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_entries_of_a_dict(pickled, protocol):
    path = pickled(pickle.dumps({"labelled": [3, 1], "unlabelled": np.array([2, 0]), 100: (7,)}, protocol))
    assert read_pickle(path, "labelled") == [3, 1]
    assert read_pickle(path, "unlabelled") == [2, 0]
    assert read_pickle(path, "100") == [7]
    refused(path, says="holds several lists: name one of 'labelled', 'unlabelled', '100'")
    refused(path, "train", says="has no 'train': name one of 'labelled'")
    refused(pickled(pickle.dumps([1], protocol)), "train", says="holds one list, not a dict with 'train': omit the name")


def test_a_dict_built_in_one_operation(pickled):
    assert read_pickle(pickled(b"(S'a'\n(lI3\nad."), "a") == [3]


# Pickles without a list of indices


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        [],
        [1, 2.0],
        [1, True],
        [1, None],
        ["1"],
        [[1], [2]],
        [1 << 80],
        [np.array([1])],
        3,
        "12",
        {1, 2},
        range(3),
        np.array([], int),
        np.array(3),
        np.array([[1, 2]]),
        np.array([1.0]),
        np.array([True]),
        np.array(["1"]),
        np.array([1, 2], object),
        np.array([1], "M8[s]"),
        np.array([(1, 2)], [("a", "i4"), ("b", "i4")]),
        np.ma.array([1, 2]),
        {"a": {"b": [1]}}["a"],
        {(1, 2): [1]},
        dict.fromkeys(range(1001), 1),
        frozenset([1, 2]),
        Path("/etc"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_pickles_without_indices_are_refused(pickled, value, protocol):
    refused(pickled(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_pickles_are_refused(pickled, protocol):
    for value in (INDICES, np.array(INDICES)):
        data = pickle.dumps(value, protocol)
        for length in range(0, len(data), 3):
            refused(pickled(data[:length]))


def test_damaged_pickles_raise_only_sda_errors(pickled):
    """A wrong byte raises SdaError or remains undetected."""
    for protocol in PROTOCOLS:
        data = pickle.dumps(np.array(INDICES), protocol)
        for place in range(protocol, len(data), 6):
            try:
                read_pickle(pickled(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]))
            except SdaError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("data", [b"", b".", b"\x80\x09.", b"hello", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x04N."])
def test_files_that_are_not_pickles_are_refused(pickled, data):
    refused(pickled(data))


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "none.pkl", says="cannot be read")


def test_a_too_large_file_is_refused(pickled):
    refused(pickled(bytes(MAX_BYTES + 1)), says="larger than 16 MiB")


# Hostile pickles


class Reduce:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def trap(tmp_path):
    """A shell command that creates a file; fails the test if the file exists afterwards."""
    mark = tmp_path / "it-ran"
    yield f"touch {mark}"
    assert not mark.exists()


def hostile(trap):
    python = f"__import__('os').system({trap!r})"
    chain = Reduce(getattr, Reduce(__import__, "os"), "system")
    array = np.empty(2, object)
    array[:] = [1, Reduce(os.system, trap)]
    return {
        "os.system": Reduce(os.system, trap),
        "subprocess": Reduce(subprocess.call, trap.split()),
        "eval": Reduce(eval, python),
        "exec": Reduce(exec, python),
        "getattr": chain,
        "in a list": [1, 2, Reduce(os.system, trap)],
        "in a dict": {"labelled": [1], "x": Reduce(eval, python)},
        "in an array": array,
        "as the key": {Reduce(str, "a"): [1]},
        "open": Reduce(open, trap.split()[1], "w"),
        "numpy.load": Reduce(np.load, "x.npy", None, True),
        "setattr": Reduce(setattr, Reduce(__import__, "os"), "name", "x"),
        "type": Reduce(type, "X", (), {}),
        "bytearray": Reduce(bytearray, 10**9),
        "pickle in a pickle": Reduce(pickle.loads, pickle.dumps(Reduce(os.system, trap))),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hostile_calls_do_not_run(pickled, trap, protocol):
    for name, value in hostile(trap).items():
        message = refused(pickled(pickle.dumps(value, protocol)), "labelled" if name == "in a dict" else "")
        assert "it asks for" in message and "no code was run" in message, name


RAW = {
    "GLOBAL and REDUCE": b"cos\nsystem\n(S'touch %s'\ntR.",
    "GLOBAL in protocol 2": b"\x80\x02cposix\nsystem\n(X\x09\x00\x00\x00touch %stR.",
    "INST": b"(S'touch %s'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch %s'\no.",
    "NEWOBJ": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x05touchtR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x1acore.multiarray.os.systemx\x93.",
    "numpy and beyond": b"cnumpy.core.multiarray\nos.system\n.",
    "a stand-in's own module": b"csda.data.splits.pickled\nos\n.",
    "a name by halves": b"cnumpy\ncore.multiarray._reconstruct.__globals__\n.",
    "persistent id": b"Pos.system\n.",
    "extension": b"\x82\x01.",
    "attributes of a stand-in": b"c_codecs\nencode\n(dS'__code__'\nI1\nsb.",
    "attributes of a class": b"cnumpy\ndtype\n(dS'numpy'\nI1\nsb.",
    "new methods": b"cnumpy\ndtype\nN(dS'__init__'\nI1\ns\x86b.",
    "a call of numpy.ndarray": b"cnumpy\nndarray\n((I9\ntS'O'\ntR.",
    "a call of a number": b"I1\n(tR.",
    "encode to another form": b"c_codecs\nencode\n(VYQ==\nVrot13\ntR.",
    "an array of objects": b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI00\n(lI1\natb.",
    "a length that lies": b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I4611686018427387904\ntcnumpy\ndtype\n(S'i8'\n"
    b"tRI00\nS''\ntb.",
    "a negative length": b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I-1\ntcnumpy\ndtype\n(S'i8'\ntRI00\nS''\ntb.",
    "a type that is none": b"cnumpy.core.multiarray\nscalar\n(I1\nS'a'\ntR.",
    "an unknown byte order": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i1'\ntR(I3\nS'O'\ntbS'a'\ntR.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "an index of many bytes": b"(l\x8b\x00\x00\x01\x00" + b"\x7f" * 65536 + b"a.",
    "a key of many bytes": b"}\x8b\x00\x00\x01\x00" + b"\x7f" * 65536 + b"]s.",
    "out-of-band data": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("data", RAW.values(), ids=RAW)
def test_hostile_opcodes_do_not_run(pickled, trap, monkeypatch, data):
    def alarm(*_arguments, **_named):
        raise AssertionError("it ran")

    path = pickled(data.replace(b"touch %s", trap.encode()))
    for module, name in ((os, "system"), (builtins, "__import__")):
        monkeypatch.setattr(module, name, alarm)
    try:
        read_pickle(path)
    except SdaError as error:
        message = str(error)
    else:
        message = ""
    monkeypatch.undo()
    assert message.startswith(f"{path}: ") and "it ran" not in message and len(message) < 500


FORGED = (
    b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x02\x85cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR(I3\nS'|'\nN(S'a'\nt"
    b"(dS'a'\n(cnumpy\ndtype\n(S'O'\ntRI0\ntsI8\nI1\nI0\ntb\x89S'AAAAAAAAAAAAAAAA'\ntb."
)


def test_arrays_of_forged_objects_are_refused(pickled):
    """numpy would restore this type and interpret the bytes as pointers to objects."""
    refused(pickled(FORGED), says="it holds numbers of the type 'V8', not whole numbers")


def test_python_2_arrays_of_large_bytes(pickled):
    data = np.array([200, 255, 128], "u1")
    head = b"cnumpy.core.multiarray\nscalar\np0\n0(lp1\n"
    scalars = b"".join(
        b"g0\n(cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbS'\\x%02x'\ntRa" % value for value in data
    )
    assert read_pickle(pickled(head + scalars + b".")) == data.tolist()


def test_hostile_pickles_cannot_change_the_unpickler(pickled):
    for data in RAW.values():
        refused(pickled(data))
    assert read_pickle(pickled(pickle.dumps(np.array(INDICES)))) == INDICES


CLAIMS = {
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40),
    "BINBYTES": b"\x80\x03B\xff\xff\xff\xff",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40),
    "BYTEARRAY8 beyond": b"\x80\x05\x96" + b"\xff" * 8,
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40),
    "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40),
    "BINSTRING": b"T\xff\xff\xff\x7f",
    "LONG_BINPUT": b"]r\xff\xff\xff\x7f",
    "PUT": b"(lp99999999999999999999\n",
}


@pytest.mark.parametrize("data", CLAIMS.values(), ids=CLAIMS)
def test_claimed_sizes_allocate_no_memory(pickled, data):
    path = pickled(data + b"x.")
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_repeated_references_allocate_no_memory(pickled):
    """References are short, so a small file could expand to any size. They share their bytes instead."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01h\x00X\x06\x00\x00\x00latin1\x86q\x02"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\x00\x00\x10\x00\x85"
        b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R\x89h\x01h\x02Rtb"
    )
    path = pickled(b"\x80\x02(" + text + encode + b"h\x01h\x02R" * 100 + array * 100 + b"t.")
    tracemalloc.start()
    refused(path, says="no flat list")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_deep_nesting_does_not_overflow(pickled):
    deep = b")" + b"\x85" * 200_000  # as a key of a plain dict, this would crash Python with a segmentation fault
    refused(pickled(b"\x80\x02" + deep + b"."), says="no flat list")
    refused(pickled(b"\x80\x02}" + deep + b"K\x01s."), says="keys are not strings or whole numbers")
    refused(pickled(b"\x80\x02(" + deep + b"K\x01d."), says="keys are not strings or whole numbers")
    refused(pickled(b"\x80\x04\x8f(" + deep + b"\x90."), says="it holds a set")
    refused(pickled(b"\x80\x04(" + deep + b"\x91."), says="it holds a set")


# From indices to images


@pytest.fixture
def tree(tmp_path):
    items = []
    for key in ("train/ulm/b.png", "train/ulm/a.png", "train/bonn/c.png", "train/bonn/d.png", "train/zürich/e.png"):
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
        items.append(Item(key, path, None))
    (tmp_path / "train" / "ulm" / "notes.txt").write_text("no image")
    return items


def test_sorted_order(tree):
    assert from_indices([4, 0, 2], tree, "sorted") == ["train/zürich/e.png", "train/bonn/c.png", "train/ulm/a.png"]
    assert from_indices([4, 0, 2], tree[::-1], "sorted") == ["train/zürich/e.png", "train/bonn/c.png", "train/ulm/a.png"]


def test_given_order(tree):
    assert from_indices([1, 0], tree, "given") == ["train/ulm/a.png", "train/ulm/b.png"]


def test_walk_order_equals_os_walk(tree, tmp_path):
    """The original code uses os.walk of the folder of the split and takes files that end in .png."""
    names = [Path(folder, name) for folder, _, files in os.walk(tmp_path / "train") for name in files if name.endswith(".png")]
    expected = [path.relative_to(tmp_path).as_posix() for path in names]
    assert from_indices(list(range(5)), tree, "walk") == expected


def test_walk_order_by_hand(tree, monkeypatch):
    real = os.scandir

    def backwards(path):
        return Entries(sorted(real(path), key=lambda entry: entry.name, reverse=True))

    class Entries(list):
        def __enter__(self):
            return iter(self)

        def __exit__(self, *_):
            pass

        def close(self):
            pass

        def __next__(self):
            if not self:
                raise StopIteration
            return self.pop(0)

        def __iter__(self):
            return self

    monkeypatch.setattr(os, "scandir", backwards)
    keys = from_indices(list(range(5)), tree, "walk")
    assert [Path(key).stem for key in keys] == ["e", "b", "a", "d", "c"]


def test_walk_follows_links(tree, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train").symlink_to(tmp_path / "train", target_is_directory=True)
    (tmp_path / "train" / "ulm" / "loop").symlink_to(tmp_path / "train", target_is_directory=True)
    linked = [Item(item.key, elsewhere / item.key, None) for item in tree]
    assert sorted(from_indices(list(range(5)), linked, "walk")) == sorted(item.key for item in tree)


def test_walk_names_missing_images(tree):
    tree[0].image.unlink()
    with pytest.raises(SdaError, match=r"cannot be walked for the 5 images: 'train/ulm/b.png' is not found"):
        from_indices([0], tree, "walk")


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([0, 5], "split_0.pkl: index 5 .number 1 of 2. is outside 0 to 4: the split was made for other images than these 5"),
        ([-1], "split_0.pkl: index -1 "),
        ([2, 1, 2], "split_0.pkl: index 2 occurs twice .the second time as number 2."),
    ],
)
def test_invalid_indices_are_refused(tree, indices, says):
    with pytest.raises(SdaError, match=says):
        from_indices(indices, tree, "sorted", "split_0.pkl")


def test_an_unknown_order_is_refused(tree):
    with pytest.raises(SdaError, match="order = 'random': must be one of sorted, walk, given"):
        from_indices([0], tree, "random")
