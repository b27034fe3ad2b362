"""Chooses how exactly a CPU computes products of matrices, and convolutions, of float32 numbers."""

import ctypes
import re
from functools import cache
from pathlib import Path

import mindspore as ms

from focal_twins.errors import UserError
from focal_twins.kernels.library import processor
from focal_twins.models.registry import ArgumentError

# The values of dnnl_fpmath_mode_t in oneDNN's C interface (dnnl_common_types.h): strict, and bf16.
_MODES = {"float32": 0, "bfloat16": 1}
MATMUL_PRECISIONS = tuple(_MODES)
_UNITS = re.compile(r"(?:flags|Features)\b.*\b(?:amx_bf16|avx512_bf16|bf16)\b")


def set_matmul_precision(precision: str) -> None:
    """Choose the arithmetic of the products that this process computes on its CPU, before it computes the first.

    oneDNN computes MindSpore's products of matrices and its convolutions, and looks at this once in a process. Numbers
    in memory are float32 either way, and products are added in float32. Small products, of some thousand numbers, stay
    exact.

    Args:
        precision: "float32", or "bfloat16": the factors are rounded to bfloat16, which has 8 bits of precision, where
            the processor has units for it (`has_bfloat16_units`); elsewhere nothing changes.

    Raises:
        ArgumentError: another value.
        UserError: this MindSpore does not come with oneDNN.
    """
    if precision not in _MODES:
        raise ArgumentError("matmul_precision", f"must be {' or '.join(_MODES)}, got {precision!r}")
    try:
        library = _onednn()
    except OSError as error:
        if precision == "float32":  # which it computes in without being asked
            return
        raise UserError(f"matmul_precision: {precision} needs oneDNN, which this MindSpore lacks ({error})") from error
    library.dnnl_set_default_fpmath_mode(_MODES[precision])


def has_bfloat16_units() -> bool:
    """Tell whether this machine's processor multiplies bfloat16 numbers (AMX, AVX-512 or Arm's bf16)."""
    return any(map(_UNITS.match, processor()))


@cache
def _onednn() -> ctypes.CDLL:
    """Return the library that MindSpore has loaded."""
    folder = Path(ms.__file__).parent / "lib"
    path = next(folder.glob("libdnnl.so*"), None)
    if path is None:
        raise OSError(f"no libdnnl.so in {folder}")
    return ctypes.CDLL(str(path))
