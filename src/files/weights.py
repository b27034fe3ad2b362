"""Weights in and out of files, by the originals' parameter names.

A checkpoint names LayerNorm and GroupNorm parameters as PyTorch does (weight, bias) or as MindSpore does (gamma, beta);
both load. What a change of image size, window or class count explains is adapted and reported; anything else that does
not fit is listed by name.

Training checkpoints hold more than weights, told apart by the prefixes below (written by src/training/checkpoint.py).
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor, nn
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from src.errors import UserError
from src.files import ckpt, pth
from src.files.atomic import replacing

EMA_PREFIX = "ema."  # exponential moving average of the weights
OPTIMIZER_PREFIX = "optimizer."  # moments
STATE_PREFIX = "state."  # step counters, loss scale, best metric, configuration, class names

CLASSES = STATE_PREFIX + "classes"  # class names by index, as JSON
CONFIG = STATE_PREFIX + "config"  # the resolved configuration, as YAML

PTH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
ADAPTATIONS = ("size", "head")

logger = logging.getLogger(__name__)


class WeightsError(UserError):
    """Weights that do not fit the model, or a file that holds none or cannot be written."""


def official_names(model: nn.Cell) -> dict[str, Parameter]:
    """The model's parameters by the names the original PyTorch code gives them."""
    names = {}
    for parameter in model.get_parameters():
        path, _, local = parameter.name.rpartition(".")
        local = {"gamma": "weight", "beta": "bias"}.get(local, local)  # MindSpore's norm layers
        names[f"{path}.{local}" if path else local] = parameter
    return names


# --- files ----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray | str]:
    """Everything in a .ckpt or .safetensors file, or the weights in a PyTorch file, by name.

    Texts are parts of a training state. PyTorch's averaged weights come with EMA_PREFIX, as a .ckpt has them.

    Raises:
        WeightsError, pth.PthError: no such file, a damaged one, another format, or one that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"checkpoint {path}: " + ("a folder, not a file" if path.is_dir() else "no such file"))
    suffix = path.suffix.lower()
    if suffix == ".ckpt":
        try:
            return ckpt.read(path)
        except (ckpt.CkptError, OSError) as error:
            raise WeightsError(f"checkpoint {path}: not a readable MindSpore checkpoint: {_reason(error)}") from error
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, KeyError, AttributeError) as error:  # the latter two: types NumPy lacks
            raise WeightsError(f"checkpoint {path}: not a readable safetensors file ({error})") from error
    if suffix in PTH_SUFFIXES:
        raw, average = pth.state_dicts(path)
        return {**raw, **{EMA_PREFIX + name: array for name, array in average.items()}}
    raise WeightsError(f"checkpoint {path}: unknown format {path.suffix!r}; expected .ckpt, .safetensors or .pth")


def has_average(content: dict[str, np.ndarray | str]) -> bool:
    """Whether a checkpoint holds averaged (EMA) weights."""
    return any(name.startswith(EMA_PREFIX) for name in content)


def class_names(content: dict[str, np.ndarray | str]) -> tuple[str, ...] | None:
    """Class names by index from a training checkpoint; None where there are none."""
    return tuple(json.loads(str(content[CLASSES]))) if CLASSES in content else None


def select_weights(
    content: dict[str, np.ndarray | str], weights: str = "auto", label: str = "weights"
) -> tuple[dict[str, np.ndarray], str]:
    """The weights among everything in a checkpoint, as arrays by name, and which they are: "raw" or "ema".

    Args:
        weights: "raw", "ema" (averaged; key tables and the like have no average and stay), or "auto": averaged ones
            where there are any.

    Raises:
        WeightsError: averaged weights that are not there.
    """
    if weights == "ema" and not has_average(content):
        raise WeightsError(f"{label}: holds no averaged (EMA) weights; use --weights raw")
    prefixes = (EMA_PREFIX, OPTIMIZER_PREFIX, STATE_PREFIX)
    arrays = {name: value for name, value in content.items() if not isinstance(value, str)}
    selected = {name: value for name, value in arrays.items() if not name.startswith(prefixes)}
    used = "ema" if weights != "raw" and has_average(content) else "raw"
    if used == "ema":
        averages = {name[len(EMA_PREFIX) :]: value for name, value in arrays.items() if name.startswith(EMA_PREFIX)}
        selected |= averages
    return {name: _array(value) for name, value in selected.items()}, used


def _array(value) -> np.ndarray:
    return value.asnumpy() if isinstance(value, Tensor) else np.asarray(value)


def _reason(error: ckpt.CkptError | OSError) -> str:
    """Why a file was not read or written, without its name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def write_checkpoint(path: Path, tensors: dict[str, np.ndarray], texts: dict[str, str] | None = None) -> None:
    """Write a MindSpore .ckpt file with a checksum, atomically.

    Raises:
        WeightsError: no room, no permission; what was there before is untouched.
    """
    try:
        ckpt.write(path, tensors, texts or {})
    except OSError as error:
        raise WeightsError(f"checkpoint {path}: cannot be written ({_reason(error)})") from error


def save_weights(model: nn.Cell, path: str | Path) -> None:
    """Write a model's weights, in the format that the file's name asks for.

    .ckpt has MindSpore's parameter names, for `mindspore.load_checkpoint`. .safetensors and .pth have the originals',
    and the .pth file their index buffers too, so that it loads in the original code, strictly.

    Raises:
        WeightsError, pth.PthError: an unknown suffix, no room, no permission.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".ckpt":
        write_checkpoint(path, {p.name: p.asnumpy() for p in model.get_parameters()})
        return
    arrays = {name: np.ascontiguousarray(p.asnumpy()) for name, p in official_names(model).items()}
    if suffix == ".safetensors":
        try:
            with replacing(path) as temporary:
                save_file(arrays, temporary)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"checkpoint {path}: cannot be written ({error})") from error
    elif suffix in PTH_SUFFIXES:
        # PyTorch indexes with int64.
        arrays = {name: a.astype(np.int64) if a.dtype.kind == "i" else a for name, a in arrays.items()}
        pth.save(path, arrays | (model.original_buffers() if hasattr(model, "original_buffers") else {}))
    else:
        raise WeightsError(f"checkpoint {path}: unknown format {path.suffix!r}; use .ckpt, .safetensors or .pth")


# --- models ---------------------------------------------------------------------------------------------------------


@dataclass
class LoadReport:
    """What loading weights did with every name that was not simply copied.

    Attributes:
        loaded: number of the model's parameters that got a value from the file, of `total`.
        resized: position parameters interpolated to the model's image or window size.
        rebuilt: key tables of another image size or number of keys, for which the model keeps its own.
        new: position parameters that the file has in no block of a stage, as another image size has no use for them;
            initialised.
        reset: the head, for another number of classes; initialised.
        left_out: position parameters of the file that the model has in no block of a stage.
        missing: other names of the model without a value.
        unexpected: other names of the file without a use, or of another shape.
    """

    loaded: int = field(default=0, compare=False)
    total: int = field(default=0, compare=False)
    resized: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each kind with names in it; all names of what has no value from the file, or no use."""
        told = {
            "interpolated to the model's image or window size": _listed(self.resized, 3),
            "kept as the model's own (the file's are of another size)": _listed(self.rebuilt, 3),
            "initialised (the file has none in these stages)": _listed(self.new),
            "initialised (the head, for another number of classes)": _listed(self.reset),
            "left out (the model has none in these stages)": _listed(self.left_out),
            "initialised (missing in the file)": _listed(self.missing),
            "left out (unknown, or of another shape)": _listed(self.unexpected),
        }
        return [f"{what}: {names}" for what, names in told.items() if names]


def load_weights(
    model: nn.Cell,
    source: str | Path | dict,
    strict: bool = True,
    adapt: tuple[str, ...] = ADAPTATIONS,
    announce: Callable[[str], None] = logger.warning,
    label: str = "weights",
) -> LoadReport:
    """Copy weights into a model by name, official or MindSpore's.

    Index tables of Focal Transformer v2 (layers.i.blocks.j.attn.topk_cloest_indice_k) are adopted when they are of the
    model's image size, because the weights were trained with them. A file without them keeps the model's own, and
    buffers that follow from sizes are passed over; neither counts as missing or unexpected.

    Args:
        source: a file that read_checkpoint reads (averaged weights where it has them), or arrays or tensors by name.
        strict: raise unless every weight is matched; otherwise load what fits.
        adapt: "size" allows what another image or window size explains (position parameters are interpolated, tables
            rebuilt), "head" another number of classes (the head keeps its initial values).
        announce: gets a line for each kind of name that was not simply copied.
        label: what to call a `source` that is no file, in messages.

    Raises:
        WeightsError: before anything is copied; with strict, weights that do not match, otherwise nothing that does;
            always, an unreadable file.
    """
    if isinstance(source, str | Path):
        label, path = f"checkpoint {source}", source
        source = select_weights(read_checkpoint(path), label=label)[0]
    targets = official_names(model)
    official = {parameter.name: name for name, parameter in targets.items()}
    derived = getattr(model, "derived_buffers", None)
    arrays = {
        official.get(name, name): _array(value)
        for name, value in source.items()
        if derived is None or not derived.search(name)
    }
    values, report, misshapen = _matched(model, targets, arrays, adapt)
    if strict and (report.missing or report.unexpected):
        raise WeightsError(f"{label}: not of this model; " + _differences(report, misshapen))
    if targets.keys() - values.keys() >= {name for name in targets if not name.startswith(("head.", "norm."))}:
        raise WeightsError(f"{label}: of another model, nothing in it fits; " + _differences(report, misshapen))
    for name, value in values.items():
        targets[name].set_data(Tensor(np.ascontiguousarray(value), targets[name].dtype))
    if hasattr(model, "adopt_key_tables"):
        model.adopt_key_tables()
    for line in report.lines():
        announce(f"{label}: {line}")
    return report


def _matched(model, targets, arrays, adapt):
    """The value of each of the model's parameters that gets one, the report, and what is of another shape, in words."""
    values, report, misshapen = {}, LoadReport(total=len(targets)), {}
    sizes = "size" in adapt and hasattr(model, "resized")
    is_key_table = getattr(model, "is_key_table", lambda name: False)
    for name, parameter in targets.items():
        array, shape = arrays.get(name), tuple(parameter.shape)
        if array is None:
            if sizes and model.is_optional(name, arrays):
                report.new.append(name)
            elif not is_key_table(name):
                report.missing.append(name)
        elif is_key_table(name):
            if model.fits_key_table(name, array):
                values[name] = array
            elif sizes:
                report.rebuilt.append(name)
            else:
                misshapen[name] = f"{name} (of another image size)"
        elif array.shape == shape:
            values[name] = array
        elif "head" in adapt and name in ("head.weight", "head.bias") and array.shape[1:] == shape[1:]:
            report.reset.append(name)
        elif sizes and (resized := model.resized(name, array, shape)) is not None:
            values[name] = resized
            report.resized.append(name)
        else:
            misshapen[name] = f"{name} {array.shape}, here {shape}"
            report.missing.append(name)
    for name in arrays:
        if name in misshapen:
            report.unexpected.append(name)
        elif name not in targets:
            optional = sizes and model.is_optional(name, targets)
            (report.left_out if optional else report.unexpected).append(name)
    report.loaded = len(values)
    return values, report, misshapen


def _differences(report, misshapen):
    """One line with the names of each kind, or the first if there are many."""
    kinds = {
        "of another shape": list(misshapen.values()),
        "missing": [name for name in report.missing if name not in misshapen],
        "unexpected": [name for name in report.unexpected if name not in misshapen],
    }
    listed = {kind: _listed(names, 20 if len(names) <= 20 else 3) for kind, names in kinds.items()}
    return "; ".join(f"{len(kinds[kind])} {kind}: {names}" for kind, names in listed.items() if names)


def _listed(names, shown=None):
    """Names in one line, the first of them if there are more than `shown`."""
    kept = names[:shown]
    more = f" and {len(names) - len(kept)} more" if len(names) > len(kept) else ""
    return ", ".join(kept) + more
