"""The package as pip installs it: what is in the wheel, its version, and the program `focal-twins`."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import focal_twins
from focal_twins import __main__ as program
from tests.conftest import PACKAGE, ROOT

NOT_IN_THE_WHEEL = {".pyc"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel has, built of a copy of the tracked files, as `pip install .` does it."""
    copy, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.startswith(("src/", "configs/")) or "/" not in name:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, copy], cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def information(installed) -> Path:
    """The folder of the wheel's metadata."""
    (folder,) = installed.glob("*.dist-info")
    return folder


def files_of(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in NOT_IN_THE_WHEEL)
    return {str(path.relative_to(folder)) for path in paths}


def test_wheel_has_every_file_of_the_package_and_every_configuration(installed):
    assert files_of(installed / "focal_twins" / "configs") == files_of(ROOT / "configs")
    in_wheel = {name for name in files_of(installed / "focal_twins") if not name.startswith("configs/")}
    assert in_wheel == files_of(PACKAGE)
    assert {"pages/style.css", "pages/charts.js"} <= in_wheel


def test_wheel_says_what_it_needs_and_what_it_runs(information):
    about = message_from_string((information / "METADATA").read_text(encoding="utf-8"))
    assert (about["Name"], about["Version"], about["License"]) == ("focal-twins", focal_twins.__version__, "MIT")
    assert "LICENSE" in {path.name for path in information.rglob("*")}
    needs = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in about.get_all("Requires-Dist")}
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in lines if line}
    assert needs == wanted | {"onnx", "onnxruntime", "huggingface-hub"}
    entries = ConfigParser()
    entries.read(information / "entry_points.txt")
    module, _, function = entries["console_scripts"]["focal-twins"].partition(":")
    assert getattr(import_module(module), function) is program.main


def test_extras_have_the_ranges_of_the_tests():
    """onnx and onnxruntime stand in pyproject.toml and in requirements-dev.txt."""
    extras = re.search(r"^onnx = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements-dev.txt").read_text().splitlines()]
    assert set(re.findall(r'"(.+?)"', extras)) <= set(lines)


def test_version_is_the_same_everywhere():
    """A version under development has its changes under Unreleased."""
    version = focal_twins.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == ("Unreleased" if ".dev" in version else version)


def test_installed_program_finds_its_configurations(installed, tmp_path):
    """In an empty folder, outside of the repository: as far as to the data that are not there."""
    done = subprocess.run(
        [sys.executable, "-m", "focal_twins", "train", "--config", "focalv2_digits"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "GLOG_v": "4"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("focal-twins train: error: ")
    assert "data/digits/train: no such folder" in done.stderr


@pytest.fixture
def call(monkeypatch, capsys):
    """call("train", "--help") -> (exit code, stdout, stderr)"""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["focal-twins", *arguments])
        try:
            code = program.main()
        except SystemExit as end:  # argparse's, after it printed the help
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_explains_itself_under_its_name(name, call):
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: focal-twins {name} ")
    assert "%(prog)" not in out


def test_program_without_a_command_lists_them(call):
    code, out, _ = call()
    assert code == 0
    assert all(f"\n  {name} " in out for name in program.COMMANDS)
    assert call("--version")[:2] == (0, f"focal-twins {focal_twins.__version__}\n")
    assert call("trian") == (1, "", "focal-twins: error: unknown command 'trian'; did you mean train?\n")
    assert {path.stem.replace("_", "-") for path in (PACKAGE / "commands").glob("[!_]*.py")} == {*program.COMMANDS}
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `focal-twins ([\w-]+)` \|", page, re.MULTILINE)) == {*program.COMMANDS}


def test_flags_that_are_wrong_name_the_command(call):
    code, _, err = call("train", "--epochs=1", "--config", "focalv2_digits")
    assert (code, err) == (
        1, "focal-twins train: error: unrecognized arguments: --epochs=1; see focal-twins train --help\n"
    )  # fmt: skip
