"""Calls functions of the compiled library as MindSpore does, on NumPy arrays."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def status(library: Path, function: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
    """What a function returns; it fills the outputs. All arrays are contiguous."""
    arrays = [*inputs, *outputs]
    count = len(arrays)
    data = (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays])
    ranks = (ctypes.c_int * count)(*[array.ndim for array in arrays])
    kept = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array in arrays]
    shapes = (ctypes.POINTER(ctypes.c_int64) * count)(*kept)
    types = (ctypes.c_char_p * count)(*[array.dtype.name.encode() for array in arrays])
    return getattr(ctypes.CDLL(str(library)), function)(count, data, ranks, shapes, types, None, None)


def call(library: Path, function: str, inputs: Sequence[np.ndarray], *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """The outputs of a function, float32 of these shapes."""
    inputs = [np.asarray(array, order="C") for array in inputs]
    outputs = [np.full(shape, 1e30, np.float32) for shape in shapes]
    assert status(library, function, inputs, outputs) == 0
    return outputs
