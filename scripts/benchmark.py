"""Speed and memory of a model here: python scripts/benchmark.py --model focal_tiny_patch4_window7_224 --mode train

Random images, float32 unless --amp says otherwise. A training step is the one that train.py runs: forward, backward,
clipping, AdamW, stochastic depth at the model's own rate. Peak memory is the process', so one measurement a process.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.cli import Parser, run
from src.errors import UserError


def inference(model, images):
    """A function that classifies the batch and waits for the result."""
    model.set_train(False)
    return lambda: model(images).asnumpy()


def training(model, network, images, num_classes):
    """A function that makes one update and waits for it."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from src.data.mixup import soft_targets
    from src.schema import OptimizerConfig
    from src.training.loss import SoftTargetCrossEntropy
    from src.training.optimizer import create_optimizer
    from src.training.train_step import LossScale, TrainStep

    generator = np.random.default_rng(0)
    targets = Tensor(soft_targets(generator.integers(0, num_classes, len(images)), num_classes, 0.1))
    step = TrainStep(
        network,
        SoftTargetCrossEntropy(),
        model.trainable_params(),
        create_optimizer(model, OptimizerConfig(weight_decay=0.05)),
        LossScale(1024.0, dynamic=True, growth_interval=2000),
        clip_norm=5.0,
    ).set_train()
    rate = Tensor(1e-4, ms.float32)
    seed = Tensor(0, ms.int32)
    return lambda: step(images, targets, rate, model.draw_drop_path(generator, len(images)), seed)[0].asnumpy()


def measure(function, warmup: int, repeats: int) -> tuple[float, list[float]]:
    """Seconds of the first call (compilation included), and of each repeat."""
    start = time.perf_counter()
    function()
    first = time.perf_counter() - start
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return first, seconds


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes.

    Not getrusage's: a process started from a large one begins with the other's there.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert line is not None  # Linux has it
    return int(line[1]) * 1024


def main(arguments: list[str]) -> None:
    options = Parser(prog="benchmark.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("overrides", nargs="*", metavar="key=value", help="arguments of the model")
    options.add_argument("--model", required=True, metavar="NAME", help="a published model or a family")
    options.add_argument("--mode", choices=("infer", "train"), default="infer")
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--img-size", type=int, help="default: the model's own")
    options.add_argument("--amp", choices=("O0", "O1", "O2", "O3"), default="O0")
    options.add_argument("--warmup", type=int, default=2, help="calls before the measured ones, beside the first")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_intermixed_args(arguments)

    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from src.atomic import write_text
    from src.config import load_model_config
    from src.models import create_model
    from src.precision import apply_precision

    for flag, value in (("--batch-size", options.batch_size), ("--repeats", options.repeats)):
        if value < 1:
            raise UserError(f"{flag}: must be at least 1, got {value}")
    ms.set_context(mode=ms.GRAPH_MODE)
    size = [] if options.img_size is None else [f"img_size={options.img_size}"]
    config = load_model_config(options.model, [*options.overrides, *size])
    model = create_model(config.name, **config.arguments)
    network = apply_precision(model, options.amp)
    shape = (options.batch_size, model.in_chans, *model.img_size)
    images = Tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    if options.mode == "infer":
        function = inference(network, images)
    else:
        function = training(model, network, images, model.num_classes)
    first, seconds = measure(function, options.warmup, options.repeats)
    median = statistics.median(seconds)
    result = {
        "model": config.name,
        "arguments": config.arguments,
        "mode": options.mode,
        "amp": options.amp,
        "images": list(shape),
        "images_per_second": options.batch_size / median,
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "first_call_seconds": first,
        "peak_memory_bytes": peak_memory(),
    }
    print(
        f"{config.name} {options.mode} {'x'.join(map(str, shape))} {options.amp}: "
        f"{result['images_per_second']:.2f} img/s, median {median * 1e3:.0f} ms of {options.repeats} "
        f"({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}), first call {first:.1f} s, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )
    if options.json:
        write_text(options.json, json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(run(main, "benchmark.py"))
