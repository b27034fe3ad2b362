"""Learning rate schedules: pure functions of the update number.

Each takes the update (from 0), the updates of an epoch, the epochs of the run, the peak rate, and for the rest the
schedule section of a configuration.
"""

import math


def cosine(update: int, updates_per_epoch: int, epochs: float, base_lr: float, schedule) -> float:
    """Linear warm-up, a cosine towards zero held at min_lr, then a constant cool-down.

    With e = update / updates_per_epoch:
        e < warmup:             warmup_lr + (base_lr - warmup_lr) e / warmup
        e < epochs - cooldown:  max(min_lr, base_lr / 2 (1 + cos(pi (e - warmup) / (epochs - warmup))))
        else:                   cooldown_lr
    The cosine's period includes the cool-down, which cuts off its flat end. Source: the recipe of the 2022 reports.
    """
    epoch = update / updates_per_epoch
    warmup = schedule.warmup_epochs
    if epoch < warmup:
        return schedule.warmup_lr + (base_lr - schedule.warmup_lr) * epoch / warmup
    if epoch < epochs - schedule.cooldown_epochs:
        progress = (epoch - warmup) / (epochs - warmup)
        return max(schedule.min_lr, base_lr / 2 * (1 + math.cos(math.pi * progress)))
    return schedule.cooldown_lr


def official_cosine(update: int, updates_per_epoch: int, epochs: float, base_lr: float, schedule) -> float:
    """The original's schedule (lr_scheduler.py): a linear warm-up over the start of a cosine from base_lr to min_lr.

    The cosine runs over the epochs before the cool-down and is timed from the first update, not from the end of
    warm-up, where the rate therefore drops a little.
    """
    warmup = int(schedule.warmup_epochs * updates_per_epoch)
    total = int((epochs - schedule.cooldown_epochs) * updates_per_epoch)
    if update < warmup:
        return schedule.warmup_lr + update * (base_lr - schedule.warmup_lr) / warmup
    if update < total:
        return schedule.min_lr + (base_lr - schedule.min_lr) / 2 * (1 + math.cos(math.pi * update / total))
    return schedule.cooldown_lr if schedule.cooldown_epochs else schedule.min_lr


SCHEDULES = {"clipped_cosine": cosine, "cosine": official_cosine}


def learning_rate(schedule, optimizer, epochs: int, update: int, updates_per_epoch: int, global_batch: int) -> float:
    """Rate of an update (counted from 0) under the configuration's schedule and optimizer sections.

    Every rate scales with global_batch / lr_batch_size, the linear scaling rule (arXiv 1706.02677).
    """
    rate = SCHEDULES[schedule.name](update, updates_per_epoch, epochs, optimizer.base_lr, schedule)
    return rate * (global_batch / optimizer.lr_batch_size if optimizer.lr_batch_size else 1.0)
