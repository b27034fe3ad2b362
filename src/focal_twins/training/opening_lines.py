"""Describes a run when it begins: its model, data and devices, and what has changed since the run it goes on from."""

from collections.abc import Iterator

from focal_twins.config.load import Config
from focal_twins.distributed.ranks import Dist
from focal_twins.phrases import counted
from focal_twins.training.assemble import Assembly
from focal_twins.training.resuming import changes


def opening_lines(parts: Assembly, config: Config, dist: Dist) -> Iterator[str]:
    """Yield the lines that a run logs first."""
    model, progress, data = parts.model, parts.state.progress, parts.train_batches.data
    parameters = sum(parameter.size for parameter in model.trainable_params())
    yield (
        f"{config.model.name}: {parameters:,} parameters, {data.description}, {dist.device_target} x {dist.size}, "
        f"{counted(parts.updates_per_epoch, 'update')} of {counted(parts.global_batch, 'image')} an epoch, "
        f"amp {config.precision(dist.device_target)}"
    )
    if frozen := config.train.frozen_stages:
        stages = counted(len(model.depths), "stage")
        yield f"frozen: the patch embedding and {frozen} of {stages}, beside the parameters above"
    for caveat in (parts.step.accumulation_caveat(), parts.task.batch_caveat(model, dist.size)):
        if caveat:
            yield caveat
    if parts.saved_config is not None:
        within = progress.update - progress.epoch * parts.updates_per_epoch
        where = f"epoch {progress.epoch}" + (f" and {counted(within, 'update')} of the next" if within else "")
        yield f"resuming {parts.resume_from} after {where}"
        yield from changes(
            parts.saved_config, config, parts.saved_progress, progress, data.size, parts.updates_per_epoch
        )
