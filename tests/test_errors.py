"""Errors that name their file, and the words with which PyTorch says that memory ran out."""

import errno
import os

import pytest
import torch

from sda.errors import SdaError, explained, is_out_of_memory, naming


def test_an_error_without_a_file_gets_its_name_and_others_keep_theirs(tmp_path):
    with pytest.raises(OSError, match="No space left on device: 'mine'"), naming("mine"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="other"), naming("mine"):
        (tmp_path / "other").open()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("full"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shape mismatch"), False),
        (SdaError("a.png: out of memory"), False),  # it says already what to do
    ],
)
def test_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected == (str(explained(error)) == "out of memory")
