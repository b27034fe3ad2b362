"""Runs a program of examples/ as on a machine that has NumPy, Pillow and onnxruntime, and nothing of this project."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("numpy", "PIL", "onnxruntime")
RUN = f"""
import importlib.abc, runpy, sys
import {", ".join(PACKAGES)}

class OthersAreMissing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("mindspore", "focal_twins", "cv2", "simplejpeg", "scipy", "pydantic", "yaml"):
            raise ModuleNotFoundError(f"{{name}} is not here")

sys.meta_path.insert(0, OthersAreMissing())
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(name: str, *arguments: object) -> list[list[str]]:
    """Run examples/NAME; return the words of each line that it prints."""
    script = ROOT / "examples" / name
    assert len(script.read_text().splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(script), *map(str, arguments)],
        cwd=Path("/"),
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split(" ") for line in done.stdout.splitlines()]
