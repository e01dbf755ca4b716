"""Propose the classes of a descriptor from the values in label files."""

import itertools
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.files import SKIP
from sda.data.inspect.encoding import find_large_ids
from sda.data.inspect.scan import Finding
from sda.data.layouts.legends import VOID, Legend, own_color
from sda.data.layouts.mixtures import ANCHORS, MOST_SMOOTH, PEAK, is_near, rgb, smooth_among, unmixed

MANY_COLOURS = 60  # colours that are probably not those of classes
LARGE = 0.2  # a value that covers more of the pixels than this is a class, even if it is 250 or 255


class Proposal(NamedTuple):
    """Lines of TOML: the plain keys, the tables, and the lines of each layout."""

    keys: list[str]
    tables: list[list[str]]
    layout: list[str]


_UNKNOWN = Proposal(['classes = "cityscapes19" # ? unknown without labels'], [], [])


def propose_names(names: list[str], titles: dict[str, str], findings: list[Finding], notes: list[str]) -> Proposal:
    """Propose classes for names in annotations. Add notes on the guesses, and on labels that cannot be used.

    Names such as background are void, unless only one class would remain. Names that differ only in their spelling are one.

    Args:
        titles: name → title of the class, where they differ; `class_NAME` is a guess.
    """
    _note_faults(findings, notes)
    share = _shares((finding.values for finding in findings), -1)
    void = [name for name in names if VOID.fullmatch(titles.get(name, name))]
    if len({descriptors.plain(titles.get(name, name)) for name in names if name not in void}) < 2:
        void = []
    classes: dict[str, str] = {}  # plain spelling → the first spelling
    named = {}
    for name in names:
        if name not in void:
            title = titles.get(name, name)
            named[name] = classes.setdefault(descriptors.plain(title), title)
    if not named or _too_many(len(classes), notes):
        return _UNKNOWN
    lines = []
    for index, title in enumerate(classes.values(), start=1):
        own = [name for name in named if named[name] == title]
        pixels, doubt = sum(share.get(f"={name}", 0) for name in own), "? " * (title in [f"class_{name}" for name in own])
        lines.append(f"{shelf.toml_value(title)} = {rgb(own_color(index))} # {doubt}{pixels:.1%} of pixels")
    keys = [f"void_names = {shelf.toml_value(void)}"] if void else []
    if void:
        notes.append(
            f"objects of the name {', '.join(void)} are ignored; to make them a class, edit void_names in the descriptor"
        )
    if len(classes) == 1:
        rest = "background" if named[next(iter(named))] != "background" else "other"
        lines.append(f"{shelf.toml_value(rest)} = [0, 0, 0] # ? {share.get('=', 0):.1%} of pixels, which no object covers")
        keys.append(f"background = {shelf.toml_value(rest)}")
    elif share.get("=", 0) > 0:
        notes.append(
            f"{share['=']:.0%} of the pixels are covered by no object: they are ignored; if they are a class, add "
            "background = CLASS to the descriptor"
        )
    renamed = [f"{shelf.toml_value(name)} = {shelf.toml_value(title)}" for name, title in named.items() if name != title]
    return Proposal(keys, [["[classes]", *lines], *([["[names]", *renamed]] if renamed else [])], [])


def _note_faults(findings: list[Finding], notes: list[str]) -> None:
    """Add a note on the labels that cannot be used."""
    faults = [finding.label_fault for finding in findings if finding.label_fault]
    if faults:
        notes.append(
            f"{len(faults)} of {len(findings)} labels that were read cannot be used: {faults[0].removesuffix(f', {SKIP}')}"
        )


def propose_classes(findings: list[Finding], notes: list[str], legend: Legend) -> Proposal:
    """Propose classes for the values in labels. Add notes on the guesses, and on labels that cannot be used.

    Args:
        legend: what files beside the labels say about their values.
    """
    _note_faults(findings, notes)
    usable = [finding for finding in findings if finding.values and not finding.label_fault]
    lossy, smooth = [finding for finding in usable if finding.lossy], _smooth_in(usable, legend)
    if lossy and not smooth:
        notes.append(
            f"{len(lossy)} of {len(findings)} labels that were read look as after lossy compression (JPEG) or smoothing, such as "
            f"that of {lossy[0].key}: export the labels again as PNG, without either"
        )
    clean = [finding for finding in usable if smooth or not finding.lossy]
    usable, least = (clean, 0.0) if clean else (usable, PEAK)
    if not usable:
        return _UNKNOWN
    colours = [finding for finding in usable if finding.kind == "rgb"]
    grey = all(value[1:3] == value[3:5] == value[5:7] for finding in colours for value in finding.values or {})
    ids = [finding for finding in usable if colours and not grey and finding.kind == "index"]
    of_ids = any(value.isdecimal() for value in legend)
    if legend and (told := _of_legend(legend, usable if of_ids or not ids else colours, smooth, notes)):
        return told if of_ids else _with_ids(told, ids, notes)
    if colours and not grey:
        every = _shares((finding.values for finding in colours), 0)
        smooth = smooth or smooth_among(every)
        kept = {value: share for value, share in every.items() if (smooth or share > least) and value not in smooth}
        proposal = _of_colours(kept, notes, whole=not smooth)
        tolerance = _tolerance([rgb(value) for value in kept], smooth, notes)
        return _with_ids(proposal._replace(keys=[*proposal.keys, *tolerance]), ids, notes)
    shown = [_colours_shown(finding) if finding.palette else {} for finding in usable]
    if all(shown) and _differ(shown):
        notes.append("the palettes of the labels differ from file to file, so the labels are read by their colours")
        return _of_colours(_shares(map(_by_colour, usable, shown), least), notes)
    palette = {value: colour for each in shown for value, colour in each.items()}
    if large := find_large_ids(usable):
        notes.append(large)
    values = _shares((finding.values if finding.kind == "index" else finding.red for finding in usable), least)
    proposal = _of_ids({int(value): share for value, share in values.items()}, palette, notes)
    if not colours:
        return proposal
    notes.append("the labels are RGB files with ids in their red channel")
    return proposal._replace(layout=['encoding = "ids_in_red"'])


def _shares(labels: Iterable[dict[str, int] | None], least: float) -> dict[str, float]:
    """Return value → its share of the pixels of all labels, 0 to 1, for the values whose share is larger than `least`."""
    counts: Counter[str] = Counter()
    for values in labels:
        counts.update(values or {})
    total = sum(counts.values())
    return {value: count / total for value, count in counts.items() if count / total > least}


def _colours_shown(finding: Finding) -> dict[int, str]:
    """Return id → colour of the ids that occur in a palettized label; empty if some have no colour."""
    ids, palette = sorted(map(int, finding.values or {})), finding.palette.split()
    return {value: palette[value] for value in ids} if palette and ids[-1] < len(palette) else {}


def _by_colour(finding: Finding, shown: dict[int, str]) -> Counter[str]:
    """Return colour → pixels of a palettized label."""
    pixels: Counter[str] = Counter()
    for value, count in (finding.values or {}).items():
        pixels[shown[int(value)]] += count
    return pixels


def _differ(shown: list[dict[int, str]]) -> bool:
    """Return whether an id has different colours in different labels."""
    colours: dict[int, str] = {}
    return any(colours.setdefault(value, colour) != colour for each in shown for value, colour in each.items())


def _of_ids(share: dict[int, float], palette: dict[int, str], notes: list[str]) -> Proposal:
    """Propose classes for ids. `palette`: id → colour, if the labels have one."""
    indices = sorted(value for value in share if 0 <= value <= 255)
    cityscapes = descriptors.load("cityscapes")
    known, train_ids = (descriptors.label_values(cityscapes, encoding) for encoding in ("ids", "train_ids"))
    if set(indices) <= known.keys() and max(indices, default=0) > 18 and sum(known[index] != 255 for index in indices) > 2:
        notes.append("the labels hold the label ids of Cityscapes")
        ids = [f"{value} = {shelf.toml_value(name)}" for value, name in cityscapes.ids.items()]
        return Proposal(['classes = "cityscapes19"', f"void = {cityscapes.void}"], [["[ids]", *ids]], [])
    shown = {colour: share.get(value, 0.0) for value, colour in palette.items()}
    more: list[str] = []
    if (proposal := _of_known_colours(shown, True, more)) and not proposal.tables:
        notes += more
        return proposal
    if set(indices) <= train_ids.keys() and set(indices) & {250, 255} and len(indices) > 10:
        notes.append("the labels seem to hold the 19 train ids of Cityscapes: if not, write your own table")
        return Proposal(['classes = "cityscapes19" # ? if these are its train ids'], [], ['encoding = "train_ids"'])
    void = _void(share, indices)
    named = [index for index in indices if index not in void]
    if not named or (len(named) == 1 and len(indices) < len(share)) or _too_many(len(named), notes):
        return _UNKNOWN  # also if one class remains because the ids of the others are above 255
    notes.append(f"found {len(indices)} values: name the classes")
    colours = {index: palette.get(index, own_color(index)) for index in named}
    if len(set(colours.values())) < len(named):
        colours = {index: own_color(index) for index in named}
    classes = []
    for index in named:
        doubt = f"; if they are not labelled, write void = [{index}] instead" if index in (250, 255) else ""
        classes.append(f"class_{index} = {rgb(colours[index])} # ? {share[index]:.1%} of pixels{doubt}")
    ids = [f"{index} = {shelf.toml_value(f'class_{index}')}" for index in named]
    return Proposal([f"void = {void}"] if void else [], [["[classes]", *classes], ["[ids]", *ids]], [])


def _void(share: dict[int, float], indices: list[int]) -> list[int]:
    """Return those of 250 and 255 that seem to be void: small areas beside at least two ids that are counted from 0 or 1.

    In 0, 255 or 0, 128, 255, they are classes that were drawn as greys.
    """
    others = [index for index in indices if index not in (250, 255)]
    widest = max((after - before for before, after in itertools.pairwise([0, *others])), default=0)
    if len(others) < 2 or 250 - others[-1] <= 2 * widest:
        return []
    return [index for index in indices if index in (250, 255) and share[index] <= LARGE]


def _too_many(count: int, notes: list[str]) -> bool:
    """Return whether a class table cannot have `count` classes. Add a note if so."""
    if count > descriptors.MOST_CLASSES:
        notes.append(
            f"found {count} values, but a class table has at most {descriptors.MOST_CLASSES} classes: are they class labels?"
        )
    return count > descriptors.MOST_CLASSES


def _of_colours(share: dict[str, float], notes: list[str], whole: bool = True) -> Proposal:
    """Propose classes for colours. `whole`: whether a whole class table may be proposed."""
    if numbered := _of_own_colours(share, notes):
        return numbered
    if known := _of_known_colours(share, whole, notes):
        return known
    if _too_many(len(share), notes):
        return _UNKNOWN
    if len(share) > MANY_COLOURS:
        notes.append(
            f"{len(share)} colours look like numbers of objects, not classes: export a mask with a colour per class, or COCO"
        )
    notes.append(f"found {len(share)} colours: name the classes, and move other colours to void_colors")
    classes = [f"colour_{value[1:]} = {rgb(value)} # ? {share[value]:.1%} of pixels" for value in sorted(share)]
    return Proposal([], [["[classes]", *classes]], [])


def _of_own_colours(share: dict[str, float], notes: list[str]) -> Proposal | None:
    """Propose the classes that sda gave these colours, with their numbers; None for other colours. Black is void, as in CVAT."""
    numbers = {own_color(index): index for index in range(256)}
    classes = {numbers[value]: value for value in share if value in numbers}
    if len(classes) < 2 or {*share} - {*classes.values(), "#000000"}:
        return None
    notes.append(
        f"the labels hold the colours that sda gave to {len(classes)} classes: if these had names, put the labelmap.txt of the "
        "export beside the labels, or name them again"
    )
    lines = [f"class_{index} = {rgb(value)} # ? {share[value]:.1%} of pixels" for index, value in sorted(classes.items())]
    return Proposal(["void_colors = [[0, 0, 0]]"] if "#000000" in share else [], [["[classes]", *lines]], [])


def _with_ids(proposal: Proposal, findings: list[Finding], notes: list[str]) -> Proposal:
    """Add the ids of labels that lie beside those in colours. An id has the class with its colour, in its palette or by
    `own_color`; another id is a class of its own, for the user to merge."""
    share = _shares((finding.values for finding in findings), 0)
    if not share or not proposal.tables:  # a known class table has its own ids
        return proposal
    by_color = {tuple(color): name for name, color in tomllib.loads("\n".join(proposal.tables[0]))["classes"].items()}
    shown = {value: colour for finding in findings for value, colour in _colours_shown(finding).items()}
    indices = sorted(value for value in map(int, share) if 0 <= value <= 255)
    void = _void({int(value): part for value, part in share.items()}, indices)
    own = {value: rgb(shown.get(value, own_color(value))) for value in indices if value not in void}
    alone = {value: color for value, color in own.items() if tuple(color) not in by_color}
    classes = [
        f"class_{value} = {color} # ? the id {value} in {share[str(value)]:.1%} of pixels" for value, color in alone.items()
    ]
    ids = [f"{value} = {shelf.toml_value(by_color.get(tuple(color), f'class_{value}'))}" for value, color in own.items()]
    notes.append(
        f"{len(findings)} labels hold ids, and the others colours"
        + (": if some are the same classes, give them one name in [ids]" if alone else "")
    )
    (first, *others), keys = proposal.tables, [*proposal.keys, *([f"void = {void}"] if void else [])]
    return Proposal(keys, [[*first, *classes], ["[ids]", *ids], *others], proposal.layout)


def _smooth_in(findings: list[Finding], legend: Legend) -> set[str]:
    """Return the colours in RGB labels that smoothing or slight loss made from those of the classes; empty if that is not sure.

    The colours of the classes are those of the legend, or of the labels that do not look lossy; else they are guessed.
    """
    colours = [finding for finding in findings if finding.kind == "rgb"]
    every = _shares((finding.values for finding in colours), 0)
    lossy = _shares((finding.values for finding in colours if finding.lossy), 0)
    clean = _shares((finding.values for finding in colours if not finding.lossy), 0)
    named = [value for value in legend if value in every]
    if len(named) < 2 and (found := smooth_among(every)):
        return found
    classes = named if len(named) > 1 else [*clean]
    if not lossy or not 1 < len(classes) <= ANCHORS:
        return set()
    classes += unmixed(classes, every)
    known = np.array([rgb(value) for value in classes])
    others = {value: share for value, share in lossy.items() if value not in classes}
    near = {value for value in sorted(others, key=lambda value: -others[value])[:MOST_SMOOTH] if is_near(value, known)}
    told = sum(others[value] for value in near) >= 0.9 * sum(others.values())
    return {value for value in every if value not in classes} if told else set()


def _tolerance(classes: list[list[int]], found: Collection[str], notes: list[str]) -> list[str]:
    """Return the line with the tolerance that gives all colours a meaning; [] if all are among `classes`, those that have one."""
    known = np.array(classes).reshape(-1, 3)
    others = [channels for value in found if (channels := rgb(value)) not in classes]
    if not others or not classes:
        return []
    least = max(int(abs(known - channels).max(axis=1).min()) for channels in others)
    notes.append(f"{len(others)} colours are between those of the classes, as after smoothing: the nearest class counts")
    return [f"color_tolerance = {min(255, least + 8)} # ? largest difference of a channel from the colour of a class"]


def _of_legend(legend: Legend, findings: list[Finding], smooth: set[str], notes: list[str]) -> Proposal | None:
    """Propose the classes of a file beside the labels; None if they are not those of the labels.

    Names such as background are void, unless only one class would remain.

    Args:
        smooth: the colours that smoothing made.
    """
    colours = any(value.startswith("#") for value in legend)
    every: Counter[str] = Counter()
    for finding in findings:
        shown = _colours_shown(finding) if colours and finding.kind == "index" else None
        values = finding.red if not colours and finding.kind == "rgb" else finding.values
        every.update(_by_colour(finding, shown) if shown else values or {})
    told = sum(every[value] for value in {*legend} | (smooth if colours else set()))
    if not every or told < 0.8 * sum(every.values()):
        return None
    others = [value for value in every if value not in legend]
    if not colours and not {*others} <= {"250", "255"}:
        return None
    void = {value for value, name in legend.items() if VOID.fullmatch(name)}
    if len({name for value, name in legend.items() if value not in void}) < 2:
        void = set()
    void |= set() if colours else {*others}
    own: dict[str, list[str]] = {}  # class → its values
    for value, name in legend.items():
        if value not in void:
            own.setdefault(name, []).append(value)
    share = {value: every[value] / sum(every.values()) for value in legend}
    shown_as = {value: rgb(value) if colours else rgb(own_color(int(value))) for value in legend}
    classes = [
        f"{shelf.toml_value(name)} = {shown_as[values[0]]} # {sum(share[value] for value in values):.1%} of pixels"
        for name, values in own.items()
    ]
    notes.append(f"a file beside the labels names {len(own)} classes")
    if not colours:
        ids = [f"{value} = {shelf.toml_value(name)}" for name, values in own.items() for value in values]
        red = any(finding.kind == "rgb" for finding in findings)
        keys = [f"void = {sorted(map(int, void))}"] if void else []
        return Proposal(keys, [["[classes]", *classes], ["[ids]", *ids]], ['encoding = "ids_in_red"'] if red else [])
    total = sum(every.values())
    strange = unmixed([value for value in legend if every[value]], {value: count / total for value, count in every.items()})
    if strange:
        notes.append(f"no file names the colours {', '.join(strange[:8])}: they are ignored, as void_colors in the descriptor")
    keys = (
        [f"void_colors = {[rgb(value) for value in [*sorted(void), *strange]]}" + " # ?" * bool(strange)]
        if void or strange
        else []
    )
    keys += _tolerance([*shown_as.values(), *map(rgb, strange)], every, notes)
    further = [
        f"{shelf.toml_value(name)} = {[rgb(value) for value in values[1:]]}" for name, values in own.items() if len(values) > 1
    ]
    return Proposal(keys, [["[classes]", *classes], *([["[other_colors]", *further]] if further else [])], [])


def _of_known_colours(share: Mapping[str, float], whole: bool, notes: list[str]) -> Proposal | None:
    """Propose the class table on the shelf that has most of the colours; None if no table has enough of them.

    Colours alone may mislead: programs give the colours of VOC to any classes. So classes are guesses, and only those that
    occur, unless most classes of the table do; other colours are classes to name, but for black and white, which are void.

    Args:
        share: colour → share of the pixels. whole: whether a whole table may be proposed, else the classes that occur.
    """
    tables = {name: descriptors.class_table(name).colors for name in shelf.names("datasets/classes")}
    values = {name: {tuple(color): each for each, color in colors.items()} for name, colors in tables.items()}
    found = {value: tuple(rgb(value)) for value in sorted(share)}
    table = max(values, key=lambda name: (sum(color in values[name] for color in found.values()), len(values[name])))
    other = [value for value, color in found.items() if color not in values[table]]
    if len(found) - len(other) <= 2 or 3 * len(other) > len(found):
        return None
    void = [list(found[value]) for value in other if value in ("#000000", "#ffffff")]
    keys = [f"void_colors = {void} # ?"] if void else []
    known = {value: values[table][color] for value, color in found.items() if value not in other}
    if whole and len(void) == len(other) and 2 * len(known) > len(tables[table]):
        notes.append(f"the labels hold the colours of the class table {table}")
        return Proposal([f'classes = "{table}"', *keys], [], [])
    notes.append(
        f"{len(known)} colours of the labels are those of {', '.join(list(known.values())[:3])}, … in the class table {table}: "
        "check the names of the classes"
    )
    order = {name: place for place, name in enumerate(tables[table])}
    lines = [
        f"{shelf.toml_value(name)} = {rgb(value)} # ? {share[value]:.1%} of pixels"
        for value, name in sorted(known.items(), key=lambda each: order[each[1]])
    ]
    lines += [
        f"colour_{value[1:]} = {rgb(value)} # ? {share[value]:.1%} of pixels" for value in other if list(found[value]) not in void
    ]
    return Proposal(keys, [["[classes]", *lines]], [])
