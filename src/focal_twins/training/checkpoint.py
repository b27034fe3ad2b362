"""Saves the state of a training run as checkpoints and restores it.

A checkpoint is one MindSpore .ckpt file: the weights under their own names (so `mindspore.load_checkpoint` and
files/weights.py read it as weights), and by prefix the moving average, the optimizer's moments and the rest of the
state. Files are written beside their final name, synced, and renamed: at every moment each name holds a whole
checkpoint. They end with a checksum (files/ckpt.py), which reveals later damage.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import yaml
from mindspore import Parameter, Tensor, nn

from focal_twins.config.load import Config
from focal_twins.errors import UserError
from focal_twins.files import ckpt
from focal_twins.files.atomic import LINKING, replace_synced
from focal_twins.files.names import only_in
from focal_twins.files.weights import (
    CLASSES,
    CONFIG,
    EMA_PREFIX,
    PREFERRED,
    STATE_PREFIX,
    WeightsError,
    class_names,
    load_weights,
    read_checkpoint,
    select_weights,
    write_checkpoint,
)
from focal_twins.phrases import counted

PROGRESS = STATE_PREFIX + "progress"
EPOCH_FILE = re.compile(r"epoch_\d{4,}\.ckpt")
RENAMED = {"best_top1": "best"}  # fields of Progress in files of earlier versions


class CheckpointError(UserError):
    """Says that a checkpoint cannot be written, or that this run cannot go on from it."""


@dataclass
class Progress:
    """Says how far a run is. Random streams are keyed by seed, epoch and update, so this is their whole state."""

    epoch: int = 0  # whole epochs done
    images: int = 0  # images of the epoch begun that were trained on, on all devices together
    update: int = 0  # updates done, skipped ones included
    skipped: int = 0  # number of these that were skipped for overflow
    seconds: float = 0.0  # time spent so far, evaluation and compilation included
    best: float = -1.0  # best value, after whole epochs, of the figure that the task chooses by
    best_epoch: int = 0
    best_weights: str = ""  # the weights that had it: raw or ema; nothing in files of earlier versions
    worse: int = 0  # evaluations after whole epochs since then, none of which was better
    other_best: float = -1.0  # best value of the weights that the best epoch is not chosen by, raw or averaged
    other_best_epoch: int = 0
    judged_by: str = ""  # the weights that counted in the newest evaluation: raw or ema
    devices: int = 0  # number of devices that trained together; 0 in files of earlier versions, which did not keep it
    global_batch: int = 0  # images of one update on all devices; 0 in such files
    samples: int = 0  # number of training samples, which their order depends on; 0 in such files
    listing: str = ""  # which they are: see Dataset

    @staticmethod
    def of_texts(texts: dict) -> "Progress":
        """Read the progress from the texts of a checkpoint.

        Raises:
            KeyError, ValueError, TypeError: the checkpoint holds none.
        """
        saved = {RENAMED.get(name, name): value for name, value in json.loads(texts[PROGRESS]).items()}
        return Progress(**{f.name: saved[f.name] for f in fields(Progress) if f.name in saved})

    @property
    def description(self) -> str:
        """The progress in words."""
        if not self.images:
            return f"epoch {self.epoch}"
        if self.global_batch:
            done = f"update {self.images // self.global_batch}"
        else:
            done = f"after {counted(self.images, 'image')}"
        return f"epoch {self.epoch + 1}, {done}"


@dataclass(frozen=True)
class Snapshot:
    """Holds a copy of the state at one moment, which can be written while training goes on."""

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]
    progress: Progress


@dataclass
class TrainState:
    """Holds everything that training changes, and takes and restores snapshots of it."""

    model: nn.Cell
    optimizer: nn.Cell
    loss_scale: nn.Cell
    ema: nn.Cell | None
    config: Config
    classes: tuple[str, ...]
    progress: Progress = field(default_factory=Progress)

    def parameters(self) -> list[Parameter]:
        """List every tensor of the state, the model's first."""
        parts = [self.optimizer, self.loss_scale] + ([self.ema] if self.ema is not None else [])
        return [*self.model.get_parameters(), *(p for part in parts for p in part.state())]

    def weights_checksum(self) -> int:
        """Return a checksum of 32 bits that tells whether processes start from the same weights."""
        checksum = 0
        for parameter in self.model.get_parameters():
            checksum = zlib.crc32(np.ascontiguousarray(parameter.asnumpy()).data, checksum)
        return checksum

    def snapshot(self) -> Snapshot:
        """Copy the state as it is now. The copies are needed because, on CPU, arrays share the parameters' memory."""
        texts = {
            PROGRESS: json.dumps(asdict(self.progress)),
            CONFIG: self.config.to_yaml(),
            CLASSES: json.dumps(self.classes),
        }
        if self.ema is not None and self.progress.judged_by == "raw":
            texts[PREFERRED] = "raw"
        return Snapshot({p.name: np.array(p.asnumpy()) for p in self.parameters()}, texts, replace(self.progress))

    def restore(self, content: dict, path: Path) -> dict:
        """Restore the state from the content of a checkpoint; return the configuration it was written under.

        Args:
            path: the file of the content, for messages.

        Raises:
            WeightsError: weights of another model (the message names the first differing parameters).
            CheckpointError: weights without a training state, or a state of another kind.
        """
        if PROGRESS not in content:
            raise CheckpointError(
                f"checkpoint {path}: holds no training state to resume; its weights can start a run by train.pretrained"
            )
        classes = class_names(content)
        if classes != self.classes:
            others = (
                only_in(self.classes, classes, "the data", "the checkpoint") if classes else "it does not name them"
            )
            raise CheckpointError(f"checkpoint {path}: was trained on other classes ({others})")
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
                # The run had no average until now: the average starts at the weights.
                value = content[parameter.name.removeprefix(EMA_PREFIX)]
            if value is None or tuple(value.shape) != tuple(parameter.shape):
                raise CheckpointError(f"checkpoint {path}: holds no {parameter.name} of shape {tuple(parameter.shape)}")
            parameter.set_data(Tensor(value, parameter.dtype))
        self.progress = Progress.of_texts(content)
        return saved


class CheckpointFolder:
    """Keeps the checkpoints of a run: epoch_0007.ckpt and so on, and the names last.ckpt and best.ckpt."""

    def __init__(self, path: Path, keep: int):
        self.path = path
        self.keep = keep
        self.last = path / "last.ckpt"
        self.best = path / "best.ckpt"

    def save(self, snapshot: Snapshot, is_best: bool) -> Path:
        """Write the state after an epoch, make last.ckpt the same file, and drop the oldest files beyond `keep`.

        If it is the best state so far, best.ckpt becomes the same file too. Best comes before last: a run that goes on
        from last must find the best that last knows of.

        Raises:
            CheckpointError: no room, no permission; every name still holds its earlier file, or the new state.
        """
        path = self.path / f"epoch_{snapshot.progress.epoch:04d}.ckpt"
        self._write(path, snapshot)
        try:
            for name in [self.best, self.last] if is_best else [self.last]:
                self._link(name, path)
            for old in self.epochs()[: -self.keep]:
                old.unlink()
        except OSError as error:
            raise CheckpointError(
                f"checkpoints in {self.path}: cannot be written ({error.strerror}); {path} is whole"
            ) from error
        return path

    def save_within_epoch(self, snapshot: Snapshot) -> None:
        """Write the state as last.ckpt alone; the next save takes its place.

        Raises:
            CheckpointError: no room, no permission; the earlier file is untouched.
        """
        self._write(self.last, snapshot)

    def epochs(self) -> list[Path]:
        """List the files of epochs, oldest first. Files of similar names, a user's copies, are not the run's."""
        files = [path for path in self.path.glob("epoch_*.ckpt") if EPOCH_FILE.fullmatch(path.name)]
        return sorted(files, key=lambda path: int(path.stem.split("_")[1]))

    def saves(self) -> list[Path]:
        """List every checkpoint, one name for each file: last before epochs, best at the end."""
        names = [self.last, *reversed(self.epochs()), self.best]
        by_file = {path.stat().st_ino: path for path in reversed(names) if path.exists()}
        return [path for path in names if path in by_file.values()]

    def newest(self, announce: Callable[[str], None]) -> tuple[Path, dict]:
        """Find the readable save that is furthest in training; return its path and content.

        The texts of a save say how far it is: only the chosen save's tensors are read. `announce` gets a line for each
        save that is skipped.

        Raises:
            CheckpointError: no save can be read.
        """
        saves, problems, progress = self.saves(), {}, {}
        for path in saves:
            try:
                progress[path] = Progress.of_texts(ckpt.read_texts(path))
            except (ckpt.CkptError, OSError) as error:
                problems[path] = str(error)
            except (KeyError, ValueError, TypeError):
                problems[path] = "holds no training state"
        # Sorting keeps the order of equals: last comes first.
        for path in sorted(progress, key=lambda path: (progress[path].epoch, progress[path].images), reverse=True):
            try:
                content = read_checkpoint(path)
            except WeightsError as error:
                problems[path] = str(error.__cause__ or error)
                continue
            for other, problem in problems.items():
                announce(f"skipped {other}: {problem}")
            return path, content
        problem_list = "; ".join(f"{path.name} ({problem})" for path, problem in problems.items())
        raise CheckpointError(
            f"none of the checkpoints in {self.path} can be read: {problem_list}; put a copy of one there as "
            f"{self.last.name}, or begin anew with runtime.output=FOLDER"
        )

    def adopt(self, path: Path, progress: Progress) -> None:
        """Make last.ckpt, and best.ckpt if it is the best, the save that a run goes on from.

        A crash may have come between writing the save and naming it so.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        is_best = progress.epoch == progress.best_epoch and not progress.images
        try:
            for name in [self.best, self.last] if is_best else [self.last]:
                if not (name.exists() and name.samefile(path)):
                    self._link(name, path)
        except OSError as error:
            raise CheckpointError(f"checkpoints in {self.path}: cannot be written ({error.strerror})") from error

    @staticmethod
    def _write(path: Path, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(path, snapshot.tensors, snapshot.texts)
        except WeightsError as error:
            raise CheckpointError(f"{error}; earlier checkpoints are intact") from error

    @staticmethod
    def _link(name: Path, path: Path) -> None:
        """Make `name` the same file as `path`, by a second hard link, which takes no space and outlives the first."""
        temporary = name.with_name(f".{name.name}{LINKING}")
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # file systems without hard links
            shutil.copyfile(path, temporary)
        replace_synced(temporary, name)
