"""Models and checkpoints with weights that nothing was trained for, whose logits are of order one."""

import json
from pathlib import Path

import numpy as np
from mindspore import Tensor

from focal_twins.files.weights import CLASSES, CONFIG, official_names, write_checkpoint
from tests.reference import formula_value

DIGIT_NAMES = tuple(f"digit {label}" for label in range(10))


def with_formula_weights(model):
    """The model in evaluation mode with the weights of tests/reference.py; its key tables stay."""
    for name, parameter in official_names(model).items():
        if parameter.requires_grad:
            parameter.set_data(Tensor(formula_value(name, parameter.shape)))
    return model.set_train(False)


def write_digits_checkpoint(config, path: Path, classes: tuple[str, ...] = DIGIT_NAMES) -> Path:
    """A checkpoint as training writes them, with raw and averaged weights that differ."""
    parameters = with_formula_weights(config.build_model("CPU")).get_parameters()
    values = {parameter.name: Tensor(parameter.asnumpy()) for parameter in parameters}
    average = {
        f"ema.{name}": Tensor(np.float32(0.9) * value.asnumpy())
        for name, value in values.items()
        if "topk_cloest_indice" not in name
    }
    write_checkpoint(path, values | average, {CONFIG: config.to_yaml(), CLASSES: json.dumps(classes)})
    return path
