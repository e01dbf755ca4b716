"""Files that appear whole or not at all."""

import resource
import signal

import pytest
from PIL import Image

from sda.errors import SdaError
from sda.system.atomic import write_text, written_picture, written_whole


@pytest.fixture
def full_disk():
    """A limit on the size of files stands for a full disk: an error without a file name, while writing."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_the_error_of_a_full_disk_names_the_file(tmp_path, full_disk):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=f"File too large: '{path}'"), written_whole(path) as file:
        file.write(bytes(2000))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_picture_is_whole_or_the_old_one_remains(tmp_path, full_disk):
    path = tmp_path / "new/a.png"
    with written_picture(path) as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    before = path.read_bytes()
    with pytest.raises(SdaError, match=f"^{path}: this picture cannot be written"), written_picture(path) as file:
        Image.effect_noise((64, 64), 90).save(file, "PNG")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_text_keeps_the_bytes_of_names_that_are_not_utf8(tmp_path):
    write_text(tmp_path / "a.txt", b"\xff\n".decode(errors="surrogateescape"))
    assert (tmp_path / "a.txt").read_bytes() == b"\xff\n"
