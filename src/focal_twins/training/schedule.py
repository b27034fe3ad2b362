"""Computes learning rates by schedules: pure functions of the update number.

All have one structure: a linear warm-up, a shape, and a constant cool-down. Durations are given in (fractional) epochs
and rounded to whole updates; the warm-up and the whole run can also be given in updates, and the warm-up as a share of
the run.
"""

import math
from dataclasses import dataclass

from focal_twins.config.load import Config
from focal_twins.config.schema import warmup_key, without_ramps
from focal_twins.phrases import counted


@dataclass(frozen=True)
class RunLength:
    """Tells how long a run is: all its updates, and the epochs that they lie in (the last may be incomplete)."""

    updates: int
    epochs: int


def run_length(config: Config, updates_per_epoch: int) -> RunLength:
    """Compute the length of a run from train.updates or train.epochs and the updates of an epoch.

    Raises:
        ConfigError: warm-up and cool-down, given in other units, do not fit into the run.
    """
    schedule, train = config.schedule, config.train
    updates = train.updates or (train.epochs or 0) * updates_per_epoch  # one of them is null
    warmup = warmup_updates(schedule, updates, updates_per_epoch)
    cooldown = round(schedule.cooldown_epochs * updates_per_epoch)
    in_epochs_alone = train.updates is None and schedule.warmup_updates is None  # then checked as it was given
    if not in_epochs_alone and warmup + cooldown > updates:
        raise config.error(
            f"schedule.{warmup_key(schedule)}",
            f"{counted(warmup, 'update')} of warm-up and {cooldown} of cool-down do not fit into the run's {updates}; "
            + without_ramps(schedule),
        )
    return RunLength(updates, math.ceil(updates / max(updates_per_epoch, 1)))


def warmup_updates(schedule, updates: int, updates_per_epoch: int) -> int:
    """Return the updates of the warm-up under the configuration's schedule section, in a run of some updates."""
    if schedule.warmup_updates is not None:
        return schedule.warmup_updates
    if schedule.warmup_fraction is not None:
        return round(schedule.warmup_fraction * updates)
    return round(schedule.warmup_epochs * updates_per_epoch)


def shape(schedule, base_lr: float, time: int, length: int, updates_per_epoch: int) -> float:
    """Compute the rate between warm-up and cool-down, unscaled.

    With x = time / length:
        cosine          min_lr + (base_lr - min_lr) (1 + cos(pi x)) / 2
        clipped_cosine  max(min_lr, base_lr (1 + cos(pi x')) / 2), where the period of x' includes the cool-down, so its
                        flat end is cut off; source: the recipe of the 2022 MindSpore reports
        linear          base_lr + (min_lr - base_lr) x
        poly            min_lr + (base_lr - min_lr) (1 - x)^power; source: mmcv's poly policy
        step            base_lr decay_rate^(decay_epochs that have passed)
        multistep       base_lr decay_rate^(milestones that have passed)
        constant        base_lr

    Args:
        schedule: the configuration's section.
        time: updates since the shape's start, at most `length`, the number of updates that the shape lasts.
    """
    match schedule.name:
        case "cosine":
            return schedule.min_lr + (base_lr - schedule.min_lr) / 2 * (1 + math.cos(math.pi * time / length))
        case "clipped_cosine":
            period = length + round(schedule.cooldown_epochs * updates_per_epoch)
            return max(schedule.min_lr, base_lr / 2 * (1 + math.cos(math.pi * time / period)))
        case "linear":
            return base_lr + (schedule.min_lr - base_lr) * time / length
        case "poly":
            return schedule.min_lr + (base_lr - schedule.min_lr) * (1 - time / length) ** schedule.power
        case "step":
            interval = max(1, round(schedule.decay_epochs * updates_per_epoch))
            return base_lr * schedule.decay_rate ** (time // interval)
        case "multistep":
            passed = sum(time >= round(milestone * updates_per_epoch) for milestone in schedule.milestones)
            return base_lr * schedule.decay_rate**passed
        case "constant":
            return base_lr
    raise ValueError(f"unknown schedule {schedule.name!r}")


def unscaled_rate(schedule, base_lr: float, updates: int, update: int, updates_per_epoch: int) -> float:
    """Compute the rate of an update at the batch size that the configured rates are meant for.

    Without warmup_prefix the shape is timed from the first update on, as in the originals (lr_scheduler.py): warm-up
    replaces its start, and where warm-up ends the rate drops a little. With warmup_ratio the warm-up is a factor of the
    shape, so that the rate has no step at its end; source: mmcv's linear warm-up.
    """
    warmup = warmup_updates(schedule, updates, updates_per_epoch)
    cooldown = round(schedule.cooldown_epochs * updates_per_epoch)
    end = updates - cooldown
    if update < warmup and schedule.warmup_ratio is None:
        return schedule.warmup_lr + (base_lr - schedule.warmup_lr) * update / warmup
    if cooldown and update >= end:
        return schedule.cooldown_lr
    start = warmup if schedule.warmup_prefix else 0
    time, length = max(min(update, end) - start, 0), max(end - start, 1)
    rate = shape(schedule, base_lr, time, length, updates_per_epoch)
    return rate * (1 - (1 - update / warmup) * (1 - schedule.warmup_ratio)) if update < warmup else rate


def learning_rate(schedule, optimizer, updates: int, update: int, updates_per_epoch: int, global_batch: int) -> float:
    """Compute the rate of an update (counted from 0) under the configuration's schedule and optimizer sections.

    Every rate scales with global_batch / lr_batch_size, the linear scaling rule (arXiv 1706.02677).

    Args:
        updates: those of the whole run, see run_length.
    """
    rate = unscaled_rate(schedule, optimizer.base_lr, updates, update, updates_per_epoch)
    return rate * (global_batch / optimizer.lr_batch_size if optimizer.lr_batch_size else 1.0)
