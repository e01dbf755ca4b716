"""torchvision imports next to a CPU-only PyTorch."""

import runpy
import subprocess
import sys
import types

import pytest

from sda.models import torchvision_shim


def test_models_import_in_a_fresh_process():
    # This must work without a warning, whether the operators of torchvision load or not.
    code = (
        "import sda.models.build, torch, torchvision\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
        "print(sda.models.build.build('deeplabv3plus', 'mobilenet_v3_small', 3).stride)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "4", done.stderr


def test_shim_declares_nothing_when_torchvision_imports(monkeypatch):
    stub = types.ModuleType("torchvision")
    stub.models = types.ModuleType("torchvision.models")
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    names = runpy.run_path(torchvision_shim.__file__)
    assert names["models"] is stub.models
    assert "_library" not in names


def test_shim_lets_other_errors_through(monkeypatch):
    def refuse(name):
        raise RuntimeError("something else is wrong")

    stub = types.ModuleType("torchvision")
    stub.__getattr__ = refuse
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    with pytest.raises(RuntimeError, match="something else"):
        runpy.run_path(torchvision_shim.__file__)
