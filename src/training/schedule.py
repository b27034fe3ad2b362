"""Learning rate schedules: pure functions of the update number.

All have one structure: a linear warm-up, a shape, and a constant cool-down. Durations are given in epochs, fractions
too, and rounded to whole updates.
"""

import math


def shape(schedule, base_lr: float, time: int, length: int, updates_per_epoch: int) -> float:
    """The rate between warm-up and cool-down, unscaled.

    With x = time / length:
        cosine          min_lr + (base_lr - min_lr) (1 + cos(pi x)) / 2
        clipped_cosine  max(min_lr, base_lr (1 + cos(pi x')) / 2), where the period of x' includes the cool-down, which
                        cuts off its flat end; source: the recipe of the 2022 MindSpore reports
        linear          base_lr + (min_lr - base_lr) x
        step            base_lr decay_rate^(decay_epochs that have passed)
        multistep       base_lr decay_rate^(milestones that have passed)
        constant        base_lr

    Args:
        schedule: the configuration's section.
        time: updates since the shape's start, at most `length`, the updates that it lasts.
    """
    match schedule.name:
        case "cosine":
            return schedule.min_lr + (base_lr - schedule.min_lr) / 2 * (1 + math.cos(math.pi * time / length))
        case "clipped_cosine":
            period = length + round(schedule.cooldown_epochs * updates_per_epoch)
            return max(schedule.min_lr, base_lr / 2 * (1 + math.cos(math.pi * time / period)))
        case "linear":
            return base_lr + (schedule.min_lr - base_lr) * time / length
        case "step":
            interval = max(1, round(schedule.decay_epochs * updates_per_epoch))
            return base_lr * schedule.decay_rate ** (time // interval)
        case "multistep":
            passed = sum(time >= round(milestone * updates_per_epoch) for milestone in schedule.milestones)
            return base_lr * schedule.decay_rate**passed
        case "constant":
            return base_lr
    raise ValueError(f"unknown schedule {schedule.name!r}")


def unscaled_rate(schedule, base_lr: float, epochs: int, update: int, updates_per_epoch: int) -> float:
    """Rate of an update at the batch size that the configured rates are meant for.

    Without warmup_prefix the shape is timed from the first update on, as in the originals (lr_scheduler.py): warm-up
    lies over its start, and where it ends the rate drops a little.
    """
    warmup, cooldown = (
        round(duration * updates_per_epoch) for duration in (schedule.warmup_epochs, schedule.cooldown_epochs)
    )
    end = epochs * updates_per_epoch - cooldown
    if update < warmup:
        return schedule.warmup_lr + (base_lr - schedule.warmup_lr) * update / warmup
    if cooldown and update >= end:
        return schedule.cooldown_lr
    start = warmup if schedule.warmup_prefix else 0
    return shape(schedule, base_lr, min(update, end) - start, end - start, updates_per_epoch)


def learning_rate(schedule, optimizer, epochs: int, update: int, updates_per_epoch: int, global_batch: int) -> float:
    """Rate of an update (counted from 0) under the configuration's schedule and optimizer sections.

    Every rate scales with global_batch / lr_batch_size, the linear scaling rule (arXiv 1706.02677).
    """
    rate = unscaled_rate(schedule, optimizer.base_lr, epochs, update, updates_per_epoch)
    return rate * (global_batch / optimizer.lr_batch_size if optimizer.lr_batch_size else 1.0)
