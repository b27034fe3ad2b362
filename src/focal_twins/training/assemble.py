"""Puts a training run together. It checks everything, and changes nothing on disk."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import nn

from focal_twins.config.load import Config
from focal_twins.data.dataset import Dataset
from focal_twins.data.pipeline import EvalBatches, TrainBatches, configure_reading, resolve_workers
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.class_rows import choose_rows
from focal_twins.files.download import DownloadError, download, locate, weights_file
from focal_twins.files.weights import class_names, load_weights, read_checkpoint, select_weights
from focal_twins.models.batch_norm import synchronise_batch_norms
from focal_twins.models.precision import apply_precision
from focal_twins.tasks.find_task import create_task
from focal_twins.tasks.task import Evaluator, Task
from focal_twins.training.checkpoint import Progress, TrainState
from focal_twins.training.ema import ExponentialMovingAverage
from focal_twins.training.optimizer import create_optimizer
from focal_twins.training.run_folder import RunFolder
from focal_twins.training.schedule import RunLength, run_length
from focal_twins.training.train_step import LossScale, TrainStep


@dataclass
class Assembly:
    """Holds the parts of a run, which fit together.

    Attributes:
        model, network: the network with its weights, and the same in the run's precision.
        resume_from: the checkpoint that the state is from; None at a start. `saved_config` is its configuration.
        saved_progress: the progress when the checkpoint was written.
        global_batch: number of samples of an update on all devices.
    """

    task: Task
    folder: RunFolder
    model: nn.Cell
    network: nn.Cell
    state: TrainState
    step: TrainStep
    train_batches: TrainBatches
    eval_batches: EvalBatches
    evaluator: Evaluator
    length: RunLength
    updates_per_epoch: int
    global_batch: int
    resume_from: Path | None
    saved_config: dict | None
    saved_progress: Progress


def assemble(config: Config, dist: Dist) -> Assembly:
    """Build a run from its configuration, and restore its state from the checkpoint to resume from, if there is one.

    Raises:
        UserError: data, checkpoints or options do not fit.
    """

    def announce(line: str) -> None:
        if dist.is_main:
            print(line, flush=True)

    folder = RunFolder(config.output, config.train.keep_checkpoints, dist.is_main)
    resume_from, saved = folder.save_to_resume(config.train.resume, announce)
    task = create_task(config)
    task.check()
    train_data = task.open("train")
    val_data = task.open("val", train_data.classes)
    for notice in (*train_data.notices, *val_data.notices):
        announce(notice)
    task.check_data(train_data, val_data)

    model = config.build_model(dist.device_target)
    synchronise_batch_norms(model, dist.size)
    if config.train.pretrained and saved is None:
        path = initial_weights(config, config.train.pretrained, dist, announce)
        if not path.exists():
            raise config.error(
                "train.pretrained", f"{path}: no such file; name another, or null for random initial weights"
            )
        content, label = read_checkpoint(path), f"checkpoint {path}"
        here = train_data.classes if train_data.classes and train_data.names_classes else None
        rows = choose_rows(config.train.pretrained_head, class_names(content), here)
        load_weights(model, select_weights(content, label=label)[0], announce=announce, label=label, rows=rows)
        del content
    model.freeze(config.train.frozen_stages)
    state = new_state(config, model, train_data.classes)
    saved_config = state.restore(saved, resume_from) if saved is not None and resume_from is not None else None
    del saved  # frees gigabytes
    saved_progress = replace(state.progress)
    state.progress.samples, state.progress.listing = train_data.size, train_data.listing
    check_same_start(config, dist, state, (train_data, val_data))

    network = apply_precision(model, config.precision(dist.device_target))
    global_batch = config.train.batch_size * config.train.accumulation_steps * dist.size
    updates_per_epoch = train_data.size // global_batch
    length = run_length(config, updates_per_epoch)
    count_in_updates(state.progress, updates_per_epoch, global_batch, dist.size)
    train_batches, eval_batches = open_batches(
        config, dist, task, model, folder, state.progress, length.epochs, train_data, val_data
    )
    return Assembly(
        task=task,
        folder=folder,
        model=model,
        network=network,
        state=state,
        step=build_step(config, dist, task, network, state, train_data),
        train_batches=train_batches,
        eval_batches=eval_batches,
        evaluator=task.evaluator(model, val_data, dist),
        length=length,
        updates_per_epoch=updates_per_epoch,
        global_batch=global_batch,
        resume_from=resume_from,
        saved_config=saved_config,
        saved_progress=saved_progress,
    )


def initial_weights(config: Config, name: str, dist: Dist, announce: Callable[[str], None]) -> Path:
    """Return the file that train.pretrained names; with train.download, one process downloads published weights first.

    Raises:
        ConfigError: published weights that are not here, or are damaged.
        DownloadError: they cannot be downloaded.
    """

    def fetch() -> None:
        path, weights = locate(name)
        if weights is not None and not path.is_file():
            announce(f"downloading {weights.name} to {path}")
            download(weights, path)

    if config.train.download:  # all ranks come here together, whatever each finds on its disk
        dist.on_main(fetch, f"{name}: cannot be downloaded; see the main process's line")
    try:
        return weights_file(name)
    except DownloadError as error:
        raise config.error("train.pretrained", str(error)) from error


def new_state(config: Config, model: nn.Cell, classes: tuple[str, ...]) -> TrainState:
    """Build the state of a run that has not begun."""
    return TrainState(
        model=model,
        optimizer=create_optimizer(model, config.optimizer),
        loss_scale=LossScale(
            1.0 if config.amp.loss_scale == "none" else config.amp.init_scale,
            config.amp.loss_scale == "dynamic",
            config.amp.growth_interval,
        ),
        ema=ExponentialMovingAverage(model.trainable_params(), config.ema.decay, config.ema.warmup)
        if config.ema.enabled
        else None,
        config=config,
        classes=classes,
    )


def check_same_start(config: Config, dist: Dist, state: TrainState, data: tuple[Dataset, ...]) -> None:
    """Check that all ranks start from the same progress and the same weights, and have found the same samples.

    Raises:
        UserError: they do not.
    """
    for found in data:
        if not dist.agree(np.array([int(found.listing.rpartition(":")[2][:12], 16)])).all():
            raise UserError(f"the processes found different files in {found.path}; they need a folder that all see")
    if not dist.agree(np.array([state.progress.epoch, state.progress.images])).all():
        raise UserError(
            f"the processes found different checkpoints under {config.output}; a run needs a folder that all see"
        )
    if dist.size > 1 and not dist.agree(np.array([state.weights_checksum()])).all():
        raise UserError(
            "the processes start from different weights; give all the same file, and the same versions of packages"
        )


def count_in_updates(progress: Progress, updates_per_epoch: int, global_batch: int, devices: int) -> None:
    """Express a progress in updates of this run.

    A checkpoint counts epochs and images: under another global batch they are another number of updates.
    """
    updates_done = min(progress.images // global_batch, max(updates_per_epoch - 1, 0)) if global_batch else 0
    progress.update = progress.epoch * updates_per_epoch + updates_done
    progress.images = updates_done * global_batch
    progress.devices, progress.global_batch = devices, global_batch


def open_batches(
    config: Config,
    dist: Dist,
    task: Task,
    model: nn.Cell,
    folder: RunFolder,
    progress: Progress,
    epochs: int,
    train_data: Dataset,
    val_data: Dataset,
) -> tuple[TrainBatches, EvalBatches]:
    """Open the batches of the rest of the run; each rank names the images that its own workers cannot read.

    Args:
        epochs: number of epochs of the whole run.

    Raises:
        DataError: too few images for one update.
    """
    train = config.train
    configure_reading(config.data)
    workers = resolve_workers(config.data.workers, dist.local_size)
    unreadable = folder.unreadable(dist.rank)
    train_batches = TrainBatches(
        train_data,
        task.train_samples(model, train_data, unreadable, epochs),
        seed=config.runtime.seed,
        batch_size=train.batch_size,
        batches_per_update=train.accumulation_steps,
        epochs=epochs,
        repeats=task.repeats,
        first_epoch=progress.epoch,
        first_batch=progress.images // (train.batch_size * dist.size),
        rank=dist.rank,
        ranks=dist.size,
        workers=workers,
    )
    remaining = max(epochs - progress.epoch, 1)
    eval_batches = EvalBatches(
        val_data,
        task.eval_samples(model, val_data, unreadable),
        batch_size=config.eval.batch_size,
        passes=remaining * (2 if config.ema.enabled else 1),
        rank=dist.rank,
        ranks=dist.size,
        workers=workers,
    )
    return train_batches, eval_batches


def build_step(
    config: Config, dist: Dist, task: Task, network: nn.Cell, state: TrainState, train_data: Dataset
) -> TrainStep:
    """Build the cell that makes one update."""
    parameters = state.model.trainable_params()
    step = TrainStep(
        task.losses(network, state.model, train_data, dist),
        parameters,
        state.optimizer,
        state.loss_scale,
        ema=state.ema,
        clip_norm=config.optimizer.clip_norm,
        accumulation_steps=config.train.accumulation_steps,
        reducer=dist.gradient_reducer(parameters),
        ranks=dist.size,
        float_status=dist.device_target == "Ascend",
    )
    step.set_train()
    return step
