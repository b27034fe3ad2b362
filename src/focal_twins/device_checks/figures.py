"""Computes the figures of a training step of a small network, and compares them with those of a CPU.

The CPU's figures are in cpu_figures.json, which `python scripts/check_ascend.py --write-figures` makes.
"""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from focal_twins.config.schema import OptimizerConfig
from focal_twins.device_checks.networks import (
    DETECTORS,
    NETWORKS,
    create_network,
    evaluation_inputs,
    fill,
    training_loss,
)
from focal_twins.errors import UserError
from focal_twins.files.atomic import write_text
from focal_twins.models.precision import apply_precision
from focal_twins.training.optimizer import create_optimizer
from focal_twins.training.train_step import LossScale, TrainStep

Figures = dict[str, list[float]]

CPU_FIGURES = Path(__file__).with_name("cpu_figures.json")
LEVELS = ("O0", "O1")
OUTPUTS = 16  # values kept of a network's outputs
RATE, CLIP_NORM = 1e-3, 5.0
# Largest differences that pass, relative to the largest figure of a kind. float32 sums in another order; float16 has 11
# bits, and sums of hundreds of products.
BOUNDS = {
    "O0": {"outputs": 1e-3, "loss": 1e-4, "gradient_norm": 1e-3},
    "O1": {"outputs": 1e-2, "loss": 1e-3, "gradient_norm": 2e-2},
}


def create_step(
    model: nn.Cell, losses: nn.Cell, device_target: str, scale: float = 1024.0, reducer=None, ranks: int = 1
) -> TrainStep:
    """Create the cell that train.py runs, with AdamW, clipping, a dynamic loss scale and an overflow check."""
    return TrainStep(
        losses,
        model.trainable_params(),
        create_optimizer(model, OptimizerConfig(clip_norm=CLIP_NORM)),
        LossScale(scale, dynamic=True, growth_interval=2000),
        clip_norm=CLIP_NORM,
        reducer=reducer,
        ranks=ranks,
        float_status=device_target == "Ascend",
    ).set_train()


def take_step(step: TrainStep, inputs: tuple) -> np.ndarray:
    """Make an update; return its outcome (see TrainStep.construct)."""
    return step(Tensor(RATE, ms.float32), True, Tensor(0.0, ms.float32), *inputs).asnumpy()


def step_figures(name: str, level: str, device_target: str) -> Figures:
    """Compute the figures of a network at a level of precision.

    Returns:
        "outputs": values of what it gives in evaluation, of detectors the sorted ones, for candidates of nearly equal
        scores may change places. "loss" and "gradient_norm" of two updates with the same batch: the second sees the
        weights that the first has changed.

    Raises:
        UserError: an update overflowed.
    """
    model = fill(create_network(name, device_target))
    network = apply_precision(model, level)
    given = network.set_train(False)(*evaluation_inputs(name))
    tensors = given if isinstance(given, tuple) else (given,)
    outputs = np.concatenate([tensor.asnumpy().astype(np.float64).reshape(-1) for tensor in tensors])
    if name in DETECTORS:
        outputs = np.sort(outputs)
    losses, inputs = training_loss(name, model, network)
    step = create_step(model, losses, device_target)
    outcomes = [take_step(step, inputs) for _ in range(2)]
    if not all(outcome[2] for outcome in outcomes):
        raise UserError("an update was skipped: the gradients or the overflow register are not finite")
    places = np.linspace(0, len(outputs) - 1, OUTPUTS).astype(int)
    return {
        "outputs": [float(value) for value in outputs[places]],
        "loss": [float(outcome[0]) for outcome in outcomes],
        "gradient_norm": [float(outcome[1]) for outcome in outcomes],
    }


def differences(found: Figures, expected: Figures) -> dict[str, float]:
    """Return the largest difference of each kind of figure, relative to the largest of the expected ones."""
    result = {}
    for kind, values in expected.items():
        expected_values, found_values = np.array(values), np.array(found[kind])
        result[kind] = float(np.abs(found_values - expected_values).max() / np.abs(expected_values).max())
    return result


def read_figures(path: Path) -> dict[str, Figures]:
    """Read figures by "network/level".

    Raises:
        UserError: no such file, or a file of something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))["figures"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; --write-figures on a CPU makes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no figures of a CPU; --write-figures makes them") from error


def write_figures(path: Path, command: str) -> None:
    """Compute the figures of all networks at all levels on this CPU, and write them."""
    figures = {}
    for name in NETWORKS:
        for level in LEVELS:
            figures[f"{name}/{level}"] = step_figures(name, level, "CPU")
            print(f"{name}/{level}: loss {figures[f'{name}/{level}']['loss'][0]:.4f}", flush=True)
    content = {"command": command, "mindspore": ms.__version__, "figures": figures}
    write_text(path, json.dumps(content, indent=1) + "\n")
