"""The wheel has one top-level name and contains the shelves."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_contains_one_package_with_its_shelves(tmp_path):
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sda"}
    for shelf in ("datasets", "datasets/classes", "recipes"):
        shipped = {Path(name).name for name in names if Path(name).parent == Path("sda") / shelf}
        assert shipped == {path.name for path in (ROOT / shelf).glob("*.toml")}
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    code = "from sda import recipe, shelf; recipe.load('streets-ssda'); print(shelf.shelf('recipes'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(site / "sda" / "recipes")
