"""What tests by compiled kernels need."""

import shutil

import pytest

from focal_twins.kernels.library import COMPILERS

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler on this machine"
)
# The kernels of set_device_options: those that a CPU runs by default, and operators alone.
EITHER = [pytest.param("compiled", marks=needs_compiler), "none"]
COMPILED_OR_EXHAUSTIVE = [EITHER[0], pytest.param("none", marks=pytest.mark.exhaustive)]
