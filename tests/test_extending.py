"""The examples of docs/extending.md, run in order as one script."""

import re
import shutil
from pathlib import Path

import pytest

from sda.methods.by_name import METHODS
from sda.methods.settings import SETTINGS
from sda.models.backbones.by_name import BUILDERS

PAGE = Path(__file__).parents[1] / "docs/extending.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def names():
    """Remove what the examples add."""
    before = dict(METHODS), dict(SETTINGS), dict(BUILDERS)
    yield
    for table, held in zip((METHODS, SETTINGS, BUILDERS), before, strict=True):
        table.clear()
        table.update(held)


def test_every_example_runs(world, here, names):
    shutil.copytree(world.root / "field", here / "town")
    [descriptor] = blocks("toml")
    (here / "town.toml").write_text(descriptor)
    examples, variables = blocks("python"), {"__name__": "example"}
    assert len(examples) == 9
    for code in examples:
        exec(compile(code, str(PAGE), "exec"), variables)
    assert variables["Focal"].watched_loss == "focal"
    assert (here / "run/last.pt").exists() and "plain" in BUILDERS and "focal" in METHODS
