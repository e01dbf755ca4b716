"""Open the images of any dataset or folder for scoring or analysis with a trained network."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sda.data import descriptor as descriptors
from sda.data.assemble import Data
from sda.data.dataset import Dataset
from sda.data.descriptor import Classes, ClassTable, Descriptor
from sda.data.inspect.encoding import check_palettes
from sda.data.listing import Listing, NoImages, list_folder, list_items
from sda.data.opening import check_labels, find_root, note_squashed, open_codec, open_split, open_validation, without_bad
from sda.errors import SdaError
from sda.sizes import Fit
from sda.system.console import Count, ignore_count


def evaluation_set(
    table_name: str,
    table: ClassTable,
    size: tuple[int, int] | None,
    dataset: str,
    root: str,
    split: str,
    progress: Count = ignore_count,
    maps: Mapping[str, Mapping[str, str]] = {},
    fit: Fit = "stretch",
    held_out: Collection[str] = (),
    of_train: bool = False,
) -> Data:
    """Open the labelled images of any dataset as `val`, without the pairs that the doctor found bad.

    Args:
        table_name, table: the classes of the labels.
        size: (height, width) of the network's input; None for the images' own size. Labels keep their own size.
        dataset: a name or a TOML path.
        root: its folder or pack; empty for the descriptor's own.
        maps: see `Classes.maps`. fit: how images are resized to `size`: see `sda.sizes.fitted`.
        held_out: keys of training images to use if the dataset has no images of val, or, if `of_train`, in any case.
    """
    data, classes = Data(table, table_name), Classes(table_name, table, maps)
    descriptor = descriptors.load(dataset)
    folder = find_root(descriptor, root, "--root", progress)
    data.val = open_validation(
        *(dataset, descriptor, folder, split, size, classes, data.notes),
        fit=fit,
        of_train=(lambda items: held_out) if held_out else None,
        listed=of_train,
    )
    data.lists["val"] = data.val.items
    note_squashed(split, data.val, data.notes)
    if not of_train and split != "train" and not folder.is_file():  # a pack holds no palettes
        with contextlib.suppress(NoImages):  # then the images are of train, with its palettes
            val = replace(list_items(descriptor, folder, split), items=data.val.items)
            check_palettes(descriptor, _with_train(dataset, descriptor, folder, val), folder)
    return data


def _with_train(dataset: str, descriptor: Descriptor, root: Path, val: Listing) -> Iterator[Listing]:
    """Yield the images to score on, and those of training if there are any."""
    yield val
    with contextlib.suppress(SdaError):
        yield without_bad(open_split(dataset, descriptor, root, "train", None, []), []).listing


def all_images(
    table_name: str,
    table: ClassTable,
    size: tuple[int, int] | None,
    dataset: str,
    root: str,
    split: str,
    progress: Count = ignore_count,
    maps: Mapping[str, Mapping[str, str]] = {},
    fit: Fit = "stretch",
) -> tuple[Dataset, Path, list[str]]:
    """Open every image of a split of any dataset, or of a folder, at `size`; labels, if any, keep their own size.

    Args:
        table_name, table: the classes of the labels.
        dataset: a name, a TOML path, or a folder of images.
        maps: see `Classes.maps`.

    Returns:
        The images, their folder or pack, and notes for the user.
    """
    if Path(dataset).is_dir():
        listing = list_folder(Path(dataset))
        return Dataset(listing.items, None, size, fit=fit), Path(dataset), list(listing.notes)
    notes: list[str] = []
    descriptor = descriptors.load(dataset)
    folder = find_root(descriptor, root, "--root", progress)
    opened = without_bad(open_split(dataset, descriptor, folder, split, size, notes, fit), notes)
    codec = None
    if any(item.label for item in opened.items):
        check_labels(opened, notes)
        codec = open_codec(opened, Classes(table_name, table, maps), notes)
    return Dataset(opened.items, codec, size, True, fit), folder, notes
