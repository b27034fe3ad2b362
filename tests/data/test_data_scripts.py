"""The scripts around the data pipeline, as a user runs them."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from focal_twins.config.segmentation import SegmentationAugment
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.data.label_images import LabelRules
from focal_twins.data.open_images import open_images
from focal_twins.data.pipeline import UnreadableImages
from focal_twins.errors import UserError
from focal_twins.tasks.segmentation.samples import SegmentationTrainSamples
from scripts import benchmark_segmentation_data
from scripts.benchmark_segmentation_data import CLASSES, OriginalOperations, make_images
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


def test_segmentations_pipeline_does_what_the_operations_beside_it_do(tmp_path):
    """What scripts/benchmark_segmentation_data.py times are two ways to the same batches."""
    make_images(tmp_path, 6)
    pairs = LabelledFolders.open(
        tmp_path / "images", tmp_path / "annotations", LabelRules(CLASSES), tuple(map(str, range(CLASSES)))
    )
    batches = []
    for samples_of in (SegmentationTrainSamples, OriginalOperations):
        unreadable = UnreadableImages(tmp_path / "unreadable.txt")
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        samples = samples_of(pairs, (512, 512), SegmentationAugment(cat_max_ratio=0.2), mean, std, 0, unreadable)
        arrays = [samples.sample((np.int64(index),), 0, index) for index in range(6)]
        batches.append(samples.batch(tuple(map(np.stack, zip(*arrays, strict=True))), None))
    (images, labels), (expected, expected_labels) = batches
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, expected_labels.reshape(6, -1))
    assert (labels == 255).any() and (labels != 255).any(axis=1).all()


def test_benchmark_segmentation_data_measures_both_pipelines():
    few = ["--images", 4, "--batch-size", 2, "--epochs", 1, "--repeats", 1, "--workers", 1]
    done = script("benchmark_segmentation_data.py", *few)
    assert done.returncode == 0, done.stderr
    rates = re.findall(r"^(own|originals) +(\d+) img/s with 1 workers", done.stdout, re.M)
    assert [name for name, _ in rates] == ["own", "originals"] and all(int(rate) > 0 for _, rate in rates)
    assert re.search(r"^ratio +[\d.]+, of CPU time [\d.]+", done.stdout, re.M)
    with pytest.raises(UserError, match="--images: 8 do not fill a batch of 16"):
        benchmark_segmentation_data.main(["--images", "8"])
