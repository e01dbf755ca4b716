"""Read videos frame by frame, and write frames to a video or to numbered images."""

import contextlib
import errno
import math
import re
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image

from sda.data.files import FileError
from sda.pictures import resize_image
from sda.system.atomic import written_whole

SLOWEST, FASTEST = Fraction(1, 1000), Fraction(1000)  # limits of the frame rate; frames keep their times
TICKS = 10_000  # minimum number of time units per second

Place = tuple[int, int]  # number of a frame, and its time in units of `_tick`
Sink = Callable[[Place, Image.Image], None]


@contextlib.contextmanager
def opened(
    path: Path, megapixels: float, check: Callable[[tuple[int, int]], object]
) -> Iterator[tuple[Iterator[tuple[Place, Image.Image]], Fraction, int, int]]:
    """Open a video.

    Args:
        megapixels: maximum size of a frame. check: called with (height, width) of the first frame; may raise FileError.

    Yields:
        An iterator over the frames, upright and all at the size of the first frame; the frame rate; an estimate of the number of
        frames; and the number in the file's header. Unknown numbers are 0.

    Raises:
        FileError: the video cannot be read; the iterator raises it too.
    """
    import av

    def frames() -> Iterator[tuple[Place, Image.Image]]:
        size: tuple[int, int] | None = None
        first, last = 0, -1
        try:
            for number, frame in enumerate(container.decode(stream)):
                if frame.width * frame.height > most:
                    raise too_large(frame.width, frame.height)
                picture = frame.to_image()
                if frame.rotation:
                    picture = picture.rotate(frame.rotation, expand=True)
                if size is None:
                    size, first = picture.size, frame.pts or 0
                    try:
                        check(size[::-1])
                    except FileError as error:
                        raise FileError(f"{path}: {error}") from None
                unit = frame.time_base or Fraction(0)
                seconds = number / rate if frame.pts is None else (frame.pts - first) * unit
                nearest = round(seconds * rate) / rate
                if abs(seconds - nearest) <= unit:  # some formats round to milliseconds
                    seconds = nearest
                last = max(last + 1, round(seconds / _tick(rate)))
                yield (number, last), resize_image(picture, size[::-1])
        except av.FFmpegError as error:
            raise FileError(f"{path}: cannot read this video to its end ({error.strerror})") from None
        except (ValueError, ArithmeticError, MemoryError) as error:
            raise FileError(f"{path}: cannot read this video to its end ({error})") from None
        if size is None:
            raise FileError(f"{path}: this video has no frames")

    def too_large(width: int, height: int) -> FileError:
        return FileError(f"{path}: frames of {width}x{height} pixels are more than --max-megapixels {megapixels:g}")

    most = int(megapixels * 1e6)
    with contextlib.ExitStack() as files:
        try:
            # An open file, because a path is also taken for a URL. Playlists may not open other files or addresses.
            file = files.enter_context(path.open("rb"))
            container = files.enter_context(av.open(file, "r", options={"protocol_whitelist": ""}))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise FileError(f"{path}: cannot read this video ({getattr(error, 'strerror', None) or error})") from None
        if not container.streams.video:
            raise FileError(f"{path}: this video has no frames")
        stream = container.streams.video[0]
        if stream.width * stream.height > most:
            raise too_large(stream.width, stream.height)
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(most)}
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)
        rate = min(max(rate, SLOWEST), FASTEST)
        seconds = container.duration / av.time_base if container.duration else 0
        yield frames(), rate, stream.frames or round(seconds * rate), stream.frames


def _tick(rate: Fraction) -> Fraction:
    """Return a unit of time in seconds that divides the time between frames."""
    return 1 / (rate * math.ceil(TICKS / rate))


@contextlib.contextmanager
def written(path: Path, rate: Fraction) -> Iterator[Sink]:
    """Write frames of one size to a video: H.264 in MP4, BT.709 colours; odd sizes without chroma subsampling."""
    import av
    from av.video.stream import VideoStream

    stream: VideoStream | None = None

    def put(place: Place, picture: Image.Image) -> None:
        nonlocal stream
        if stream is None:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
            stream.width, stream.height = picture.size
            stream.pix_fmt = "yuv444p" if picture.width % 2 or picture.height % 2 else "yuv420p"
            coder = stream.codec_context
            coder.time_base = _tick(rate)
            coder.colorspace = coder.color_primaries = coder.color_trc = coder.color_range = 1  # BT.709, limited range
        frame = av.VideoFrame.from_image(picture)
        frame = frame.reformat(format=stream.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.duration, frame.time_base = place[1], round(1 / (rate * _tick(rate))), _tick(rate)
        container.mux(stream.encode(frame))

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file, av.open(file, "w", format="mp4") as container:
        yield put
        assert stream is not None, "no frames"
        container.mux(stream.encode(None))


@contextlib.contextmanager
def numbered(folder: Path) -> Iterator[Sink]:
    """Write frames as 000000.png, 000001.png, …; the folder gets its final name when it is complete."""
    temporary, replaced = (folder.with_name(f"{folder.name}.{word}") for word in ("partial", "replaced.partial"))
    shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted run
    temporary.mkdir(parents=True)
    try:
        yield lambda place, picture: picture.save(temporary / f"{place[0]:06d}.png")
        if folder.is_dir():
            _check_own(folder)
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _check_own(folder: Path) -> None:
    """Raise OSError if a folder has other files than numbered images."""
    if others := [path.name for path in folder.iterdir() if not re.fullmatch(r"\d{6,}\.png", path.name)]:
        raise OSError(errno.ENOTEMPTY, f"it has files that sda did not write, such as {others[0]}", str(folder))
