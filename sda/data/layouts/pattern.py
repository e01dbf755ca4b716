"""Patterns of layouts: find the files that match one, and fill one with the words of another.

Names are compared with each accented letter as one character (NFC), because macOS stores two. Upper and lower case differ.
"""

import bisect
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from sda.errors import SdaError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl"}
_EXT = ".{ext}"  # ends a pattern that takes all of these suffixes, in upper or lower case


def composed(name: str) -> str:
    """Return a name with each accented letter as one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_image(name: str) -> bool:
    """Return whether a file has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def no_access(error: OSError) -> NoReturn:
    """Raise SdaError for a file or folder that cannot be read."""
    raise SdaError(f"{error.filename}: cannot be read ({error.strerror}); fix its permissions") from None


class Tree:
    """The folders below a root. Each is read once, when it is needed.

    The methods map the composed name of an entry to its stored names: several if they differ only in how accents are stored.
    They raise SdaError if a folder cannot be read.
    """

    def __init__(self, root: Path):
        self.root = root
        self._read: dict[Path, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}
        self._images: dict[Path, dict[str, list[str]]] = {}
        self._sorted: dict[int, list[str]] = {}

    def beginning(self, names: dict[str, list[str]], text: str) -> Iterator[str]:
        """Yield those of the `files`, `images` or `folders` of a folder that begin with a text, sorted."""
        if id(names) not in self._sorted:  # the dictionaries of a tree live as long as it
            self._sorted[id(names)] = sorted(names)
        ordered = self._sorted[id(names)]
        for place in range(bisect.bisect_left(ordered, text), len(ordered)):
            if not ordered[place].startswith(text):
                return
            yield ordered[place]

    def folders(self, place: Path) -> dict[str, list[str]]:
        """Return the folders in a folder."""
        return self._entries(place)[0]

    def files(self, place: Path) -> dict[str, list[str]]:
        """Return the files in a folder. Pipes, sockets and devices are not among them: reading one would never end."""
        return self._entries(place)[1]

    def images(self, place: Path) -> dict[str, list[str]]:
        """Return the files with the suffix of an image in a folder, by their names without it."""
        if place not in self._images:
            images = self._images[place] = {}
            for name, stored in self.files(place).items():
                if is_image(name):
                    images.setdefault(os.path.splitext(name)[0], []).extend(stored)
        return self._images[place]

    def _entries(self, place: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        if place not in self._read:
            folders: dict[str, list[str]] = {}
            files: dict[str, list[str]] = {}
            for names, found in zip(entries_of(place), (folders, files), strict=True):
                for name in names:
                    found.setdefault(composed(name), []).append(name)
            self._read[place] = folders, files
        return self._read[place]


def entries_of(
    folder: Path, unreadable: Callable[[OSError], object] = no_access, special: Callable[[Path], object] = lambda path: None
) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted. Skip pipes, sockets and devices.

    Args:
        unreadable: called for a folder that cannot be read; by default, raises SdaError.
        special: called with the path of each pipe, socket and device.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file() or entry.is_symlink()
                except OSError:  # a link that leads nowhere: whoever reads it reports it
                    is_folder, is_file = False, True
                if is_folder or is_file:
                    (folders if is_folder else files).append(entry.name)
                else:
                    special(Path(entry.path))
    except OSError as error:
        unreadable(error)
    return sorted(folders), sorted(files)


class Pattern:
    """A path relative to a root with {words}, such as `{split}/{city}/{city}_{frame}.png`.

    Each {word} matches one or more characters except `/`. If a name can be divided in several ways, earlier words are as long
    as possible. A word that occurs again has the value of its first occurrence. `.{ext}` at the end matches the suffix of any
    image. Matching takes time proportional to the length of a name.

    Attributes:
        shown: the pattern with `*` for each unknown word, for messages.
        words: the names of the unknown words, except ext.
        literal: number of characters outside of words: of two patterns that match a file, the one with more is more specific.
    """

    def __init__(self, pattern: str, known: Mapping[str, str]):
        """`known` has the values of words that are known, such as split."""
        self.any_suffix = pattern.endswith(_EXT)
        self._parts: list[list[str]] = [[""]]  # the parts between slashes; in each, every second entry is the name of a word
        for place, text in enumerate(re.split(r"{(\w+)}", composed(pattern).removesuffix(_EXT))):
            if place % 2 and text not in known:
                self._parts[-1] += [text, ""]
                continue
            first, *others = (known[text] if place % 2 else text).split("/")
            self._parts[-1][-1] += composed(first)
            self._parts += [[composed(other)] for other in others]
        self.shown = "/".join("*".join(part[::2]) for part in self._parts) + (".*" if self.any_suffix else "")
        self.words = list(dict.fromkeys(word for part in self._parts for word in part[1::2]))
        self.literal = sum(len(text) for part in self._parts for text in part[::2])

    def match(self, path: str) -> dict[str, str] | None:
        """Return the values of the words in a path relative to the root; None if the path does not match."""
        names = composed(path).split("/")
        words: dict[str, str] = {}
        if len(names) != len(self._parts):
            return None
        for place, name in enumerate(names):
            if (matched := self._match(place, name, words)) is None:
                return None
            words = matched
        return words

    def find(self, tree: Tree) -> Iterator[tuple[Path, dict[str, str]]]:
        """Yield each file below the root that matches, with the values of the words. Skip hidden files and folders."""
        found: list[tuple[Path, dict[str, str]]] = [(tree.root, {})]
        for place, part in enumerate(self._parts[:-1]):
            if part == [".."]:
                found = [(folder / "..", words) for folder, words in found]
            else:
                found = [hit for folder, words in found for hit in self._inside(place, folder, tree.folders(folder), words)]
        for folder, words in found:  # a folder with the name of an image is a fault to report
            for names in (tree.files(folder), tree.folders(folder)):
                yield from self._inside(len(self._parts) - 1, folder, names, words)

    def fill(self, tree: Tree, words: Mapping[str, str]) -> list[Path]:
        """Return the files below the root that this pattern names if its words have these values.

        There may be several if the pattern ends with {ext}, or if stored names differ only in their accents.
        """
        *heads, last = ("".join(words[text] if at % 2 else text for at, text in enumerate(part)) for part in self._parts)
        folders = [tree.root]
        for name in heads:
            if name == "..":
                folders = [folder / name for folder in folders]
            else:
                folders = [folder / stored for folder in folders for stored in tree.folders(folder).get(name, [])]
        files = tree.images if self.any_suffix else tree.files
        return [folder / stored for folder in folders for stored in files(folder).get(last, [])]

    def fill_but(self, tree: Tree, words: Mapping[str, str], free: str) -> list[tuple[Path, str]]:
        """Return the files that this pattern names if all its words but one have these values, each with the value of that."""
        found: list[tuple[Path, dict[str, str]]] = [(tree.root, dict(words))]
        for place, part in enumerate(self._parts):
            list_of = tree.folders if place < len(self._parts) - 1 else tree.images if self.any_suffix else tree.files
            if part == [".."]:
                found = [(folder / "..", known) for folder, known in found]
            else:
                found = [hit for folder, known in found for hit in _filled(tree, folder, list_of(folder), part, known, free)]
        return [(path, known[free]) for path, known in found]

    def _inside(
        self, place: int, folder: Path, names: Mapping[str, list[str]], words: dict[str, str]
    ) -> Iterator[tuple[Path, dict[str, str]]]:
        """Yield the entries of a folder that match one part of the pattern."""
        hidden = self._parts[place][0].startswith(".")  # macOS leaves ._files behind
        for name, stored in names.items():
            if (hidden or name[0] != ".") and (matched := self._match(place, name, words)) is not None:
                yield from ((folder / each, matched) for each in stored)

    def _match(self, place: int, name: str, words: dict[str, str]) -> dict[str, str] | None:
        """Match a name with one part of the pattern. Return the values of all words so far."""
        if self.any_suffix and place == len(self._parts) - 1:
            if not is_image(name):
                return None
            name = os.path.splitext(name)[0]
        (_, head), *gaps = _gaps(self._parts[place], words)
        if not gaps:
            return words if name == head else None
        stop = len(name) - len(gaps[-1][1])
        if not name.startswith(head) or not name.endswith(gaps[-1][1]):
            return None
        found = dict(words)
        befores = [text for _, text in gaps[:-1]]
        for (word, _), before in zip(gaps[:0:-1], befores[::-1], strict=True):  # each text as far to the right as possible
            at = name.rfind(before, 0, max(stop - 1, 0))
            if at < 0:
                return None
            found[word], stop = name[at + len(before) : stop], at
        found[gaps[0][0]] = name[len(head) : stop]
        return found if stop > len(head) else None


def _filled(
    tree: Tree, folder: Path, names: dict[str, list[str]], part: list[str], words: dict[str, str], free: str
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the entries of a folder that one part of a pattern names, for all values of the word `free`."""
    texts = [words.get(text, "\0") if place % 2 else text for place, text in enumerate(part)]
    head, gap, tail = "".join(texts).partition("\0")
    if not gap:
        yield from ((folder / stored, words) for stored in names.get(head, []))
        return
    for name in tree.beginning(names, head):
        value = name[len(head) : len(name) - len(tail)]
        if value and name.endswith(tail) and (head or name[0] != "."):
            yield from ((folder / stored, {**words, free: value}) for stored in names[name])


def _gaps(part: list[str], words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return ("", leading text), then (word, text after it) for each unknown word of a part; known words become text."""
    gaps = [["", part[0]]]
    for word, text in zip(part[1::2], part[2::2], strict=True):
        if word in words:
            gaps[-1][1] += words[word] + text
        else:
            gaps.append([word, text])
    return [(word, text) for word, text in gaps]
