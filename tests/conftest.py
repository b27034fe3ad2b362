"""Fixtures shared by the tests, and the order that the test files run in."""

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

os.environ.setdefault("GLOG_v", "4")  # before MindSpore is imported

import mindspore as ms

from focal_twins.training.open_gradients import drop_open_gradients

ms.set_device("CPU")  # can be set only before the first operator runs
# An operator at a time, the calling thread waiting for each: threads that hand operators on wait in busy loops, which
# takes twenty times the processor time of a small network.
ms.set_context(mode=ms.PYNATIVE_MODE, pynative_synchronize=True)

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "focal_twins"
SOURCES = os.pathsep.join((str(ROOT), str(PACKAGE.parent)))  # PYTHONPATH of programs that import ours
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

# What compiles fastest and still has all that a run has a state of: one stage of two blocks, so that stochastic depth
# has a rate, with several windows and a key table.
TOY_MODEL = [
    "model.img_size=16",
    "model.window_size=2",
    "model.embed_dim=16",
    "model.depths=[2]",
    "model.num_heads=[1]",
    "model.focal_stages=[0]",
    "model.focal_levels=[1]",
    "model.focal_topK=8",
]

# A published model of each kind. What is said of every one of them is marked exhaustive for the others.
ONE_OF_EACH_KIND = (
    "focal_tiny_patch4_window7_224",
    "focal_tiny_useconv_patch4_window7_224",
    "focalv2_tiny_useconv_patch4_window7_224",
    "twins_pcpvt_small",
    "twins_svt_small",
)

# The files that take minutes, the longest first. Each runs in one process (pytest-xdist's loadfile), and one of these
# that came last would keep the other processes waiting for its end.
LONGEST_FIRST = (
    "tests/test_documented_commands.py",
    "tests/training/test_processes.py",
    "tests/training/test_kills.py",
    "tests/training/test_resume.py",
    "tests/test_ascend_readiness.py",
    "tests/inference/test_exporting.py",
    "tests/test_entry_points.py",
    "tests/training/test_run.py",
)


def others_exhaustive(values: Iterable, each_time: Iterable = ONE_OF_EACH_KIND) -> list:
    """Parameters for a test, which runs for those of `each_time` each time; the default is for published models."""
    return [pytest.param(value, marks=[] if value in each_time else pytest.mark.exhaustive) for value in values]


# The tests that take more than five seconds, whatever their parameters: `slow`, see pyproject.toml.
SLOW_TESTS = frozenset((ROOT / "tests" / "slow_tests.txt").read_text(encoding="utf-8").split())


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if f"{item.path.relative_to(ROOT).as_posix()}::{item.originalname}" in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
    places = {ROOT / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="how often tests/training/test_kills.py kills its run")
    parser.addoption("--write-graph-limits", action="store_true", help="store what test_graph_limits.py counts")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once("name", make) is a folder that make(folder) fills once, in whichever test process comes to it first."""
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in the one of them all
        together = together.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = together / name, together / f"{name}.made"
        with open(together / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def digits(made_once) -> Path:
    """The handwritten digits as an image folder."""

    def make(folder):
        subprocess.run([sys.executable, "scripts/prepare_digits.py", "--output", folder], cwd=ROOT, check=True)

    return made_once("digits", make)


@pytest.fixture(scope="session")
def digit_scenes(made_once) -> Path:
    """A few scenes of handwritten digits: 24 to train with and 8 to validate."""

    def make(folder):
        numbers = ("--training", "24", "--validation", "8")
        command = [sys.executable, "scripts/prepare_digit_scenes.py", "--output", folder, *numbers]
        subprocess.run(command, cwd=ROOT, check=True)

    return made_once("digit_scenes", make)


@pytest.fixture(scope="session")
def shared_graphs(made_once) -> str:
    """The option by which a run reads the graphs that other runs of these tests compiled: most of what it costs.

    tests/distributed/test_compile_cache.py has it that bits are those of a run that compiles.
    """
    return f"runtime.compile_cache={made_once('graphs', Path.mkdir)}"


@pytest.fixture
def run_script(capsys, monkeypatch):
    """Run an entry point in this process: run_script("train.py", "--config", ...) -> (exit code, stdout, stderr).

    One in scripts/ is called with its folder: run_script("scripts/report.py", ...).
    """
    import importlib

    from focal_twins.cli import run

    def call(script: str, *arguments: str):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        interrupt = signal.getsignal(signal.SIGINT)
        code = run(module.main, Path(script).name)
        signal.signal(signal.SIGINT, interrupt or signal.default_int_handler)  # an entry point leaves the system's own
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def _operator_by_operator():
    """MindSpore's state before each test, whatever ran before it: its mode, and no gradient that an error left open."""
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)
    drop_open_gradients()


@pytest.fixture
def graph_mode(_operator_by_operator):
    """Cells that the test calls are compiled: for what a graph could do differently. It costs seconds a cell."""
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="module", autouse=True)
def _free_graphs():
    """Compiled graphs live as long as their cells, which cyclic references keep alive: together, some 10 GB."""
    yield
    gc.collect()
