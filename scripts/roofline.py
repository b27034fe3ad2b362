"""Estimate what bounds a model's speed on an Ascend 910: python scripts/roofline.py [NAME]

The estimate uses the compiled graph of inference, with real convolutions and mixed precision: nothing here has run on
an Ascend. Every operator takes as long as its arithmetic at the device's peak rate or its bytes at the memory's,
whichever is longer. There are two sums: in one every operator stands alone, in the other elementwise work costs nothing
beside the products it could be fused to.
"""

import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError
from focal_twins.measuring.turns import Worker

FUSED = re.compile(r"Mul|Add|Sub|Div|Erf|Exp|Sigmoid|Cast|Sqrt|Relu|ReLU|Square|Softmax|LayerNorm")


@dataclass
class Cost:
    """Sums up the costs of operators; `alone` and `fused` are seconds at the peak rates."""

    operators: int = 0
    multiply_accumulates: int = 0
    moved_bytes: int = 0
    alone: float = 0.0
    fused: float = 0.0

    def add(self, operator, products: int, moved: int, flops: float, bandwidth: float) -> None:
        seconds = max(2 * products / flops, moved / bandwidth)
        self.operators += moved > 0
        self.multiply_accumulates += products
        self.moved_bytes += moved
        self.alone += seconds
        self.fused += 0.0 if FUSED.search(operator.name) and not products else seconds


def operator_blocks(operators: list) -> list[str]:
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


def costs(name: str, batch_size: int, amp: str, flops: float, bandwidth: float) -> dict[str, Cost]:
    """Return the costs of a batch's forward pass by block, and in total."""
    import mindspore as ms
    import numpy as np

    from focal_twins.measuring.graph import compiled_operators, moved_bytes, multiply_accumulates
    from focal_twins.models import create_model
    from focal_twins.models.device_options import DEVICE_DEFAULTS, set_device_options
    from focal_twins.models.precision import apply_precision

    model = set_device_options(create_model(name), **DEVICE_DEFAULTS["Ascend"]).set_train(False)
    images = ms.Tensor(np.zeros((batch_size, model.in_chans, *model.img_size), np.float32))
    result: dict[str, Cost] = defaultdict(Cost)
    operators = compiled_operators(apply_precision(model, amp).set_train(False), images)
    for block, operator in zip(operator_blocks(operators), operators, strict=True):
        products = multiply_accumulates([operator]) if operator.name not in ("SumExt", "ReduceSum") else 0
        for key in (block, "total"):
            result[key].add(operator, products, moved_bytes(operator), flops, bandwidth)
    return result


def measure_original(name: str, arguments: dict, options) -> dict:
    """Count what the original moves for one image: its operators that are no views, and their bytes."""
    images = [1, arguments["in_chans"], arguments["img_size"], arguments["img_size"]]
    command = [options.reference_python, Path(__file__).with_name("benchmark_reference.py"), "--mode", "infer"]
    command += ["--family", name.split("_")[0], "--repository", options.reference, "--images", *images]
    worker = Worker(f"{name}, reference code", [*command, "--arguments", json.dumps(arguments)])
    try:
        return worker.call("moved")["result"]
    finally:
        worker.close()


def main(arguments: list[str]) -> None:
    options = Parser(prog="roofline.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("name", nargs="?", default="focalv2_tiny_useconv_patch4_window7_224", metavar="NAME")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--amp", choices=("O0", "O1"), default="O1")
    options.add_argument("--tflops", type=float, default=256, help="peak of the device in float16")
    options.add_argument("--bandwidth", type=float, default=1.2, help="of its memory, in TB/s")
    options.add_argument(
        "--reference", metavar="PATH", help="also count what the original moves, as in benchmark.py (then in float32)"
    )
    options.add_argument("--reference-python", metavar="PYTHON", help="an interpreter that has PyTorch and timm")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_args(arguments)

    from focal_twins.models import resolve_arguments

    try:
        model_arguments = resolve_arguments(options.name, {})[1]
    except ValueError as error:
        raise UserError(str(error)) from error
    if (options.reference is None) != (options.reference_python is None):
        raise UserError("--reference and --reference-python belong together: the code, and an interpreter to run it by")
    if min(options.batch_size, options.tflops, options.bandwidth) <= 0:
        raise UserError("--batch-size, --tflops and --bandwidth must be above 0")
    table = costs(options.name, options.batch_size, options.amp, options.tflops * 1e12, options.bandwidth * 1e12)
    print(f"{options.name} at batch {options.batch_size}, {options.amp}: per image")
    print(f"{'':12} {'operators':>9} {'GMACs':>8} {'MB moved':>9} {'MACs/byte':>9} {'us alone':>9} {'us fused':>9}")
    for key, cost in sorted(table.items(), key=lambda item: (item[0] == "total", item[0])):
        images = options.batch_size
        intensity = cost.multiply_accumulates / cost.moved_bytes
        print(
            f"{key:12} {cost.operators:9} {cost.multiply_accumulates / images / 1e9:8.3f} "
            f"{cost.moved_bytes / images / 1e6:9.1f} {intensity:9.1f} "
            f"{cost.alone / images * 1e6:9.1f} {cost.fused / images * 1e6:9.1f}"
        )
    total = table["total"]
    balance = options.tflops / 2 / options.bandwidth
    print(f"bound by memory below {balance:.0f} multiply-accumulates a byte; at the peaks ", end="")
    print(f"{options.batch_size / total.alone:.0f} img/s alone, {options.batch_size / total.fused:.0f} fused")
    if options.reference:
        own = costs(options.name, 1, "O0", options.tflops * 1e12, options.bandwidth * 1e12)["total"]
        reference = measure_original(options.name, model_arguments, options)
        print(
            f"one image in float32: here {own.operators} operators move {own.moved_bytes / 1e6:.0f} MB, in the ",
            end="",
        )
        print(f"original {reference['operators']} move {reference['moved_bytes'] / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(run(main, "roofline.py"))
