"""Measure a model's speed and memory: python scripts/benchmark.py --model focal_tiny_patch4_window7_224 --mode train

It uses random images, in float32 unless --amp says otherwise. A training step is the one that train.py runs: forward,
backward, clipping, AdamW, stochastic depth at the model's own rate. Every measurement is a process of its own, so that
its peak memory is its own. With --reference the original code takes turns with it, step by step, with as many threads
on the same processors, and only where nothing else takes more than a few percent of them. After every step two large
matrices are multiplied: the share of that rate which the model reaches does not depend on how fast the machine is.

With --exported FILE.onnx FILE.mindir ... exported files take turns in place of a model.
"""

import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for scripts.X
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError
from focal_twins.measuring.exported_files import table, time_exported
from focal_twins.measuring.machine import QUIET, busy_note, idle_load
from focal_twins.measuring.turns import PROCESSORS, WAIT_POLICIES, Worker, check_same_threads, step_figures, take_turns
from focal_twins.phrases import counted

SCRIPTS = Path(__file__).resolve().parent
TRAINING_PRODUCTS = 3  # for every product of the forward pass, two of the backward pass
SHOWN_TENSORS = 12
FLAGS_OF_FILES = ("exported", "batch_size", "warmup", "repeats", "threads", "pause", "wait_policy", "json", "debug")


def multiply_accumulates(name: str, arguments: dict) -> int:
    """Count the multiply-accumulates of one image's forward pass.

    They are those of the compiled graph with real convolutions (src/focal_twins/measuring/graph.py).
    """
    import mindspore as ms
    import numpy as np

    from focal_twins.measuring import graph
    from focal_twins.models import create_model
    from focal_twins.models.device_options import set_device_options

    model = set_device_options(create_model(name, **arguments), conv_implementation="conv2d").set_train(False)
    image = ms.Tensor(np.zeros((1, model.in_chans, *model.img_size), np.float32))
    return graph.multiply_accumulates(graph.compiled_operators(model, image))


def alive_at_peak(name: str, arguments: dict, batch_size: int, mode: str, amp: str, kernels: str) -> list[dict]:
    """List the tensors that a step's graph holds when they take most memory, most bytes first.

    Each entry has operator, shape, number and bytes of tensors. The order of the compiled graph decides; parameters and
    the memory of the program and its kernels come on top.
    """
    import mindspore as ms
    import numpy as np

    from focal_twins.measuring import graph
    from focal_twins.models import create_model
    from focal_twins.models.device_options import set_device_options
    from focal_twins.models.precision import apply_precision
    from scripts.benchmark_own import KERNELS, update

    model = set_device_options(create_model(name, **arguments), kernels=KERNELS[kernels])
    network = apply_precision(model, amp)
    images = ms.Tensor(np.zeros((batch_size, model.in_chans, *model.img_size), np.float32))
    if mode == "train":
        cell, step_arguments = update(model, network, images)
        operators = graph.compiled_operators(cell, *step_arguments())
    else:
        operators = graph.compiled_operators(network.set_train(False), images)
    alive: dict[tuple, list[int]] = {}
    for operator, number in graph.alive_at_peak(operators):
        output = operator.outputs[number]
        alive.setdefault((operator.name, output.shape), []).append(output.nbytes)
    tensors = [
        {"operator": operator, "shape": shape, "tensors": len(sizes), "bytes": sum(sizes)}
        for (operator, shape), sizes in alive.items()
    ]
    return sorted(tensors, key=lambda tensor: -tensor["bytes"])


def commands(name: str, arguments: dict, shape: list[int], options) -> dict[str, list]:
    """Return the commands of the processes that take turns, by the code they run: "own" and the originals asked for."""
    shared = ["--mode", options.mode, "--images", *shape, "--arguments", json.dumps(arguments)]
    own = [sys.executable, SCRIPTS / "benchmark_own.py", "--model", name, "--amp", options.amp]
    own += ["--kernels", options.kernels, "--matmul-precision", options.matmul_precision]
    result = {"own": [*own, *shared]}
    if options.reference:
        script = [options.reference_python, SCRIPTS / "benchmark_reference.py", "--family", name.split("_")[0]]
        result["reference"] = [*script, "--repository", options.reference, *shared]
    if options.reference_compile:
        result["compiled_reference"] = [*result["reference"], "--compile"]
    return result


def measure(name: str, arguments: dict, batch_size: int, options) -> dict:
    """Measure one model at one batch size, in turns with the original where it is asked for.

    Args:
        arguments: all arguments of the model, defaults included.
    """
    size = arguments["img_size"]
    shape = [batch_size, arguments["in_chans"], *([size, size] if isinstance(size, int) else size)]
    workers: dict[str, Worker] = {}
    try:
        for code, command in commands(name, arguments, shape, options).items():
            workers[code] = Worker(f"{name}, {code} code", command, options.threads, options.wait_policy)
        first = {code: worker.call("step")["seconds"] for code, worker in workers.items()}
        for _ in range(options.warmup):
            for worker in workers.values():
                worker.call("step")
        workers["own"].call("ceiling")
        used = check_same_threads(workers)
        ceilings: list[dict] = []
        steps, others = take_turns(
            workers, options.repeats, options.pause, lambda: ceilings.append(workers["own"].call("ceiling"))
        )
        profile = workers["own"].call("profile")["result"] if options.profile else []
    finally:
        for worker in workers.values():
            worker.close()

    result = {
        "model": name,
        "arguments": arguments,
        "mode": options.mode,
        "amp": options.amp,
        "kernels": options.kernels,
        "matmul_precision": options.matmul_precision,
        "images": shape,
        **used["own"],
        "wait_policy": options.wait_policy,
        "pause_seconds": options.pause,
        "load_of_others": others,
        "first_call_seconds": first["own"],
        **step_figures(steps["own"], batch_size),
        "ceiling_multiply_accumulates_per_second": statistics.median(
            ceiling["result"] / ceiling["seconds"] for ceiling in ceilings
        ),
        "operators": profile,
    }
    if options.count:
        products = multiply_accumulates(name, arguments) * batch_size
        products *= TRAINING_PRODUCTS if options.mode == "train" else 1
        result["multiply_accumulates_per_second"] = products / result["median_seconds"]
    if options.memory:
        result["alive_at_peak"] = alive_at_peak(name, arguments, batch_size, options.mode, options.amp, options.kernels)
    for code in workers:
        if code != "own":
            result[code] = used[code] | compare_steps(steps["own"], steps[code], batch_size)
    return result


def compare_steps(own: list[dict], others: list[dict], batch_size: int) -> dict:
    """Return the figures of an original's steps, and their ratios to ours: medians over the pairs of steps."""
    result = step_figures(others, batch_size)
    pairs = list(zip(own, others, strict=True))
    return result | {
        "speed_ratio": statistics.median(other["seconds"] / step["seconds"] for step, other in pairs),
        "cpu_ratio": statistics.median(other["cpu_seconds"] / step["cpu_seconds"] for step, other in pairs),
        "memory_ratio": own[-1]["peak"] / result["peak_memory_bytes"],
    }


REFERENCE_NAMES = {"reference": "the original", "compiled_reference": "the original by torch.compile"}


def describe(result: dict) -> str:
    """Describe a result in lines: one of figures, one on the threads and the machine, and one for each original."""
    shape = "x".join(map(str, result["images"]))
    line = f"{result['model']} {result['mode']} {shape} {result['amp']}: {describe_speed(result)}"
    line += f", first call {result['first_call_seconds']:.1f} s"
    if "multiply_accumulates_per_second" in result:
        rate, ceiling = (
            result[key] / 1e9 for key in ("multiply_accumulates_per_second", "ceiling_multiply_accumulates_per_second")
        )
        line += f", {rate:.1f} of {ceiling:.1f} GMAC/s"
    line += f"\n  {describe_threads(result)} each; others took {result['load_of_others']:.1%} of the cores"
    line += busy_note(result["load_of_others"])
    for code, name in REFERENCE_NAMES.items():
        if code in result:
            other = result[code]
            line += f"\n  {name}: {describe_speed(other)}; ratio of speed {other['speed_ratio']:.2f}, of CPU time "
            line += f"{other['cpu_ratio']:.2f}, of memory {other['memory_ratio']:.2f}"
    for operator in result["operators"]:
        line += f"\n  {operator['seconds'] * 1e3:8.1f} ms {operator['calls']:5d} {operator['operator']}"
    for tensor in result.get("alive_at_peak", [])[:SHOWN_TENSORS]:
        line += f"\n  {tensor['bytes'] / 2**20:8.1f} MiB {tensor['tensors']:4d} {tensor['operator']} {tensor['shape']}"
    return line


def describe_threads(used: dict) -> str:
    """Describe the number of threads that a process really has, and the processors they run on."""
    return f"{counted(used['threads'], 'thread')} on processors {', '.join(map(str, used['processors']))}"


def describe_speed(result: dict) -> str:
    """Describe images per second, spread, CPU time and memory."""
    return (
        f"{result['images_per_second']:.2f} img/s, median {result['median_seconds'] * 1e3:.0f} ms "
        f"({result['fastest_seconds'] * 1e3:.0f} to {result['slowest_seconds'] * 1e3:.0f}), "
        f"{result['median_cpu_seconds'] * 1e3:.0f} ms of CPU time, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def exponent(amounts: list[float], values: list[float]) -> float:
    """Return p of the best fit values = c * amounts^p, by least squares of the logarithms."""
    x, y = [math.log(amount) for amount in amounts], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def growth(results: list[dict]) -> str:
    """Describe how time and memory grow over several measurements of one series, which differ in one amount.

    Memory that does not grow (the program, the weights) is in the figures, which lowers its exponent.
    """
    amounts = [math.prod(r["images"]) * sum(r["arguments"]["depths"]) for r in results]
    time, memory = (
        exponent(amounts, [result[key] for result in results]) for key in ("median_seconds", "peak_memory_bytes")
    )
    return f"time grows with the power {time:.2f} of pixels, images or blocks, peak memory with {memory:.2f}"


def series(options) -> list[tuple[list[str], int]]:
    """Return the cases to measure: (arguments of the model, batch size). At most one option may list several values.

    Raises:
        UserError: more than one option does, or a value comes twice.
    """
    size = [] if options.img_size is None else [f"img_size={options.img_size}"]
    series_flags = [flag for flag in ("sizes", "batch_sizes", "depths") if getattr(options, flag)]
    if len(series_flags) > 1 or (options.sizes and size):
        raise UserError("give one of --sizes, --batch-sizes and --depths, and --sizes without --img-size")
    for flag in series_flags:
        values = getattr(options, flag)
        if len(set(values)) < len(values):
            raise UserError(f"--{flag.replace('_', '-')}: {' '.join(map(str, values))} has a value twice")
    if options.sizes:
        return [([f"img_size={side}"], options.batch_size) for side in options.sizes]
    if options.batch_sizes:
        return [(size, batch_size) for batch_size in options.batch_sizes]
    if options.depths:
        return [([*size, f"depths=[2,2,{depth},2]"], options.batch_size) for depth in options.depths]
    return [(size, options.batch_size)]


def main(arguments: list[str]) -> None:
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="arguments of the model")
    parser.add_argument("--model", metavar="NAME", help="a published model or a family")
    parser.add_argument("--exported", type=Path, nargs="+", metavar="FILE", help="exported files, in place of a model")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer")
    parser.add_argument("--batch-size", type=int, help="8; of exported files their own, or 1")
    parser.add_argument("--img-size", type=int, help="default: the model's own")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="SIDE", help="several image sizes in turn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help="several batch sizes in turn")
    parser.add_argument("--depths", type=int, nargs="+", metavar="N", help="several depths of the third stage in turn")
    parser.add_argument("--amp", choices=("O0", "O1", "O2", "O3"), default="O0")
    parser.add_argument(
        "--kernels",
        choices=("auto", "none"),
        default="auto",
        help="as runtime.kernels: compiled kernels (auto, the default), or MindSpore's operators alone",
    )
    parser.add_argument(
        "--matmul-precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="as runtime.matmul_precision: bfloat16 is faster and less exact where the processor has units for it",
    )
    parser.add_argument("--warmup", type=int, default=2, help="calls before the measured ones, beside the first")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--reference",
        metavar="PATH",
        help="also measure the original: a copy of the official Focal-Transformer repository; for Twins: timm",
    )
    parser.add_argument("--reference-python", metavar="PYTHON", help="an interpreter that has PyTorch and timm")
    parser.add_argument(
        "--reference-compile", action="store_true", help="also measure the original as torch.compile makes it"
    )
    parser.add_argument(
        "--threads", type=int, default=len(PROCESSORS), metavar="N", help="of each process; default: all processors"
    )
    parser.add_argument("--pause", type=float, default=0.0, metavar="SECONDS", help="before every step (0)")
    parser.add_argument(
        "--wait-policy", choices=WAIT_POLICIES, help="OMP_WAIT_POLICY of all processes; default: not set"
    )
    parser.add_argument(
        "--allow-load", action="store_true", help="compare even where others use the processors; the result says so"
    )
    parser.add_argument("--profile", action="store_true", help="also print a step's operators by their time")
    parser.add_argument("--count", action="store_true", help="also count multiply-accumulates, and tell their rate")
    parser.add_argument(
        "--memory", action="store_true", help="also list the tensors that a step's graph holds at its peak"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, a list")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = parser.parse_intermixed_args(arguments)

    from focal_twins.config.load import load_model_config
    from focal_twins.files.atomic import write_text
    from focal_twins.models import resolve_arguments

    if (options.model is None) == (options.exported is None):
        raise UserError("give one of --model NAME and --exported FILE ...")
    for batch_size in [options.batch_size, *(options.batch_sizes or [])]:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"--batch-size: must be at least 1, got {batch_size}")
    if options.repeats < 1:
        raise UserError(f"--repeats: must be at least 1, got {options.repeats}")
    if options.warmup < 0:
        raise UserError(f"--warmup: must be at least 0, got {options.warmup}")
    if (options.reference is None) != (options.reference_python is None):
        raise UserError("--reference and --reference-python belong together: the code, and an interpreter to run it by")
    if options.reference_compile and options.reference is None:
        raise UserError("--reference-compile: needs --reference, the code to compile")
    if not 1 <= options.threads <= len(PROCESSORS):
        raise UserError(f"--threads: must be 1 to {len(PROCESSORS)}, the processors here, got {options.threads}")
    if options.pause < 0:
        raise UserError(f"--pause: must be at least 0, got {options.pause:g}")
    if options.exported:
        for flag, value in vars(options).items():
            if flag not in FLAGS_OF_FILES and value and value != parser.get_default(flag):
                raise UserError(f"--exported: files are measured as they are; leave out --{flag.replace('_', '-')}")
        results = time_exported(
            options.exported,
            SCRIPTS / "benchmark_exported.py",
            options.batch_size,
            options.repeats,
            options.warmup,
            options.pause,
            options.threads,
            options.wait_policy,
        )
        print(table(results), flush=True)
        if options.json:
            write_text(options.json, json.dumps(results, indent=2))
        return
    options.batch_size = options.batch_size or 8
    if options.reference and options.amp != "O0":
        raise UserError("--reference: the original is measured in float32 only; leave out --amp")
    cases = [
        (load_model_config(options.model, [*options.overrides, *extra]), batch_size)
        for extra, batch_size in series(options)
    ]
    if options.reference and not options.model.startswith("twins"):
        file = Path(options.reference, "classification", "focal_transformer.py")
        if not file.is_file():
            raise UserError(f"--reference {options.reference}: not the official repository, {file} is missing")
    if options.reference and (others := idle_load()) > QUIET and not options.allow_load:
        raise UserError(
            f"other processes take {others:.0%} of the processors, so a comparison would not be fair: wait until they "
            "have ended, or add --allow-load"
        )
    results = []
    for config, batch_size in cases:
        arguments = resolve_arguments(config.name, config.arguments)[1]
        results.append(measure(config.name, arguments, batch_size, options))
        print(describe(results[-1]), flush=True)
        if options.json:
            write_text(options.json, json.dumps(results, indent=2))
    if len(results) > 1:
        print(growth(results), flush=True)


if __name__ == "__main__":
    sys.exit(run(main, "benchmark.py"))
