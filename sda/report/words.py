"""Numbers as text, and sentences about a run."""

import math
from pathlib import Path

from sda.analysis.bank import Contents
from sda.methods.parts.bank import SOURCE
from sda.report import facts
from sda.report.facts import Subject
from sda.scoring.summary import SUMMARY
from sda.system.console import duration


def joined(words: list[str]) -> str:
    """Return words as a list in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def percent(value: float | None) -> str:
    """Format a number with one decimal; a missing one is a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def signed(value: float | None) -> str:
    """Format a difference with its sign and one decimal; a missing one is a dash."""
    return "–" if value is None else f"{value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def size(sides: list[int] | str) -> str:
    """Format a size of a protocol: height × width, or words such as "native size"."""
    return sides if isinstance(sides, str) else f"{sides[0]}\u00a0×\u00a0{sides[1]}"


def of_protocol(protocol: dict) -> str:
    """Describe how a score was computed."""
    how = "whole images" if protocol["window"] == "whole image" else f"windows of {size(protocol['window'])}"
    words = f"{how} at {size(protocol['input'])}, labels at {size(protocol['labels'])}"
    if len(protocol["scales"]) > 1 or protocol["flip"]:
        scales = ", ".join(f"{scale:g}" for scale in protocol["scales"])
        noun = "scales" if len(protocol["scales"]) > 1 else "scale"
        return f"{words}, averaged over {noun} {scales}{' and mirror images' * protocol['flip']}"
    return f"{words}, one scale, no flip"


def of_subject(subject: Subject) -> str:
    """Name the method, the network and the datasets."""
    r = subject.recipe
    way = " → ".join(filter(None, [" + ".join(source.name for source in r.sources), Path(r.target).stem]))
    return " · ".join([r.method, f"{r.network}, {r.backbone}", way])


def of_images(subject: Subject) -> str:
    """Say how many images of each stream the run was trained on."""
    names = {
        "labelled": "labelled target",
        "unlabelled": "unlabelled target" if subject.recipe.unlabelled == "target" else "unlabelled",
        **_sources(subject),
        "held_out": "held-out",
    }
    known = facts.counts(subject)
    parts = [f"{known[stream]:,} {word}" for stream, word in names.items() if stream in known]
    words = f"{joined(parts)} images" if parts else f"{subject.recipe.labels} labelled target images"
    return words[0].upper() + words[1:]


def _sources(subject: Subject) -> dict[str, str]:
    """Return the words for the images of each source, by the name of their list: source, or NAME source if there are several."""
    sources = subject.recipe.sources
    return {each.images: "source" if len(sources) == 1 else f"{each.name} source" for each in sources}


def tiles(subject: Subject) -> list[dict]:
    """Return the numbers for the top of the page: `what`, `value`, `more` (a remark); `words` if the value is not a number."""
    values, recipe = subject.values, subject.recipe
    words = {"unlabelled": "unlabelled", **_sources(subject)}
    streams = [f"{count:,} {words[stream]}" for stream, count in facts.counts(subject).items() if stream in words]
    chosen = (
        f"labelled images chosen with seed {recipe.split_seed}" if recipe.labels not in (0, "all") and not recipe.split else ""
    )
    found = [
        ("labelled target images", facts.labels_used(subject), f"plus {joined(streams)}" if streams else ""),
        ("steps", f"{recipe.steps:,}", f"in {duration(values['seconds'])}" if subject.own else ""),
        ("seed", str(recipe.seed), chosen),
        *((m.title, f"{percent(values[m.key])} %", m.remark) for m in SUMMARY if not m.subset and m.key in values),
        ("protocol", values["protocol"]["name"], of_protocol(values["protocol"])),
    ]
    return [{"what": what, "value": value, "more": more, "words": what == "protocol"} for what, value, more in found]


def of_comparison(subject: Subject, title: str, other: Subject) -> str:
    """Say on how many images a run is better than another one, called `title`."""
    own, theirs = subject.values["image_miou"], other.values["image_miou"]
    pairs = [(value, theirs[key]) for key, value in own.items() if value is not None and theirs.get(key) is not None]
    better = sum(mine > their for mine, their in pairs)
    return f"This run has a higher mIoU than {title} on {better} of {len(pairs)} images."


def of_training(subject: Subject) -> str:
    """Say how long the training took, where it was resumed, and which steps were skipped."""
    words = [f"{subject.recipe.steps:,} steps"]
    if subject.own:
        words[0] += f" in {duration(subject.values['seconds'])} on {subject.environment.get('device', 'an unknown device')}"
    if resumed := subject.environment.get("resumed"):
        words.append(f"resumed at step {joined([str(each['step']) for each in resumed])}")
        words += [f"extends a run of {each['extends']:,} steps" for each in resumed if each.get("extends")]
    if skipped := subject.values.get("skipped_steps"):
        words.append(f"{skipped} skipped because their loss was not finite")
    if len(facts.evaluations(subject)) < 2:
        words.append("evaluated only once, at the end: train with --eval-every STEPS to get a curve of mIoU")
    return f"{'; '.join(words)}."


def of_calibration(bins: list[dict]) -> str:
    """Say whether the network is overconfident. `bins`: see `sda.scoring.metrics.calibration`."""
    excess = sum(each["share"] * (each["confidence"] - each["accuracy"]) for each in bins)
    if abs(excess) < 0.5:
        return "On average, the network's confidence equals its accuracy."
    side, name = ("above", "overconfident") if excess > 0 else ("below", "underconfident")
    return f"On average, the network's confidence is {percent(abs(excess))} points {side} its accuracy: it is {name}."


def of_bank(bank: Contents) -> str:
    """Say how full a bank is, and where its entries come from."""
    count, entries = bank.valid.shape
    empty = [name for name, valid in zip(bank.classes, bank.valid, strict=True) if not valid.any()]
    if len(empty) == count:
        return "The bank is empty."
    filled, source = (f"{100 * part.mean():.0f} %" for part in (bank.valid, bank.domain[bank.valid] == SOURCE))
    words = f"At step {bank.at:,}, {filled} of the {count} × {entries} entries are filled; {source} of them come from the source."
    return f"{words} There are no entries of {joined(empty)}." if empty else words
