"""Products of matrices in float32, or of factors that are rounded to bfloat16."""

import os
import subprocess
import sys

import pytest

from focal_twins.config.load import load_config
from focal_twins.distributed import ranks
from focal_twins.errors import UserError
from focal_twins.models import ArgumentError, matmul_precision
from focal_twins.models.matmul_precision import has_bfloat16_units, set_matmul_precision
from tests.conftest import DIGITS_CONFIG, SOURCES

# The largest error of a product, relative to its largest value, with what a configuration chooses.
PRODUCT = """
import sys
import numpy as np
from mindspore import Tensor, ops
from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import start
start(load_config(sys.argv[1], sys.argv[2:]))
a, b = np.random.default_rng(0).standard_normal((2, 256, 256)).astype(np.float32)
exact = a.astype(np.float64) @ b
print(np.abs(ops.matmul(Tensor(a), Tensor(b)).asnumpy() - exact).max() / np.abs(exact).max())
"""


def error_of_a_product(*overrides: str) -> float:
    """In a process of its own: it is chosen once in a process."""
    command = [sys.executable, "-c", PRODUCT, DIGITS_CONFIG, "runtime.mode=pynative", *overrides]
    environment = os.environ | {"PYTHONPATH": SOURCES}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_factors_are_rounded_only_where_it_is_asked_for():
    assert error_of_a_product() < 1e-6
    error = error_of_a_product("runtime.matmul_precision=bfloat16")
    assert 1e-4 < error < 1e-2 if has_bfloat16_units() else error < 1e-6


def test_a_processor_without_units_is_named_and_computes_in_float32(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "has_bfloat16_units", lambda: False)
    ranks.start(load_config(DIGITS_CONFIG, ["runtime.matmul_precision=bfloat16"]))
    set_matmul_precision("float32")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runtime.matmul_precision: this processor does not multiply bfloat16 numbers")


def test_faults_are_named(monkeypatch):
    with pytest.raises(ArgumentError, match="matmul_precision: must be float32 or bfloat16, got 'bf16'"):
        set_matmul_precision("bf16")

    def missing():
        raise OSError("no libdnnl.so in a folder")

    monkeypatch.setattr(matmul_precision, "_onednn", missing)
    set_matmul_precision("float32")  # which needs nothing
    with pytest.raises(UserError, match="bfloat16 needs oneDNN, which this MindSpore lacks"):
        set_matmul_precision("bfloat16")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 clwb", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name\t: bf16 of a maker", False),
    ],
)
def test_units_are_read_from_the_processor(flags, expected, monkeypatch):
    monkeypatch.setattr(matmul_precision.Path, "read_text", lambda *_, **__: f"processor\t: 0\n{flags}\n")
    assert has_bfloat16_units() is expected
