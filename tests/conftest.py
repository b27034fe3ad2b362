"""Fixtures shared by the tests."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("GLOG_v", "4")  # before MindSpore is imported

import mindspore as ms

ms.set_device("CPU")  # can be set only before the first operator runs

ROOT = Path(__file__).resolve().parent.parent
DIGITS_CONFIG = ROOT / "configs" / "quickstart" / "focalv2_digits.yaml"

# A network that compiles in seconds: two stages, both with two levels and, in the first, several windows.
SMALL_MODEL = [
    "model.img_size=32",
    "model.window_size=2",
    "model.embed_dim=16",
    "model.depths=[1,1]",
    "model.num_heads=[1,2]",
    "model.focal_stages=[0,1]",
    "model.focal_levels=[2,2]",
    "model.focal_topK=16",
]


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="how often tests/training/test_kills.py kills its run")
    parser.addoption("--write-graph-limits", action="store_true", help="store what tests/test_graph_limits.py counts")


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The handwritten digits as an image folder."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    subprocess.run([sys.executable, "scripts/prepare_digits.py", "--output", folder], cwd=ROOT, check=True)
    return folder


@pytest.fixture
def run_script(capsys, monkeypatch):
    """Run an entry point in this process: run_script("train.py", "--config", ...) -> (exit code, stdout, stderr).

    One in scripts/ is called with its folder: run_script("scripts/report.py", ...).
    """
    import importlib

    from src.cli import run

    def call(script: str, *arguments: str):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        code = run(module.main, Path(script).name)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module", autouse=True)
def _free_graphs():
    """Compiled graphs live as long as their cells, which cyclic references keep alive: together, some 10 GB."""
    yield
    gc.collect()
