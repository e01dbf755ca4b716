"""Fingerprints of images and labels, by which a resumed run notices that its data has changed."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sda.data.item import Item
from sda.system.console import Progress, ignore_count

READ = 2**30  # maximum number of bytes to read for a list of images
THREADS = 8  # reading many files mostly waits for the disk


def fingerprint(items: Sequence[Item], labels: bool = True, progress: Progress = ignore_count) -> str:
    """Return a SHA-256 of the names, sizes and bytes of the files of a list.

    Small lists are read completely. Of each file of a larger list, only the beginning is read, READ bytes in total: a changed
    picture has other bytes there or another size, except in formats without compression.

    Args:
        labels: include the label files.

    Returns:
        "files:" or, if the images are in a pack, "pack:", followed by hexadecimal digits. The two cannot be compared.
    """
    kind = "pack" if any(item.stored for item in items) else "files"
    share = READ // max(1, len(items) * (1 + labels))
    whole = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as pool:
        for done, found in enumerate(pool.map(_one, items, itertools.repeat(labels), itertools.repeat(share)), start=1):
            whole.update(found)
            progress(done, len(items))
    return f"{kind}:{whole.hexdigest()}"


def _one(item: Item, labels: bool, share: int) -> bytes:
    found = hashlib.sha256(os.fsencode(item.key))
    if item.stored is not None:
        found.update(f"{item.stored.bytes} {item.stored.sha256}".encode())
        if labels and item.label is not None:
            found.update(item.stored.label().tobytes())
        return found.digest()
    files = item.label_files if labels else ()
    for path in (item.image, *files):
        found.update(_beginning(path, share))
    if labels and not files:
        found.update(b"none")
    elif labels and item.drawn:
        found.update(item.drawn.name.encode(errors="surrogateescape"))
    return found.digest()


def _beginning(path: Path, share: int) -> bytes:
    try:
        with path.open("rb") as file:
            return f"{os.fstat(file.fileno()).st_size} ".encode() + hashlib.sha256(file.read(share)).digest()
    except OSError:
        return b"unreadable"
