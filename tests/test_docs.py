"""The documentation: its commands exist, its links resolve, and its numbers follow from its tables."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sda import shelf
from sda.cli.commands import COMMANDS, cli
from sda.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGES.md", ROOT / "benchmarks/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FRONT_PAGE_LINES = 120


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """The sda commands in a page's shell blocks and code spans, without `sda`."""
    text = page.read_text(encoding="utf-8")
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        lines += [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = (re.match(r"(?:sda|.*-m sda) (.+)", line) for line in lines if not line.startswith("#"))
    return [match[1] for match in found if match]


def is_placeholder(word: str) -> bool:
    return word.isupper()


def check(command: str) -> None:
    """Assert that a command, its options, its recipe and the recipe's fields exist."""
    name, *words = shlex.split(command.split(" > ")[0], comments=True)
    if is_placeholder(name):
        return
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, f"sda {command}: no such command"
    if name == "train" and words and not words[0].startswith("-"):
        recipe = words[0]
        if not is_placeholder(recipe) and not recipe.endswith(".toml"):
            assert recipe in shelf.names("recipes"), f"sda {command}: no such recipe"
        known = recipe if recipe in shelf.names("recipes") else "streets-ssda"
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), known)
    assert found is not None
    options = {option for parameter in found.params for option in parameter.opts} | {"--help"}
    for place, word in enumerate(words):
        if word.startswith("--"):
            assert word in options, f"sda {command}: no such option: {word}"
        if word in ("--set", "--over", "--row") and place + 1 < len(words):
            fields = [pair.partition("=")[0] for pair in words[place + 1].split()]
            assert all(is_placeholder(field) or field in Recipe.model_fields for field in fields), f"sda {command}: no such field"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= FRONT_PAGE_LINES


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_exist(page):
    for command in commands(page):
        check(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "trian streets-ssda",
        "train streets-sdda",
        "train streets-ssda --labls 4",
        "train streets-ssda --set labls=4",
        "runs --all",
    ],
)
def test_check_rejects_wrong_commands(wrong):
    with pytest.raises(AssertionError, match="no such"):
        check(wrong)


def test_commands_are_read_from_blocks_and_spans(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`sda runs`\n```sh\n# sda none\nsda train a \\\n  --steps 3  # why\ntorchrun -m sda demo\n```\n", encoding="utf-8"
    )
    assert commands(page) == ["train a    --steps 3  # why", "demo", "runs"]


def test_the_index_names_every_command_and_every_page():
    index = ROOT / "docs/README.md"
    named = {command.split()[0] for command in commands(index)}
    assert COMMANDS.keys() <= named, COMMANDS.keys() - named
    text = index.read_text(encoding="utf-8")
    assert not [page.name for page in PAGES if page.parent == index.parent and page != index and f"({page.name})" not in text]


def test_contributing_names_every_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `sda/(\w+)` \|", text, flags=re.MULTILINE))
    assert rows == {path.parent.name for path in (ROOT / "sda").glob("*/__init__.py")}


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:sda|tests|recipes|datasets|benchmarks|docs)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name


def test_numbers_in_the_results_follow_from_their_tables():
    """The numbers in the text are those that its Python block prints."""
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    printed = {line.split()[0]: line for line in shown.splitlines()}
    claimed = {"k-medoids": "+0.32 [−0.35, +1.00]", "k-centre": "−0.90 [−1.50, −0.30]"}
    claimed |= {"entropy": "−0.76 [−1.49, −0.03]", "bank": "−0.34 [−0.84, +0.15]"}
    assert printed.keys() == {"random", *claimed}
    for strategy, numbers in claimed.items():
        assert numbers in " ".join(text.split()), strategy
        _, count, *values = re.sub(r"[\[\],]", " ", printed[strategy]).split()
        expected = [float(value) for value in re.sub(r"[\[\],]", " ", numbers.replace("−", "-")).split()]
        assert count == "18" and [float(value) for value in values] == pytest.approx(expected, abs=0.0051)
