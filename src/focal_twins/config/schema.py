"""Defines the sections of a configuration that every task has: each key with its type, default and meaning.

The sections data, augment and eval are a task's own (task_sections.py). The sections model and backbone are not here:
their keys are the arguments of constructors (models).
"""

import os
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]


def _path(text: str) -> str:
    """Check that a path is not empty, and expand a ~, which a shell leaves in section.key=~/folder."""
    if not text:
        raise ValueError("must be a path, not an empty text")
    return os.path.expanduser(text)


PathText = Annotated[str, AfterValidator(_path)]  # of any bytes, which a constraint of pydantic's would refuse


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    # Keys that take the place of others. Of a key and all that take its place, exactly one is not null (config/load.py
    # checks it).
    ALTERNATIVES: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def default_of_alternatives(cls, given):
        """Make a key null by default where one that takes its place is given."""
        dropped = {other for key, other in cls.ALTERNATIVES.items() if given.get(key) is not None}
        return dict.fromkeys(dropped) | given


class OptimizerConfig(Section):
    name: Literal["adamw", "sgd", "lamb"] = "adamw"
    base_lr: Annotated[float, Field(gt=0)] = 5e-4  # at a global batch of lr_batch_size; scaled linearly
    lr_batch_size: Positive | None = 512  # null: base_lr is used as it is
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    nesterov: bool = True  # of sgd
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.9, 0.999], min_length=2, max_length=2)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Rate = 0.05
    # Words: parameters whose name holds one are spared weight decay, and no others; null: 1-D parameters, biases and
    # what the model names (position tables) are.
    no_weight_decay: list[str] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] = (
        1.0  # each block's rate is this times the next one's (fine-tuning)
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0  # of the global gradient norm; null: no clipping


class ScheduleConfig(Section):
    """Sets the learning rate over time, in epochs; rates are for lr_batch_size and scaled with base_lr."""

    ALTERNATIVES = {
        "warmup_updates": "warmup_epochs",
        "warmup_fraction": "warmup_epochs",
        "warmup_ratio": "warmup_lr",
    }

    name: Literal["cosine", "clipped_cosine", "linear", "poly", "step", "multistep", "constant"] = "cosine"
    warmup_prefix: bool = True  # the shape's time starts after the warm-up; false: at the first update, as originally
    min_lr: Rate = 5e-6
    warmup_epochs: Rate | None = 20.0
    warmup_updates: Annotated[int, Field(ge=0)] | None = None  # in place of warmup_epochs
    warmup_fraction: Fraction | None = None  # in place of warmup_epochs: a share of the run, however long it is
    warmup_lr: Rate | None = 1e-5  # at the first update; from there linearly to base_lr
    warmup_ratio: Fraction | None = None  # in place of warmup_lr: a factor of the shape, linearly from this to 1
    cooldown_epochs: Rate = 0.0  # at the end, at cooldown_lr
    cooldown_lr: Rate = 5e-6
    power: Annotated[float, Field(gt=0)] = 1.0  # of poly
    decay_rate: Fraction = 0.1  # of step and multistep
    decay_epochs: Annotated[float, Field(gt=0)] = 30.0  # of step: epochs between decays
    milestones: list[Rate] = []  # of multistep: epochs of the decays, in the shape's time


def warmup_key(schedule: ScheduleConfig) -> str:
    """Return the key that says how long the warm-up is."""
    given = (key for key in ("warmup_updates", "warmup_fraction") if getattr(schedule, key) is not None)
    return next(given, "warmup_epochs")


def without_ramps(schedule: ScheduleConfig) -> str:
    """Return what a user types for a run that is too short for the warm-up and the cool-down of its configuration."""
    keys = [warmup_key(schedule)] + (["cooldown_epochs"] if schedule.cooldown_epochs else [])
    return f"for a short run add {' '.join(f'schedule.{key}=0' for key in keys)}"


class TrainConfig(Section):
    ALTERNATIVES = {"updates": "epochs"}

    epochs: Positive | None = 300
    updates: Positive | None = None  # the run's length, in place of epochs
    batch_size: Positive = 64  # images per device and forward pass
    accumulation_steps: Positive = 1  # forward passes per update
    recompute: bool = False  # compute blocks again in the backward pass, for less memory; the original's use_checkpoint
    resume: bool | PathText = False  # false, auto (the run's newest checkpoint that can be read) or a path
    pretrained: PathText | None = None  # weights to start from: a file, or the name of published ones (docs/weights.md)
    download: bool = False  # download published weights that train.pretrained names and that are not here yet
    # Its head, which has a row for each class. auto: kept unless file and data name other classes, then new.
    pretrained_head: Literal["auto", "keep", "new", "by_name"] = "auto"
    frozen_stages: Annotated[int, Field(ge=0)] = 0  # the patch embedding and this many stages stay as they are; 0: none
    keep_checkpoints: Positive = 3  # newest epochs kept, beside last and best
    save_interval: Positive | None = None  # updates between saves within an epoch, beside the save at its end
    save_minutes: Annotated[float, Field(gt=0)] | None = 15.0  # the longest time without a save; null: no limit
    async_save: bool = True  # write saves in the background, while training goes on
    max_skipped_updates: Positive = 30  # consecutive updates without finite loss and gradients that end the run
    stall_seconds: Annotated[float, Field(gt=0)] | None = 300.0  # without progress before the watchdog reports it
    log_interval: Positive = 50  # updates between lines of the log
    early_stopping: Positive | None = None  # evaluations in a row without a better figure that end the run; null: none
    # End early, evaluated and saved, with the schedule of the full length; resume goes on from there.
    stop_after_epoch: Positive | None = None
    stop_after_update: Positive | None = None  # counted from the run's start


class EmaConfig(Section):
    """Sets the exponential moving average of the weights."""

    enabled: bool = True
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99992
    # Weights whose figures choose the best epoch: the averaged ones, the raw ones, or the better of the two in each.
    best_by: Literal["raw", "ema", "either"] = "ema"
    warmup: bool = False  # decay at update t is at most (1 + t) / (10 + t), so that early averages are not the start


class AmpConfig(Section):
    """Sets mixed precision and loss scaling."""

    # O0 is float32. auto: O1 on Ascend, O0 on CPU, where float16 is slower (docs/training.md).
    level: Literal["auto", "O0", "O1", "O2", "O3"] = "O0"
    loss_scale: Literal["dynamic", "fixed", "none"] = "dynamic"
    init_scale: Annotated[float, Field(ge=1)] = 1024.0
    growth_interval: Positive = 2000  # updates without overflow before the scale doubles


class RuntimeConfig(Section):
    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    device_id: Annotated[int, Field(ge=0)] | None = None  # null: by local rank
    mode: Literal["graph", "pynative"] = "graph"
    jit_level: Literal["auto", "O0", "O1", "O2"] = "auto"  # O2 is Ascend's graph engine
    precision_mode: Literal[  # of Ascend's operators; those with bf16 are not for the 910
        "must_keep_origin_dtype",
        "allow_fp32_to_fp16",
        "allow_fp32_to_bf16",
        "allow_mix_precision",
        "allow_mix_precision_fp16",
        "allow_mix_precision_bf16",
        "force_fp16",
        "force_fp32",
    ] = "must_keep_origin_dtype"
    conv_implementation: Literal["auto", "unfold", "conv2d"] = "auto"  # auto: unfold on CPU, conv2d on Ascend
    norm_gradient: Literal["auto", "products", "operator"] = (
        "auto"  # auto: products on CPU (in float32), operator on Ascend
    )
    gelu: Literal["auto", "polynomial", "erf"] = "auto"  # auto: polynomial on CPU, erf on Ascend
    # auto: compiled kernels in place of chains of operators, on CPU, in float32, where there is a C++ compiler; they
    # come before norm_gradient and gelu. none: operators alone, as on Ascend and in exported files.
    kernels: Literal["auto", "none"] = "auto"
    # Of float32 numbers on CPU. bfloat16 rounds the factors of every product, where the processor has units for it:
    # faster and less exact (docs/performance.md).
    matmul_precision: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output: PathText = "auto"  # folder of the run; auto: runs/<name of the configuration>
    # Folder where compiled graphs are kept for later processes (CPU); null: none are. A graph is taken up again only
    # with the same sources, packages, ranks, constants, shapes and configuration (distributed/compile_cache.py).
    compile_cache: PathText | None = None


COMMON_SECTIONS: dict[str, type[Section]] = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "ema": EmaConfig,
    "amp": AmpConfig,
    "runtime": RuntimeConfig,
}
