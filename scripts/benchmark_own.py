"""Run one step of a model here, for benchmark.py, which starts this as a process of its own."""

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ.setdefault("GLOG_v", "4")  # before MindSpore is imported

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from focal_twins.config.schema import OptimizerConfig
from focal_twins.data.mixup import soft_targets
from focal_twins.errors import UserError
from focal_twins.measuring.turns import serve
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options
from focal_twins.models.matmul_precision import MATMUL_PRECISIONS, has_bfloat16_units, set_matmul_precision
from focal_twins.models.precision import apply_precision
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy
from focal_twins.training.optimizer import create_optimizer
from focal_twins.training.train_step import LossScale, TrainStep

KERNELS = {"auto": "compiled", "none": "none"}  # as runtime.kernels has them, and as set_device_options does
CEILING_SIDE = 2048
PROFILED_STEPS = 2


def inference(model, images):
    """Return a function that classifies the batch and waits for the result."""
    model.set_train(False)

    def step():
        model(images).asnumpy()

    return step


def update(model, network, images):
    """Return the cell that train.py runs, and a function that gives its arguments for one update."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, model.num_classes, len(images))
    targets = Tensor(soft_targets(labels, model.num_classes, 0.1))
    cell = TrainStep(
        SoftTargetCrossEntropy(network),
        model.trainable_params(),
        create_optimizer(model, OptimizerConfig(weight_decay=0.05)),
        LossScale(1024.0, dynamic=True, growth_interval=2000),
        clip_norm=5.0,
    ).set_train()
    rate = Tensor(1e-4, ms.float32)
    seed = Tensor(0, ms.int32)
    no_vote = Tensor(0.0, ms.float32)
    return cell, lambda: (rate, True, no_vote, images, targets, model.draw_drop_path(generator, len(images)), seed)


def training(model, network, images):
    """Return a function that makes one update and waits for it."""
    cell, arguments = update(model, network, images)

    def step():
        cell(*arguments())[0].asnumpy()

    return step


def ceiling(amp: str):
    """Return a function that multiplies two square matrices and returns the number of multiply-accumulates.

    Nothing is faster on the device.
    """
    values = np.random.default_rng(0).standard_normal((CEILING_SIDE, CEILING_SIDE), dtype=np.float32)
    matrix = Tensor(values, ms.float32 if amp == "O0" else ms.float16)
    product = ops.MatMul()

    def multiply():
        product(matrix, matrix).asnumpy()
        return CEILING_SIDE**3

    return multiply


def profile(step) -> list[dict]:
    """Measure the operators of a step, longest first: operator, calls and seconds in one step."""
    from mindspore.profiler import ProfilerActivity, tensorboard_trace_handler

    with tempfile.TemporaryDirectory() as folder:
        with ms.profiler.profile(activities=[ProfilerActivity.CPU], on_trace_ready=tensorboard_trace_handler(folder)):
            for _ in range(PROFILED_STEPS):
                step()
        (file,) = Path(folder).rglob("cpu_op_type_info_0.csv")
        with file.open(encoding="utf-8") as rows:
            operators = [
                {
                    "operator": row["op_type"],
                    "calls": int(row["type_occurrences"]) // PROFILED_STEPS,
                    "seconds": float(row["total_compute_time"]) / PROFILED_STEPS / 1e3,
                }
                for row in csv.DictReader(rows)
            ]
    return sorted(operators, key=lambda operator: -operator["seconds"])


def prepare(options) -> dict:
    """Build the model; return the functions that benchmark.py calls, by name."""
    # As many threads for operators as the other side has; MindSpore's default is one for each core of the machine.
    ms.set_context(mode=ms.GRAPH_MODE, runtime_num_threads=len(os.sched_getaffinity(0)))
    if options.matmul_precision == "bfloat16" and not has_bfloat16_units():
        raise UserError("--matmul-precision: this processor does not multiply bfloat16 numbers")
    set_matmul_precision(options.matmul_precision)
    model = create_model(options.model, **json.loads(options.arguments))
    set_device_options(model, kernels=KERNELS[options.kernels])
    network = apply_precision(model, options.amp)
    images = Tensor(np.random.default_rng(0).standard_normal(options.images, dtype=np.float32))
    step = inference(network, images) if options.mode == "infer" else training(model, network, images)
    multiply = ceiling(options.amp)
    return {
        "step": step,
        "threads": lambda: ms.get_context("runtime_num_threads"),
        "ceiling": multiply,
        "profile": lambda: profile(step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--arguments", required=True, metavar="JSON")
    parser.add_argument("--mode", required=True, choices=("infer", "train"))
    parser.add_argument("--amp", default="O0")
    parser.add_argument("--kernels", choices=tuple(KERNELS), default="auto")
    parser.add_argument("--matmul-precision", choices=MATMUL_PRECISIONS, default="float32")
    parser.add_argument("--images", required=True, type=int, nargs=4, help="batch size, channels, height, width")
    options = parser.parse_args()
    serve(lambda: prepare(options))


if __name__ == "__main__":
    main()
