"""Comparison of checkpoints and of runs."""

import json
from dataclasses import replace

import numpy as np

from focal_twins.files.weights import read_checkpoint

# What a run can have on, beside the average and the dynamic loss scale.
RECIPE = [
    "augment.auto_augment=rand-m9-mstd0.5-inc1",
    "augment.erasing=0.25",
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "model.drop_path_rate=0.2",
    "model.drop_rate=0.1",
]

# And a line of metrics for each update, and a loss scale that grows within the run.
EVERYTHING = [*RECIPE, "train.log_interval=1", "amp.growth_interval=8"]


def tensors(path):
    """The tensors of a checkpoint as NumPy arrays by name."""
    return {name: value for name, value in read_checkpoint(path).items() if isinstance(value, np.ndarray)}


def assert_same_state(a, b):
    """Two checkpoints hold the same bits."""
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


TIMES = ("images_per_second", "seconds")


def metrics(folder):
    """The lines of a run's metrics.jsonl, without what depends on the time."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_end(a, b):
    """Two finished runs have the same bits, the same figures and the same progress, but for the time they took."""
    assert_same_state(a.checkpoints.last, b.checkpoints.last)
    assert metrics(a.config.output) == metrics(b.config.output)
    assert replace(a.state.progress, seconds=0.0) == replace(b.state.progress, seconds=0.0)
