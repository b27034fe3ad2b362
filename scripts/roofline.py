"""Estimate what bounds a model's speed on an Ascend 910: python scripts/roofline.py [NAME]

The estimate uses the compiled graph of inference, with real convolutions and mixed precision
(src/focal_twins/measuring/roofline.py says how): nothing here has run on an Ascend.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError
from focal_twins.measuring.turns import Worker


def costs(name: str, batch_size: int, amp: str, flops: float, bandwidth: float) -> dict:
    """Return the costs of a batch's forward pass by block, and in total (see focal_twins.measuring.roofline)."""
    from focal_twins.measuring.roofline import inference_costs
    from focal_twins.models import create_model
    from focal_twins.models.device_options import DEVICE_DEFAULTS, set_device_options
    from focal_twins.models.precision import apply_precision

    model = set_device_options(create_model(name), **DEVICE_DEFAULTS["Ascend"])
    shape = (batch_size, model.in_chans, *model.img_size)
    return inference_costs(apply_precision(model, amp), shape, flops, bandwidth)


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
    options.add_argument("--tflops", type=float, help="peak of the device in float16; default: the 910's, 256")
    options.add_argument("--bandwidth", type=float, help="of its memory, in TB/s; default: 1.2")
    options.add_argument(
        "--reference", metavar="PATH", help="also count what the original moves, as in benchmark.py (then in float32)"
    )
    options.add_argument("--reference-python", metavar="PYTHON", help="an interpreter that has PyTorch and timm")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_args(arguments)

    from focal_twins.measuring.roofline import ASCEND_BANDWIDTH, ASCEND_TFLOPS
    from focal_twins.models import resolve_arguments

    options.tflops = ASCEND_TFLOPS if options.tflops is None else options.tflops
    options.bandwidth = ASCEND_BANDWIDTH if options.bandwidth is None else options.bandwidth
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
