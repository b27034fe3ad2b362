"""docs/python.md and docs/quickstart.ipynb: their Python runs from top to bottom, as a reader runs it."""

import json

import numpy as np
import pytest
from PIL import Image

from focal_twins.config.load import load_config
from tests.conftest import DIGITS_CONFIG, ROOT, TOY_MODEL
from tests.documents import blocks_of
from tests.trained import write_digits_checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader works: with a photograph, and a run."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    checkpoint = tmp_path / "runs/focalv2_digits/checkpoints/best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    write_digits_checkpoint(load_config(DIGITS_CONFIG, TOY_MODEL), checkpoint)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(pieces: list[tuple[str, str]]) -> dict:
    """Run pieces of code, with a name for messages, one after the other; returns what they leave."""
    left: dict = {"__name__": "__main__"}
    for name, code in pieces:
        exec(compile(code, name, "exec"), left)
    return left


def test_examples_of_the_page_run(folder, capsys):
    blocks = [block for block in blocks_of("docs/python.md") if block.language == "python"]
    run([(f"docs/python.md:{block.line}", block.text) for block in blocks])
    assert "['head.weight', 'head.bias']" in capsys.readouterr().out


def test_the_notebook_learns_the_digits(folder):
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [(number, "".join(cell["source"])) for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
    left = run([(f"quickstart.ipynb, cell {number}", source) for number, source in code])
    assert left["accuracy_after"] > 0.8
    assert left["accuracy"](left["same"]) == left["accuracy_after"]
    assert (folder / "digits.safetensors").is_file()
    assert not any(cell.get("outputs") for cell in cells)  # a reader's own run gives them
