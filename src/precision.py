"""Mixed precision levels."""

import re

import mindspore as ms
from mindspore import amp, nn

from src.errors import UserError


def apply_precision(model: nn.Cell, level: str) -> nn.Cell:
    """The network in mixed precision; its parameters stay float32.

    O0: float32. O1: matrix products and convolutions in float16, normalisation and softmax in float32. O2: float16
    but for normalisation. O3: float16. O1 is MindSpore's "auto" level, which sets the types when the graph is compiled;
    its own "O1" rewrites the sources of the cells and cannot parse these.
    """
    if level == "O0":
        return model
    return amp.auto_mixed_precision(model, "auto" if level == "O1" else level, ms.float16)


def missing_kernel(error: Exception, level: str, device_target: str) -> Exception:
    """The error as a UserError naming the operator, if it is that the device lacks a kernel for a type; else itself."""
    found = re.search(r"(?:Unsupported op|operator) ?\[(\w+)\]", str(error))
    if found is None:
        return error
    return UserError(
        f"amp.level: {level} needs the operator {found[1]} in a type that {device_target} has no kernel for; use O0"
    )
