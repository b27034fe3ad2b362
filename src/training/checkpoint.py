"""The state of a training run, and its way to disk and back.

A checkpoint is one MindSpore .ckpt file: the weights under their own names (so `mindspore.load_checkpoint` and
src/weights.py read it as weights), and by prefix the moving average, the optimizer's moments and the rest of the state.
Files are written beside their final name, synced, and renamed: at every moment each name holds a whole checkpoint.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from mindspore import Parameter, Tensor, nn

from src.atomic import replace_synced
from src.config import Config
from src.errors import UserError
from src.weights import (
    CLASSES,
    EMA_PREFIX,
    STATE_PREFIX,
    WeightsError,
    class_names,
    load_weights,
    read_checkpoint,
    select_weights,
    write_checkpoint,
)

PROGRESS, CONFIG = STATE_PREFIX + "progress", STATE_PREFIX + "config"


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or one that this run cannot go on from."""


@dataclass
class Progress:
    """Where a run stands. Random streams are keyed by seed, epoch and update, so this is their whole state."""

    epoch: int = 0  # whole epochs done
    images: int = 0  # of the epoch begun, on all devices together
    update: int = 0  # updates done, skipped ones included
    skipped: int = 0  # of these, skipped for overflow
    seconds: float = 0.0  # spent so far, evaluation and compilation included
    best_top1: float = -1.0  # per cent
    best_epoch: int = 0


@dataclass
class TrainState:
    """Everything that training changes, in one object that saves and restores."""

    model: nn.Cell
    optimizer: nn.Cell
    loss_scale: nn.Cell
    ema: nn.Cell | None
    config: Config
    classes: tuple[str, ...]
    progress: Progress = field(default_factory=Progress)

    def parameters(self) -> list[Parameter]:
        """Every tensor of the state, the model's first."""
        parts = [self.optimizer, self.loss_scale] + ([self.ema] if self.ema is not None else [])
        return [*self.model.get_parameters(), *(p for part in parts for p in part.state())]

    def save(self, path: Path) -> None:
        """Write the state to a file, atomically.

        Raises:
            CheckpointError: no room, no permission; what was there before is untouched.
        """
        texts = {
            PROGRESS: json.dumps(self.progress.__dict__),
            CONFIG: self.config.to_yaml(),
            CLASSES: json.dumps(self.classes),
        }
        try:
            write_checkpoint(path, {p.name: Tensor(p.asnumpy()) for p in self.parameters()}, texts)
        except WeightsError as error:
            raise CheckpointError(f"{error}; earlier checkpoints are intact") from error

    def restore(self, path: Path) -> dict:
        """Take everything from a checkpoint that `save` wrote; returns the configuration it was written under.

        Raises:
            WeightsError: damaged, or of another model (the first differing parameters are named).
            CheckpointError: weights without a training state, or a state of another kind.
        """
        content = read_checkpoint(path)
        if PROGRESS not in content:
            raise CheckpointError(
                f"checkpoint {path}: holds no training state to resume; its weights can start a run by train.pretrained"
            )
        classes = class_names(content)
        if classes != self.classes:
            raise CheckpointError(
                f"checkpoint {path}: was trained on other classes ({len(classes)}: {classes[0]}, ...)"
            )
        saved = yaml.safe_load(content[CONFIG])
        for section, key in (("optimizer", "name"), ("train", "frozen_stages")):
            then, now = saved[section].get(key), getattr(getattr(self.config, section), key)
            if then is not None and then != now:
                raise CheckpointError(
                    f"checkpoint {path}: has the state of {section}.{key} {then}, not of {now}; its weights can start "
                    "a run by train.pretrained"
                )
        load_weights(self.model, select_weights(content, "raw")[0], adapt=(), label=f"checkpoint {path}")
        model = {p.name for p in self.model.get_parameters()}
        for parameter in self.parameters():
            if parameter.name in model:
                continue
            value = content.get(parameter.name)
            if value is None and parameter.name.startswith(EMA_PREFIX):
                # The run had no average until now: it starts at the weights.
                value = content[parameter.name.removeprefix(EMA_PREFIX)]
            if value is None or tuple(value.shape) != tuple(parameter.shape):
                raise CheckpointError(f"checkpoint {path}: holds no {parameter.name} of shape {tuple(parameter.shape)}")
            parameter.set_data(Tensor(value.asnumpy(), parameter.dtype))
        self.progress = Progress(**json.loads(content[PROGRESS]))
        return saved


class CheckpointFolder:
    """The checkpoints of a run: epoch_0007.ckpt and so on, and the names last.ckpt and best.ckpt."""

    def __init__(self, path: Path, keep: int):
        self.path = path
        self.keep = keep
        self.last = path / "last.ckpt"
        self.best = path / "best.ckpt"

    def save(self, state: TrainState, is_best: bool) -> Path:
        """Write the state after an epoch, point best (if it is) and last at it, and drop the oldest beyond `keep`.

        Best comes before last: a run that goes on from last must find the best that last knows of.

        Raises:
            CheckpointError: see TrainState.save.
        """
        path = self.path / f"epoch_{state.progress.epoch:04d}.ckpt"
        state.save(path)
        try:
            for name in [self.best, self.last] if is_best else [self.last]:
                self._point(name, path)
            for old in self.epochs()[: -self.keep]:
                old.unlink()
        except OSError as error:
            raise CheckpointError(
                f"checkpoints in {self.path}: cannot be written ({error}); {path} is whole"
            ) from error
        return path

    def save_within_epoch(self, state: TrainState) -> None:
        """Write the state as last.ckpt alone; the next save takes its place.

        Raises:
            CheckpointError: see TrainState.save.
        """
        state.save(self.last)

    def epochs(self) -> list[Path]:
        """Per-epoch files, oldest first."""
        return sorted(self.path.glob("epoch_*.ckpt"), key=lambda path: int(path.stem.split("_")[1]))

    @staticmethod
    def _point(name: Path, path: Path) -> None:
        """Make `name` the same file as `path`: a second hard link costs no space, and outlives the first."""
        temporary = name.with_name(f".{name.name}.link")
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # file systems without hard links
            shutil.copyfile(path, temporary)
        replace_synced(temporary, name)
