"""The tutorial docs/own-data.md, followed word by word."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs/own-data.md"
SHORT = "--steps 4 --size 64x128 --eval-every 0"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_it_says(here):
    said = []
    for block in blocks("sh"):
        script = re.sub(r"^(sda train [^#\n]*)", rf"\1 {SHORT} ", block, flags=re.MULTILINE)
        start = f'set -e; sda() {{ "{sys.executable}" -m sda "$@"; }}\n'
        done = subprocess.run(["bash", "-c", start + script], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        if block.startswith("sda init"):
            said = (done.stderr + done.stdout).splitlines()
    [expected] = blocks("text")
    assert said == expected.splitlines()
    for name in re.findall(r"^\| `([\w.-]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert (here / "town-sda" / name).is_file(), name
    for name in ("runs/doctor-town/contact.png", "reports/train-town/report.html", "runs/town-30/result.json"):
        assert (here / name).is_file(), name
    exported = [path for path in (here / "to-label").rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(exported) >= 20


def test_its_pictures_are_small():
    pictures = re.findall(r"!\[.+\]\((.+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(pictures) >= 2
    for name in pictures:
        file = PAGE.parent / name
        with Image.open(file) as picture:
            assert picture.width <= 1200 and file.stat().st_size < 250_000
