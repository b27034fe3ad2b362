"""Sets the levels of mixed precision."""

import re
from contextlib import contextmanager

import mindspore as ms
from mindspore import amp, nn

from focal_twins.errors import UserError
from focal_twins.models.device_options import set_device_options

LEVELS = ("O0", "O1", "O2", "O3")
# What the level "auto" is on each device: a CPU has no float16 units, and converts back and forth.
DEVICE_LEVELS = {"CPU": "O0", "Ascend": "O1"}


def level_on(device_target: str, level: str) -> str:
    """Return the level of mixed precision that a configured one (amp.level) is on a device."""
    return DEVICE_LEVELS[device_target] if level == "auto" else level


def apply_precision(model: nn.Cell, level: str) -> nn.Cell:
    """Set a network to a level of mixed precision; its parameters stay float32.

    O0: float32. O1: matrix products and convolutions in float16, normalisation and softmax in float32. O2: float16
    but for normalisation. O3: float16. O1 is MindSpore's "auto" level, which sets the types when the graph is compiled;
    its own "O1" rewrites the sources of the cells and cannot parse these.
    """
    if level not in LEVELS:  # "auto" is another level to MindSpore
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    if level == "O0":
        return model
    # The products of the other choice would be in float16, which kernels do not take.
    set_device_options(model, norm_gradient="operator", kernels="none")
    return amp.auto_mixed_precision(model, "auto" if level == "O1" else level, ms.float16)


@contextmanager
def missing_kernels_named(level: str, device_target: str):
    """Turn, within the context, the error of a type without a kernel into a UserError naming the operator."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        found = re.search(r"(?:Unsupported op|operator) ?\[(\w+)\]", str(error))
        if level == "O0" or found is None:
            raise
        raise UserError(
            f"amp.level: {level} needs the operator {found[1]} in a type that {device_target} has no kernel for; use O0"
        ) from error
