"""Loads trained networks for use outside of training, from a checkpoint or an exported file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from focal_twins.config.load import Config, load_config, parse_config
from focal_twins.distributed.ranks import start
from focal_twins.errors import UserError
from focal_twins.files.download import find_published, weights_file
from focal_twins.files.weights import CONFIG, class_names, load_weights, read_checkpoint, select_weights
from focal_twins.inference.exported import RUNNABLE, ExportedModel
from focal_twins.tasks.find_task import create_task, task_of_run
from focal_twins.tasks.task import Task


@dataclass(frozen=True)
class TrainedModel:
    """Holds a checkpoint's model in evaluation mode, float32, with its configuration and classes.

    Attributes:
        weights: "raw" or "ema".
        classes: names of the classes by label, or None.
    """

    config: Config
    network: nn.Cell
    weights: str
    classes: tuple[str, ...] | None

    @property
    def preprocessing(self) -> dict:
        """The description of how an image becomes the network's input."""
        return create_task(self.config).preprocessing(self.network, None)


def run_checkpoint(config: Config, checkpoint: str | None) -> Path:
    """Return the path of the checkpoint to use: the one given, or the best of the configuration's run.

    Args:
        checkpoint: a path, or the name of published weights.

    Raises:
        UserError: there is no such file.
    """
    path = weights_file(checkpoint) if checkpoint else config.output / "checkpoints" / "best.ckpt"
    if not path.is_file():
        hint = "" if checkpoint else "; train first, or name one with --checkpoint"
        raise UserError(f"checkpoint {path}: no such file{hint}")
    return path


def load_for_inference(
    config: Config, checkpoint: Path, weights: str, device_target: str, content: dict | None = None
) -> TrainedModel:
    """Build a model in evaluation mode with a checkpoint's weights.

    Args:
        weights: "raw", "ema", or "auto": the averaged weights where the file has them.
        content: the checkpoint's content, where it was read already.

    Raises:
        UserError: an unreadable file, weights of another model, or averaged weights that are not there.
    """
    content = content or read_checkpoint(checkpoint)
    label = f"checkpoint {checkpoint}"
    selected, used = select_weights(content, weights, label)
    model = config.build_model(device_target)
    # Position parameters of another image size are adapted. A head of another size is not: it would be untrained.
    load_weights(model, selected, adapt=("size",), announce=print, label=label)
    model.set_train(False)
    return TrainedModel(config, model, used, class_names(content))


def open_checkpoint(
    checkpoint: str,
    config_name: str | None = None,
    overrides: Sequence[str] = (),
    weights: str = "auto",
    device_target: str | None = None,
    starts: bool = True,
) -> TrainedModel:
    """Open a checkpoint's model on this machine's device.

    Args:
        checkpoint: a path, or the name of published weights.
        config_name: name of the configuration; None for the one that training wrote into the checkpoint, or that of the
            published weights.
        overrides: "section.key=value".
        starts: set MindSpore's mode, device and random state (distributed.ranks.start); False: they stay as they are.

    Raises:
        UserError: no such file, no configuration in it, or weights of another model.
    """
    path = weights_file(checkpoint)
    content = read_checkpoint(path)
    config = checkpoint_config(path, content, config_name, overrides, device_target)
    target = start(config).device_target if starts else ms.get_context("device_target")
    return load_for_inference(config, path, weights, target, content)


def checkpoint_config(
    path: Path,
    content: dict,
    config_name: str | None = None,
    overrides: Sequence[str] = (),
    device_target: str | None = None,
) -> Config:
    """Return the configuration of a checkpoint's model; see open_checkpoint.

    Args:
        content: the checkpoint's content.

    Raises:
        UserError: it has none, and none is named.
    """
    # The device of the training run does not matter here.
    flags = {"runtime.device_target": device_target or "auto", "runtime.device_id": None}
    if config_name is not None:
        return load_config(config_name, overrides, flags)
    if CONFIG in content:
        return parse_config(str(content[CONFIG]), path, overrides, flags)
    if published := find_published(path):
        return load_config(published.config, overrides, flags)
    raise UserError(f"checkpoint {path}: holds weights without their configuration; name it with --config NAME")


@dataclass(frozen=True)
class OpenedModel:
    """Holds a model that is ready to run, whatever kind of file it came from.

    Attributes:
        task: the task that the model was trained for.
        answer: computes outputs [B, ...] of inputs [B, ...], as NumPy arrays.
        preprocessing: describes how an image becomes an input, see Task.preprocessing.
        batch_size: number of inputs that `answer` takes, or None for any.
        classes: names of the classes by label, or None.
        num_classes: how many there are; None in a task without classes.
        network: of a checkpoint, in evaluation mode; None for an exported file.
    """

    task: type[Task]
    answer: Callable[[np.ndarray], np.ndarray]
    preprocessing: dict
    batch_size: int | None
    classes: tuple[str, ...] | None
    num_classes: int | None
    network: nn.Cell | None = None

    @classmethod
    def of_checkpoint(cls, model: TrainedModel) -> "OpenedModel":
        """Return a checkpoint's model, ready to run."""
        task = create_task(model.config)
        answer = task.answer(model.network)
        num_classes = getattr(model.network, "num_classes", None)
        return cls(type(task), answer, model.preprocessing, None, model.classes, num_classes, model.network)

    @classmethod
    def of_exported(cls, path: Path) -> "OpenedModel":
        """Open an exported file.

        Raises:
            UserError: see ExportedModel.
        """
        exported = ExportedModel(path)
        task = task_of_run(exported.configuration)
        num_classes = exported.configuration["model"].get("num_classes")
        return cls(task, exported.answer, exported.preprocessing, exported.batch_size, exported.classes, num_classes)


def open_model(
    path: str, config_name: str | None = None, overrides: Sequence[str] = (), weights: str = "auto", **options
) -> OpenedModel:
    """Open a checkpoint, or an exported file with its description beside it; the suffix tells which it is.

    Args:
        config_name, overrides, weights, options: of open_checkpoint; exported files have none of the first three.

    Raises:
        UserError: see open_checkpoint and ExportedModel.
    """
    if Path(path).suffix.lower() in RUNNABLE:
        if config_name is not None or overrides or weights != "auto":
            raise UserError(f"model {path}: has its configuration and weights fixed; leave out the flags for them")
        return OpenedModel.of_exported(Path(path))
    return OpenedModel.of_checkpoint(open_checkpoint(path, config_name, overrides, weights, **options))
