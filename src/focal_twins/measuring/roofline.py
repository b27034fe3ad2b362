"""Estimates what bounds a model's speed on a device, from the operators of its graph and the device's peak rates.

Every operator takes as long as its arithmetic at the peak rate or its bytes at the memory's, whichever is longer. There
are two sums: in one every operator stands alone, in the other elementwise work costs nothing beside the products it
could be fused to.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from focal_twins.measuring.graph import Operator, compiled_operators, moved_bytes, multiply_accumulates

ASCEND_TFLOPS, ASCEND_BANDWIDTH = 256.0, 1.2  # peaks of an Ascend 910: in float16, and of its memory in TB/s
FUSED = re.compile(r"Mul|Add|Sub|Div|Erf|Exp|Sigmoid|Cast|Sqrt|Relu|ReLU|Square|Softmax|LayerNorm")


@dataclass
class Cost:
    """Sums up the costs of operators; `alone` and `fused` are seconds at the peak rates."""

    operators: int = 0
    multiply_accumulates: int = 0
    moved_bytes: int = 0
    alone: float = 0.0
    fused: float = 0.0

    def add(self, operator: Operator, products: int, moved: int, flops: float, bandwidth: float) -> None:
        seconds = max(2 * products / flops, moved / bandwidth)
        self.operators += moved > 0
        self.multiply_accumulates += products
        self.moved_bytes += moved
        self.alone += seconds
        self.fused += 0.0 if FUSED.search(operator.name) and not products else seconds


def operator_blocks(operators: list[Operator]) -> list[str]:
    """Return the block of each operator, as "block STAGE.BLOCK" or "outside".

    Graphs that several blocks call have the names of the first block: operators that follow those of a later block
    belong to the later one.
    """
    result, current = [], (-1, -1)
    for operator in operators:
        match = re.search(r"layers-CellList/(\d+)-\w+/blocks-CellList/(\d+)-", operator.scope)
        match = match or re.search(r"/blocks-CellList/(\d+)-CellList/(\d+)-", operator.scope)
        if match:
            current = max(current, (int(match[1]), int(match[2])))
        result.append(f"block {current[0]}.{current[1]}" if match else "outside")
    return result


def inference_costs(network: nn.Cell, shape: tuple[int, ...], flops: float, bandwidth: float) -> dict[str, Cost]:
    """Return the costs of a forward pass by block, and in total.

    Args:
        network: maps images to something, with the operators and at the precision of the device.
        shape: of the images, [B, C, H, W].
        flops, bandwidth: of the device, in operations and in bytes a second.
    """
    result: dict[str, Cost] = defaultdict(Cost)
    operators = compiled_operators(network.set_train(False), ms.Tensor(np.zeros(shape, np.float32)))
    for block, operator in zip(operator_blocks(operators), operators, strict=True):
        products = multiply_accumulates([operator]) if operator.name not in ("SumExt", "ReduceSum") else 0
        for key in (block, "total"):
            result[key].add(operator, products, moved_bytes(operator), flops, bandwidth)
    return result
