"""Reads weights from files and writes them, by the originals' parameter names.

A checkpoint names LayerNorm and GroupNorm parameters as PyTorch does (weight, bias) or as MindSpore does (gamma, beta);
both load. Differences that another image size, window, number of image channels or other classes explain are adapted
and reported; anything else that does not fit is listed by name. The file of another network with the same backbone, a
classifier's for example, loads too: the backbone is found in file and model, whatever prefix its names have, and the
rest is reported.

Training checkpoints hold more than weights; prefixes (below) mark the rest, which training/checkpoint.py writes.
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

from focal_twins.errors import UserError
from focal_twins.files import ckpt, pth
from focal_twins.files.atomic import replacing
from focal_twins.files.class_rows import ONE_ROW_EACH, ClassRows
from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.class_layout import ClassLayout
from focal_twins.phrases import counted

EMA_PREFIX = "ema."  # exponential moving average of the weights
OPTIMIZER_PREFIX = "optimizer."  # moments
STATE_PREFIX = "state."  # step counters, loss scale, best metric, configuration, class names

CLASSES = STATE_PREFIX + "classes"  # class names by index, as JSON
CONFIG = STATE_PREFIX + "config"  # the resolved configuration, as YAML
PREFERRED = STATE_PREFIX + "preferred"  # "raw" where averaged weights are there and the raw ones are better

UNUSED = ".num_batches_tracked"  # a count that PyTorch's BatchNorm keeps, and uses only where it has no momentum

PTH_SUFFIXES = (".pth", ".pt", ".tar", ".bin")
ADAPTATIONS = ("size", "head", "channels")

logger = logging.getLogger(__name__)


class WeightsError(UserError):
    """Says that weights do not fit the model, or that a file holds none or cannot be written."""


def official_names(model: nn.Cell) -> dict[str, Parameter]:
    """Return the model's parameters by the names the original PyTorch code gives them.

    For a part of a larger model, the names start at that part.
    """
    return {official_name(name): parameter for name, parameter in model.parameters_and_names()}


def official_name(name: str) -> str:
    """Return the original's name for one of MindSpore's, whose norm layers have gamma and beta."""
    path, dot, local = name.rpartition(".")
    return path + dot + {"gamma": "weight", "beta": "bias"}.get(local, local)


@dataclass(frozen=True)
class BackbonePlace:
    """Finds a model's backbone and the prefix of its parameters' names: "" in a classifier, "backbone." in a detector.

    In a model without a backbone, every parameter counts as outside of it.
    """

    prefix: str = ""
    backbone: Backbone | None = None
    classifiers: dict[str, ClassLayout] = field(default_factory=dict)  # of the parameters that have rows for classes

    @classmethod
    def of(cls, model: nn.Cell) -> "BackbonePlace":
        """Find the backbone in a model."""
        layouts = getattr(model, "class_layouts", {})
        classifiers = {
            f"{layer}.{local}": layouts.get(layer, ONE_ROW_EACH)
            for layer in getattr(model, "classifiers", ())
            for local in ("weight", "bias")
        }
        for path, cell in model.cells_and_names():
            if isinstance(cell, Backbone):
                return cls(f"{path}." if path else "", cell, classifiers)
        return cls(classifiers=classifiers)

    def local(self, name: str) -> str | None:
        """Return a name as the backbone has it; None for a name outside of the backbone."""
        if self.backbone is None or not name.startswith(self.prefix):
            return None
        return name.removeprefix(self.prefix)

    def is_behind_stages(self, name: str) -> bool:
        """Tell whether a parameter belongs to the layers after the backbone's stages; False without a backbone."""
        if self.backbone is None:
            return False
        local = self.local(name)
        return local is None or self.backbone.is_behind_stages(local)


# --- files ----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray | str]:
    """Read everything in a .ckpt or .safetensors file, or the weights in a PyTorch file, by name.

    Texts are parts of a training state. PyTorch's averaged weights get EMA_PREFIX, as in a .ckpt.

    Raises:
        WeightsError, pth.PthError: no such file, a damaged one, another format, or one that wants to run code.
    """
    path = Path(path)
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        remedy = f"; of this run, {best} is a file" if best.is_file() else ""
        raise WeightsError(f"checkpoint {path}: a folder, not a file{remedy}")
    if not path.is_file():
        raise WeightsError(f"checkpoint {path}: no such file")
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
    """Tell whether a checkpoint holds averaged (EMA) weights."""
    return any(name.startswith(EMA_PREFIX) for name in content)


def class_names(content: dict[str, np.ndarray | str]) -> tuple[str, ...] | None:
    """Return class names by index from a training checkpoint; None where there are none."""
    return tuple(json.loads(str(content[CLASSES]))) if CLASSES in content else None


def select_weights(
    content: dict[str, np.ndarray | str], weights: str = "auto", label: str = "weights"
) -> tuple[dict[str, np.ndarray], str]:
    """Select the weights in a checkpoint's content, as arrays by name, and tell which they are: "raw" or "ema".

    Args:
        weights: "raw", "ema" (averaged; key tables and the like have no average and stay), or "auto": averaged ones
            where there are any, unless training found the raw ones better (ema.best_by).

    Raises:
        WeightsError: averaged weights that are not there.
    """
    if weights == "ema" and not has_average(content):
        raise WeightsError(f"{label}: holds no averaged (EMA) weights; use --weights raw")
    prefixes = (EMA_PREFIX, OPTIMIZER_PREFIX, STATE_PREFIX)
    arrays = {name: value for name, value in content.items() if not isinstance(value, str)}
    selected = {name: value for name, value in arrays.items() if not name.startswith(prefixes)}
    prefers_raw = weights == "auto" and content.get(PREFERRED) == "raw"
    used = "ema" if weights != "raw" and has_average(content) and not prefers_raw else "raw"
    if used == "ema":
        averages = {name[len(EMA_PREFIX) :]: value for name, value in arrays.items() if name.startswith(EMA_PREFIX)}
        selected |= averages
    return {name: _array(value) for name, value in selected.items()}, used


def _array(value) -> np.ndarray:
    return value.asnumpy() if isinstance(value, Tensor) else np.asarray(value)


def _reason(error: ckpt.CkptError | OSError) -> str:
    """Return why a file was not read or written, without its name."""
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


def save_weights(model: nn.Cell, path: str | Path, texts: dict[str, str] | None = None) -> None:
    """Write a model's weights, in the format of the file's suffix.

    .ckpt has MindSpore's parameter names, for `mindspore.load_checkpoint`. .safetensors and .pth have the originals',
    and the .pth file their index buffers too, so that the original code loads it strictly.

    Args:
        texts: parts of a training state, such as CONFIG, for a .ckpt file; the other formats have none.

    Raises:
        WeightsError, pth.PthError: an unknown suffix, no room, no permission.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".ckpt":
        write_checkpoint(path, {name: p.asnumpy() for name, p in model.parameters_and_names()}, texts)
        return
    arrays = {name: np.asarray(p.asnumpy(), order="C") for name, p in official_names(model).items()}
    if suffix == ".safetensors":
        try:
            with replacing(path) as temporary:
                save_file(arrays, temporary)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"checkpoint {path}: cannot be written ({error})") from error
    elif suffix in PTH_SUFFIXES:
        # PyTorch indexes with int64.
        arrays = {name: a.astype(np.int64) if a.dtype.kind == "i" else a for name, a in arrays.items()}
        place = BackbonePlace.of(model)
        buffers = place.backbone.original_buffers() if place.backbone else {}
        pth.save(path, arrays | {place.prefix + name: buffer for name, buffer in buffers.items()})
    else:
        raise WeightsError(f"checkpoint {path}: unknown format {path.suffix!r}; use .ckpt, .safetensors or .pth")


# --- models ---------------------------------------------------------------------------------------------------------


@dataclass
class LoadReport:
    """Reports what loading weights did with every name that was not simply copied.

    Attributes:
        loaded: number of the model's parameters that got a value from the file, of `total`.
        resized: position parameters interpolated to the model's image or window size.
        rebuilt: key tables of another image size or number of keys, for which the model keeps its own.
        new: position parameters that the file has in no block of a stage, as another image size has no use for them;
            initialised.
        recoloured: the first convolution, adapted to another number of image channels.
        reset: the head, for another number of classes or for others; initialised.
        kept: the head, where there is something to say about its rows.
        head: what there is to say about the head's rows; None: the number of classes is another.
        wrapper: a prefix that all names of the file have and the model's have not.
        left_out: position parameters of the file that the model has in no block of a stage.
        moved: the prefixes of the backbone's names in the file and in the model, where they differ.
        begun: parameters after the backbone's stages, where the file has another network's there; initialised.
        not_here: parameters after the backbone's stages that the file has and the model has not.
        missing: other names of the model without a value.
        unexpected: other names of the file without a use, or of another shape.
    """

    loaded: int = field(default=0, compare=False)
    total: int = field(default=0, compare=False)
    resized: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    recoloured: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    head: str | None = field(default=None, compare=False)
    wrapper: str = ""
    left_out: list[str] = field(default_factory=list)
    moved: tuple[str, str] | None = None
    begun: list[str] = field(default_factory=list)
    not_here: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return a line for each kind that has names; in full where they got no value from the file, or had no use."""
        kinds = {
            "interpolated to the model's image or window size": _listed(self.resized, 3),
            "kept as the model's own (the file's are of another size)": _listed(self.rebuilt, 3),
            "initialised (the file has none in these stages)": _listed(self.new),
            "adapted to the model's number of image channels": _listed(self.recoloured),
            self.head or "initialised (the head, for another number of classes)": _listed(self.reset or self.kept),
            "left out (the model has none in these stages)": _listed(self.left_out),
            "initialised (behind the backbone; the file is another network's)": _listed(_layers(self.begun), 8),
            "left out (behind the backbone of the file's network)": _listed(_layers(self.not_here), 8),
            "initialised (missing in the file)": _listed(self.missing),
            "left out (unknown, or of another shape)": _listed(self.unexpected),
        }
        lines = [f"{kind}: {names}" for kind, names in kinds.items() if names]
        if self.begun or self.not_here or self.moved:
            renamed = f", {self.moved[0]}NAME in the file as {self.moved[1]}NAME" if self.moved else ""
            lines.insert(
                0, f"taken for the backbone: {self.loaded} of the model's {counted(self.total, 'parameter')}{renamed}"
            )
        if self.wrapper:
            lines.insert(0, f"read {self.wrapper}NAME as NAME")
        return lines


def load_weights(
    model: nn.Cell,
    source: str | Path | dict,
    strict: bool = True,
    adapt: tuple[str, ...] = ADAPTATIONS,
    announce: Callable[[str], None] = logger.warning,
    label: str = "weights",
    rows: ClassRows | None = None,
) -> LoadReport:
    """Copy weights into a model by name, official or MindSpore's.

    Index tables of Focal Transformer v2 (layers.i.blocks.j.attn.topk_cloest_indice_k) are adopted when they are of the
    model's image size, because the weights were trained with them. A file without them keeps the model's own, and
    buffers that follow from sizes, or that nothing uses, are skipped; none counts as missing or unexpected. A prefix
    that all names of the file have, as wrappers add them ("module.", "model.", "backbone."), is left out.

    Args:
        source: a file that read_checkpoint reads (averaged weights where it has them), or arrays or tensors by name.
        strict: raise unless every weight is matched; otherwise load what fits.
        adapt: "size" allows another image or window size (position parameters are interpolated, tables rebuilt), "head"
            other classes (the head keeps its initial values) and the file of another network with the same backbone,
            from which only the backbone is loaded, "channels" grey images in place of colour and the reverse (the first
            convolution's weights are summed over channels, or divided among them).
        announce: gets a line for each kind of name that was not simply copied.
        label: name in messages of a `source` that is not a file.
        rows: which rows of the head to take (choose_rows), for "head"; None: all, if there are as many classes.

    Raises:
        WeightsError: an unreadable file; with strict, weights that do not match, otherwise none that match. Nothing has
            been copied then.
    """
    if isinstance(source, str | Path):
        label, path = f"checkpoint {source}", source
        source = select_weights(read_checkpoint(path), label=label)[0]
    targets = official_names(model)
    place = BackbonePlace.of(model)
    arrays = {official_name(name): _array(value) for name, value in source.items() if not name.endswith(UNUSED)}
    found_prefix = _prefix_in_file(place, targets, arrays)
    wrapper = found_prefix.removesuffix(place.prefix) if found_prefix.endswith(place.prefix) else ""
    if all(name.startswith(wrapper) for name in arrays):
        arrays = {name.removeprefix(wrapper): array for name, array in arrays.items()}
        found_prefix = found_prefix.removeprefix(wrapper)
    else:
        wrapper = ""
    file_prefix = found_prefix if "head" in adapt else place.prefix
    outside = set()
    if file_prefix != place.prefix:
        outside = {name for name in arrays if not name.startswith(file_prefix)}
        arrays = {name if name in outside else place.prefix + name[len(file_prefix) :]: a for name, a in arrays.items()}
    if place.backbone is not None:
        arrays = {
            name: value
            for name, value in arrays.items()
            if (local := place.local(name)) is None or not place.backbone.is_derived_buffer(local)
        }
    moved = None if file_prefix == place.prefix else (file_prefix, place.prefix)
    values, report, misshapen = _matched(place, targets, arrays, adapt, moved, outside, rows or ClassRows())
    report.wrapper = wrapper
    if strict and (report.missing or report.unexpected):
        differences = _differences(report, misshapen)
        if found_prefix != file_prefix:
            differences += (
                f"; the backbone's names begin with {found_prefix!r} in the file, which is another network's: it can "
                "start a training (train.pretrained)"
            )
        raise WeightsError(f"{label}: not of this model; {differences}")
    if rows is not None and rows.required and not place.classifiers.keys() & targets.keys() <= values.keys():
        raise WeightsError(
            f"{label}: its head cannot be kept (train.pretrained_head=keep): it is for another number of classes, or "
            "another network's; use auto, new or by_name"
        )
    if not any(name in values for name in targets if not place.is_behind_stages(name)):
        raise WeightsError(f"{label}: of another model, nothing in it fits; " + _differences(report, misshapen))
    for name, value in values.items():
        targets[name].set_data(Tensor(np.asarray(value, order="C"), targets[name].dtype))
    if place.backbone is not None:
        place.backbone.adopt_key_tables()
    for line in report.lines():
        announce(f"{label}: {line}")
    return report


def _prefix_in_file(place, targets, arrays):
    """Return the prefix of the backbone's names in a file; the model's own where the file does not show it."""
    stages = [name for name in targets if not place.is_behind_stages(name)]
    if place.backbone is None or any(name in arrays for name in stages):
        return place.prefix
    for local in map(place.local, stages):
        found = [name.removesuffix(local) for name in arrays if name == local or name.endswith(f".{local}")]
        if found:
            return min(found, key=len)
    return place.prefix


def _matched(place, targets, arrays, adapt, moved, outside, rows):
    """Return the values for the model's parameters, the report, and a phrase for each name of another shape.

    Args:
        moved: the prefixes of the backbone's names in the file and in the model, if they differ.
        outside: names of the file that are then not of its backbone.
        rows: which rows of the head to take.
    """
    values, report, misshapen = {}, LoadReport(total=len(targets), moved=moved), {}
    backbone = place.backbone
    behind = {name for name in targets if place.is_behind_stages(name)}
    head = place.classifiers if "head" in adapt else {}
    own_names, file_names = ([place.local(name) for name in names if place.local(name)] for names in (targets, arrays))
    # Another network's file has none of this network's parameters after the backbone's stages.
    is_of_another = "head" in adapt and backbone is not None and not behind & arrays.keys()
    for name, parameter in targets.items():
        array, shape, local = arrays.get(name), tuple(parameter.shape), place.local(name)
        sizes = "size" in adapt and local is not None
        if array is None:
            if sizes and backbone.is_optional(local, file_names):
                report.new.append(name)
            elif name in behind and (is_of_another or (moved and local is None)):
                report.begun.append(name)
            elif local is None or not backbone.is_key_table(local):
                report.missing.append(name)
        elif local is not None and backbone.is_key_table(local):
            if backbone.fits_key_table(local, array):
                values[name] = array
            elif sizes:
                report.rebuilt.append(name)
            else:
                misshapen[name] = f"{name} (of another image size)"
        elif name in head and array.shape[1:] == shape[1:]:
            taken = None if rows.all_new else rows.take(array, parameter.asnumpy(), head[name])
            if taken is None:
                report.reset.append(name)
                report.head = rows.line if rows.all_new else None
            else:
                values[name] = taken
                report.kept += [name] if rows.line else []
                report.head = rows.line
        elif array.shape == shape:
            values[name] = array
        elif "channels" in adapt and local and (adapted := backbone.recoloured(local, array, shape)) is not None:
            values[name] = adapted
            report.recoloured.append(name)
        elif sizes and (resized := backbone.resized(local, array, shape)) is not None:
            values[name] = resized
            report.resized.append(name)
        else:
            misshapen[name] = f"{name} {array.shape}, here {shape}"
            if backbone is not None and local and backbone.recoloured(local, array, shape) is not None:
                channels = array.shape[1]
                misshapen[name] += f" (for images of {channels} channels: model.in_chans={channels})"
            report.missing.append(name)
    in_stages = {name.split(".")[0] for name in own_names if not backbone.is_behind_stages(name)}
    for name in (name for name in arrays if name in misshapen or name not in targets):
        local = place.local(name)
        is_stages = local is not None and local.split(".")[0] in in_stages
        if name in misshapen:
            report.unexpected.append(name)
        elif local is not None and "size" in adapt and backbone.is_optional(local, own_names):
            report.left_out.append(name)
        elif name in outside or (is_of_another and not is_stages) or (local and backbone.has_no_use_for(local)):
            report.not_here.append(name)
        else:
            report.unexpected.append(name)
    report.loaded = len(values)
    return values, report, misshapen


def _layers(names):
    """Return the layers that parameters belong to."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _differences(report, misshapen):
    """List in one line the names of each kind, or the first if there are many."""
    kinds = {
        "of another shape": list(misshapen.values()),
        "missing": [name for name in report.missing if name not in misshapen],
        "unexpected": [name for name in report.unexpected if name not in misshapen],
    }
    listed = {kind: _listed(names, 20 if len(names) <= 20 else 3) for kind, names in kinds.items()}
    return "; ".join(f"{len(kinds[kind])} {kind}: {names}" for kind, names in listed.items() if names)


def _listed(names, shown=None):
    """List names in one line, only the first if there are more than `shown`."""
    kept = names[:shown]
    more = f" and {len(names) - len(kept)} more" if len(names) > len(kept) else ""
    return ", ".join(kept) + more
