"""Comparison of checkpoints."""

import numpy as np

from src.weights import read_checkpoint


def tensors(path):
    """The tensors of a checkpoint as NumPy arrays by name."""
    return {name: value for name, value in read_checkpoint(path).items() if isinstance(value, np.ndarray)}


def assert_same_state(a, b):
    """Two checkpoints hold the same bits."""
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
