"""Rules of the architecture: which package may import which, no import cycles, and commands that do not import PyTorch."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sda"

# Top-level modules that every package may import. They import only each other, and three lists that need no PyTorch: the
# settings of the methods, the names of the networks, and the criteria.
BASE = {"errors", "labels", "protocol", "reading", "shelf", "recipe", "sizes", "pictures"}
BASE_MAY_IMPORT = BASE | {"methods.settings", "models.names", "scoring.criteria"}

# Package → the packages that it may import. Each package comes after the ones that it imports.
MAY_IMPORT = {
    "system": set(),
    "streets": {"system"},
    "models": {"system"},
    "data": {"system", "streets"},
    "methods": {"system", "models", "data"},
    "scoring": {"system", "models", "data"},
    "runs": {"system", "models", "data", "scoring"},
    "training": {"system", "models", "data", "methods", "scoring", "runs"},
    "prediction": {"system", "data", "scoring", "runs"},
    "export": {"system", "models", "data", "scoring", "runs"},
    "analysis": {"system", "models", "data", "methods", "scoring", "runs"},
    "report": {"system", "data", "methods", "scoring", "runs", "analysis"},
    "experiments": {"system", "models", "data", "methods", "scoring", "runs", "training"},
    "cli": None,  # anything, but nothing imports it
}
MOST_FILES = 10  # in one folder, besides __init__.py


def modules():
    """Return all modules of sda: dotted name below sda → file."""
    files = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and path.name != "__main__.py")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in files}


def imports(path, known):
    """Return the modules below sda that a file imports, at the top or inside functions, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {name if name.removeprefix("sda.") in known else node.module for name in _names(node)}
    return {name.removeprefix("sda.") for name in found if name.startswith("sda.")}


def _names(node):
    return [f"{node.module}.{alias.name}" for alias in node.names]


@functools.cache
def graph():
    known = modules()
    return {name: imports(path, known) for name, path in known.items()}


def package_of(name):
    return name.split(".")[0]


def test_every_package_is_in_the_table():
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == MAY_IMPORT.keys()
    assert {path.stem for path in PACKAGE.glob("*.py")} == BASE | {"__init__", "__main__"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down(package):
    allowed = MAY_IMPORT[package]
    if allowed is None:
        return
    for name, imported in graph().items():
        if package_of(name) == package:
            others = {other for other in imported if package_of(other) not in {package, *BASE, *allowed}}
            assert not others, f"sda.{name} imports {', '.join(sorted(others))}"


def test_base_modules_import_only_each_other():
    for name, imported in graph().items():
        if name in BASE:
            others = {other for other in imported if other not in BASE_MAY_IMPORT and package_of(other) not in BASE_MAY_IMPORT}
            assert not others, f"sda.{name} imports {', '.join(sorted(others))}"


def test_no_import_cycles():
    found = graph()
    done, path = set(), []

    def visit(name):
        if name in path:
            raise AssertionError(" → ".join([*path[path.index(name) :], name]))
        if name in done or name not in found:
            return
        path.append(name)
        for other in sorted(found[name]):
            visit(other)
        done.add(path.pop())

    for name in found:
        visit(name)


def test_folders_are_small():
    for folder in {path.parent for path in modules().values()}:
        files = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
        assert len(files) <= MOST_FILES, folder


# Forbidden imports

FORBIDDEN = {
    "methods.": {"recipe"},  # methods get plain numbers
    "training.": {"data.inspect.doctor", "analysis", "cli"},
    "prediction.": {"training", "methods"},
    "runs.trained": {"training", "methods"},
}


@pytest.mark.parametrize("start", FORBIDDEN)
def test_forbidden_modules_are_not_reached(start):
    """Imports through other modules count too, except through the settings, which the recipe is built from."""
    found = graph()
    for name in found:
        if not name.startswith(start):
            continue
        reached, waiting = set(), [name]
        while waiting:
            for other in found.get(waiting.pop(), ()):
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
        for other in reached - {"methods.settings"}:
            bad = [top for top in FORBIDDEN[start] if other == top or other.startswith(f"{top}.")]
            assert not bad, f"sda.{name} reaches sda.{other}"


def test_help_imports_no_package_but_click():
    code = (
        "import sys\nfrom sda.cli.commands import cli\ntry: cli(['--help'])\nexcept SystemExit: pass\n"
        "slow = {'numpy', 'pydantic', 'rich', 'h5py', 'PIL', 'torch'} & set(sys.modules)\nassert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "streets-ssda", "--help"], ["recipes"], ["datasets"]])
def test_commands_do_not_import_torch(arguments):
    code = (
        "import sys\nfrom sda.cli.commands import cli\n"
        f"try: cli({arguments})\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
