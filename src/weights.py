"""Weights in and out of files, by the originals' parameter names.

A checkpoint names LayerNorm and GroupNorm parameters as PyTorch does (weight, bias) or as MindSpore does (gamma, beta);
both load. Shapes are never guessed: what does not fit is listed by name.

Training checkpoints hold more than weights, told apart by the prefixes below (written by src/training/checkpoint.py).
"""

import json
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.errors import UserError

EMA_PREFIX = "ema."  # exponential moving average of the weights
OPTIMIZER_PREFIX = "optimizer."  # moments
STATE_PREFIX = "state."  # step counters, loss scale, best metric, configuration, class names

CLASSES = STATE_PREFIX + "classes"  # class names by index, as JSON

# Buffers of the official files that follow from sizes alone and are rebuilt here.
DERIVED_BUFFERS = re.compile(r"(^|\.)(topk_cloest_coords_\d+|window_coords|attn_mask)$")


class WeightsError(UserError):
    """Weights that do not fit the model, or a file that holds none."""


def official_names(model: nn.Cell) -> dict[str, Parameter]:
    """The model's parameters by the names the original PyTorch code gives them."""
    names = {}
    for parameter in model.get_parameters():
        path, _, local = parameter.name.rpartition(".")
        local = {"gamma": "weight", "beta": "bias"}.get(local, local)  # MindSpore's norm layers
        names[f"{path}.{local}" if path else local] = parameter
    return names


def read_checkpoint(path: str | Path) -> dict[str, Tensor | str]:
    """Everything in a .ckpt or .safetensors file by name: tensors, and texts of a training state.

    Raises:
        WeightsError: no such file, a damaged one, or another format.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"checkpoint {path}: no such file")
    if path.suffix == ".ckpt":
        try:
            return ms.load_checkpoint(str(path), crc_check=True)
        except (ValueError, RuntimeError, OSError) as error:
            raise WeightsError(
                f"checkpoint {path}: not a readable MindSpore checkpoint (damaged or cut short?)"
            ) from error
    if path.suffix == ".safetensors":
        try:
            return {name: Tensor(array) for name, array in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"checkpoint {path}: not a readable safetensors file ({error})") from error
    raise WeightsError(f"checkpoint {path}: unknown format {path.suffix!r}; expected .ckpt or .safetensors")


def select_weights(content: dict[str, Tensor | str], ema: bool = False) -> dict[str, np.ndarray]:
    """The weights among everything in a checkpoint, as arrays by name.

    Args:
        ema: the averaged weights in place of the raw ones; key tables and the like have no average and stay.
    """
    prefixes = (EMA_PREFIX, OPTIMIZER_PREFIX, STATE_PREFIX)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    weights = {name: value for name, value in tensors.items() if not name.startswith(prefixes)}
    if ema:
        weights |= {name[len(EMA_PREFIX) :]: value for name, value in tensors.items() if name.startswith(EMA_PREFIX)}
    return {name: value.asnumpy() for name, value in weights.items()}


def has_average(content: dict[str, Tensor | str]) -> bool:
    """Whether a checkpoint holds averaged (EMA) weights."""
    return any(name.startswith(EMA_PREFIX) for name in content)


def class_names(content: dict[str, Tensor | str]) -> tuple[str, ...] | None:
    """Class names by index from a training checkpoint; None where there are none."""
    return tuple(json.loads(content[CLASSES])) if CLASSES in content else None


def load_weights(
    model: nn.Cell, source: str | Path | dict, strict: bool = True, label: str = "weights"
) -> tuple[list[str], list[str]]:
    """Copy weights into a model by name, official or MindSpore's.

    Index tables of Focal Transformer v2 (layers.i.blocks.j.attn.topk_cloest_indice_k) are adopted, because the weights
    were trained with them. A file without them keeps the model's own, and buffers that follow from sizes are passed
    over; neither counts as missing or unexpected.

    Args:
        source: a file that read_checkpoint reads, or arrays or tensors by name.
        strict: raise unless every weight is matched; otherwise load what fits.
        label: what to call a `source` that is no file, in messages.

    Returns:
        Names of the model without a value, and names of the source without a use (or of another shape).

    Raises:
        WeightsError: with strict, weights that do not match (the first differing names are in the message); always, an
            unreadable file or an index table that does not fit the model.
    """
    if isinstance(source, str | Path):
        label, source = f"checkpoint {source}", select_weights(read_checkpoint(source))
    targets = official_names(model)
    official = {parameter.name: name for name, parameter in targets.items()}
    arrays = {official.get(name, name): value for name, value in source.items() if not DERIVED_BUFFERS.search(name)}

    required = [name for name, parameter in targets.items() if parameter.requires_grad]
    missing = [name for name in required if name not in arrays]
    unexpected = [name for name in arrays if name not in targets]
    shapes = {name: tuple(np.shape(arrays[name])) for name in arrays if name in targets}
    misshapen = [name for name, shape in shapes.items() if shape != tuple(targets[name].shape)]
    if strict and (missing or unexpected or misshapen):
        raise WeightsError(
            f"{label}: not of this model; " + _differences(missing, unexpected, misshapen, shapes, targets)
        )

    for name, value in arrays.items():
        if name in shapes and name not in misshapen:
            parameter = targets[name]
            value = value.asnumpy() if isinstance(value, Tensor) else np.asarray(value)
            parameter.set_data(Tensor(value, parameter.dtype))
    if hasattr(model, "adopt_key_tables"):
        try:
            model.adopt_key_tables()
        except ValueError as error:
            raise WeightsError(f"{label}: {error}") from error
    return missing + [name for name in misshapen if name in required], unexpected + misshapen


def _differences(missing, unexpected, misshapen, shapes, targets, shown=3):
    """One line with the first few names of each kind."""
    parts = [
        (f"{len(misshapen)} of another shape", [f"{n} {shapes[n]}, here {tuple(targets[n].shape)}" for n in misshapen]),
        (f"{len(missing)} missing", missing),
        (f"{len(unexpected)} unexpected", unexpected),
    ]
    return "; ".join(
        f"{head}: {', '.join(names[:shown])}{', ...' if len(names) > shown else ''}" for head, names in parts if names
    )
