"""The scripts around the data pipeline, as a user runs them."""

import json
import subprocess
import sys

from src.data.open_images import open_images
from tests.conftest import ROOT
from tests.image_files import make_folder


def script(name, *arguments):
    command = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_make_mindrecord_packs_what_training_reads(tmp_path):
    for name, counts in (("train", {"a": 5, "b": 4}), ("val", {"a": 1, "b": 2})):
        make_folder(tmp_path / "images" / name, counts)
    packed = tmp_path / "packed"
    done = script("make_mindrecord.py", tmp_path / "images", "train", "val", "--output", packed, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert f"made {packed}/train.mindrecord.json" in done.stdout
    assert [open_images(packed, name).size for name in ("train", "val")] == [9, 3]
    done = script("make_mindrecord.py", tmp_path / "nowhere", "train", "--output", packed)
    assert done.returncode == 1
    assert "nowhere/train: no such folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_benchmark_data_measures_every_stage(tmp_path):
    done = script(
        "benchmark_data.py", "--images", 32, "--batch-size", 16, "--epochs", 1, "--repeats", 1, "--workers", 1,
        "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"read", "crop and resize", "policy", "normalise", "erase", "mix"} < set(figures["stages_us"])
    assert all(microseconds > 0 for microseconds in figures["stages_us"].values())
    assert len(figures["pipelines_img_s"]["own"]) == 1
    assert figures["cpu_us_per_image"]["own"] > 0
    assert "own pipeline" in done.stdout
    done = script("benchmark_data.py", "--images", 8)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--images: 8 do not fill a batch of 64" in done.stderr
    done = script("benchmark_data.py", "--timm", "no/python", "--workers", 1)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--workers: must be at least 2" in done.stderr
