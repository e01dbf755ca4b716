"""Segment images, folders and videos with a trained run, and write the predictions to a folder."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sda.errors import SdaError, is_out_of_memory
from sda.prediction.content import pixels_up_to
from sda.prediction.pipeline import Options, Outcome, predict_all
from sda.prediction.plan import KINDS, Found, find, make_folders, plan, remaining, some
from sda.prediction.record import RECORD, Record, made_by
from sda.prediction.render import id_values
from sda.protocol import Protocol
from sda.runs import trained
from sda.runs.compare import title_of
from sda.runs.trained import Run
from sda.system.owned import owned
from sda.system.progress import Bars


@dataclass(frozen=True)
class Summary:
    """What was predicted.

    Attributes:
        run: the network. out: folder of the predictions. kinds: see `sda.prediction.plan.KINDS`. outcome: what this call
            wrote. existing: number of inputs whose outputs existed. ignored: files in folders that were not
            predicted, because they are no images or videos, or maps of images. seconds: time taken.
    """

    run: Run
    out: Path
    kinds: list[str]
    outcome: Outcome
    existing: int
    ignored: list[Path]
    seconds: float

    def to_dict(self) -> dict:
        """Return plain values."""
        return {
            "run": str(self.run.folder),
            "out": str(self.out),
            "checkpoint": self.run.which,
            "network": self.run.network_name,
            "step": self.run.step,
            "kinds": self.kinds,
            "images": self.outcome.images,
            "videos": self.outcome.videos,
            "frames": self.outcome.frames,
            "existing": self.existing,
            "skipped": self.outcome.skipped,
            "ignored": list(map(str, self.ignored)),
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        done = self.outcome
        parts = [
            f"{done.images} images" if done.images or not done.videos else "",
            f"{done.videos} videos ({done.frames} frames)" if done.videos else "",
            f"{self.existing} already existed" if self.existing else "",
            f"{len(done.skipped)} skipped" if done.skipped else "",
        ]
        return f"{self.out}: {', '.join(filter(None, parts))}"


def predict_files(
    run: Path,
    inputs: list[Path],
    out: Path | None,
    kinds: list[str],
    options: Options,
    checkpoint: str,
    network: str,
    device: torch.device,
    resume: bool,
    overwrite: bool,
    bars: Bars,
) -> Summary:
    """Segment all images and videos in `inputs`, and write the outputs below a folder.

    Args:
        run: see `sda.runs.trained.load`. inputs: images, videos, and folders of them. out: None: predictions/RUN.
        kinds: keys of `sda.prediction.plan.KINDS`. resume: keep existing outputs. overwrite: replace existing outputs.

    Raises:
        SdaError: wrong arguments, a run that cannot be loaded, existing outputs, a full disk or too little memory.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise SdaError(f"--as {kind}: expected one or more of {', '.join(KINDS)}, separated by commas")
    out = out or Path("predictions") / title_of(run.parent if run.is_file() else run)
    with pixels_up_to(options.megapixels):
        found = find(inputs, [Path("predictions"), out / "classes.png", out / RECORD, *(out / kind for kind in KINDS)])
    tasks = plan(found, out, kinds)
    with contextlib.ExitStack() as contexts:
        try:
            contexts.enter_context(owned(out))
        except OSError as error:
            raise SdaError(f"--out {out}: cannot write to this folder ({error.strerror}); choose another one") from None
        left = remaining(tasks, resume, overwrite)
        loaded = trained.load(run, checkpoint, network, device)
        values = id_values(loaded, kinds)
        record = Record(out, made_by(loaded, options.size, options.scales, options.flip, values))
        if resume and (note := record.check(tasks)):
            bars.say(note)
        _say_what_is_ignored(found, bars)
        make_folders(out, kinds, loaded.table.colors, overwrite)
        began = time.perf_counter()
        try:
            contexts.enter_context(pixels_up_to(options.megapixels))
            outcome = predict_all(loaded, left, values, options, record, bars.count)
        except Exception as error:
            if is_out_of_memory(error):
                raise SdaError(f"{device} is out of memory; try --batch 1, then a smaller --size") from None
            raise
        seconds = time.perf_counter() - began
    outcome.skipped = sorted(found.skipped + outcome.skipped)
    for fault in outcome.skipped:
        bars.say(f"skipped: {fault}")
    if count := outcome.images + outcome.frames:
        cost = Protocol(scales=options.scales, flip=options.flip).cost
        bars.say(f"{cost}; {1000 * seconds / count:.0f} ms per image, with reading and writing")
    ignored = [file for files in found.ignored.values() for file in files]
    return Summary(loaded, out, kinds, outcome, len(tasks) - len(left), ignored, seconds)


def _say_what_is_ignored(found: Found, bars: Bars) -> None:
    if found.excluded:
        bars.say(f"{found.excluded} files in prediction folders are ignored")
    for reason, files in found.ignored.items():
        bars.say(f"ignored, {reason}: {some(files)}")
    if several := [file for file, content in found.contents.items() if content.frames]:
        bars.say(f"several frames or pages, only the first is predicted: {some(several)}")
