"""Lists how a run that resumes differs from the run it goes on from."""

from focal_twins.config.load import Config, flatten
from focal_twins.training.checkpoint import Progress

# Keys that may differ between a run and its continuation without changing what is trained.
INCIDENTAL = (
    "name",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.numa",
    "train.resume",
    "train.download",
    "train.early_stopping",
    "train.stop_after_epoch",
    "train.stop_after_update",
    "train.stall_seconds",
    "train.log_interval",
    "train.keep_checkpoints",
    "train.save_interval",
    "train.save_minutes",
    "train.async_save",
    "train.max_skipped_updates",
    "runtime.output",
    "runtime.device_id",
    "runtime.compile_cache",
)


def changes(
    saved_config: dict, config: Config, saved: Progress, now: Progress, images: int, updates_per_epoch: int
) -> list[str]:
    """Return a line for each setting that differs from when the checkpoint was written.

    Args:
        saved, now: the progress in the checkpoint, and the one training goes on with.
        images: number of images in the training set.
    """
    lines = [f"{key} {before} -> {value}" for key, before, value in changed_keys(saved_config, config)]
    if saved.devices and saved.devices != now.devices:
        lines.append(f"devices {saved.devices} -> {now.devices}")
    if saved.global_batch and saved.global_batch != now.global_batch:
        scaled = now.global_batch / saved.global_batch if config.optimizer.lr_batch_size else 1
        lines.append(
            f"images of an update {saved.global_batch} -> {now.global_batch}, updates of an epoch "
            f"{images // saved.global_batch} -> {updates_per_epoch}, learning rate "
            + (f"times {scaled:g} (it scales with the batch)" if scaled != 1 else "as before")
        )
    if saved.samples and saved.samples != now.samples:
        lines.append(f"training samples {saved.samples} -> {now.samples}: they come in another order from here on")
    elif _are_others(saved.listing, now.listing):
        lines.append("names of the training samples: some come in the places of others from here on")
    lines = [f"changed since: {line}" for line in lines]
    begun = (now.update - now.epoch * updates_per_epoch) * now.global_batch
    if begun != saved.images:
        lines.append(
            f"of the epoch begun, {saved.images} images were trained on: it goes on after {begun}, "
            f"{saved.images - begun} are trained on again"
        )
    return lines


def changed_keys(then: dict, config: Config) -> list[tuple[str, object, object]]:
    """Return (key, value then, value now) of the keys whose values differ, but for INCIDENTAL ones.

    Keys that the earlier version did not have count as if they had been left at their defaults.
    """
    now = flatten(config.to_dict())
    then = flatten(config.defaults()) | flatten(then)
    keys = [key for key in {**then, **now} if key not in INCIDENTAL]
    return [(key, then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)]


def _are_others(before: str, now: str) -> bool:
    """Return whether two listings of a data set differ; those of different formats cannot be compared."""
    return before != now and before.partition(":")[0] == now.partition(":")[0]
