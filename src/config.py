"""Configuration: the typed schema with every default, YAML inheritance, overrides and validation.

A configuration is a YAML file with the sections below. `base: ../base/imagenet.yaml` (or a list) names files whose
values this one inherits; keys merge section by section, and the command line's `section.key=value` comes last. Keys of
the model section are the arguments of the model's constructor (src/models), which is where their defaults are.
"""

import difflib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic import create_model as create_schema

from src.errors import UserError
from src.models import ArgumentError, create_model, find_model, resolve_arguments

CONFIG_ROOT = Path(__file__).resolve().parent.parent / "configs"
COMMAND_LINE = "command line"

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]


class ConfigError(UserError):
    """A configuration that cannot work; the message names the file and the key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where images come from and how they are read."""

    path: str = "data/imagenet"  # folder that holds train/ and val/, each with one folder per class
    train: str = "train"
    val: str = "val"
    workers: Literal["auto"] | Positive = (
        "auto"  # reader processes per device; auto: the cores divided among the devices
    )
    prefetch: Positive = 4  # batches kept ready
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=1)  # of pixels scaled to [0, 1], per channel
    std: list[Annotated[float, Field(gt=0)]] = Field([0.229, 0.224, 0.225], min_length=1)


class AugmentConfig(Section):
    """What training does to images and targets."""

    scale: list[Annotated[float, Field(gt=0, le=1)]] = Field([0.08, 1.0], min_length=2, max_length=2)  # crop area
    ratio: list[Annotated[float, Field(gt=0)]] = Field([0.75, 4 / 3], min_length=2, max_length=2)  # crop width / height
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    repeats: Positive = (
        1  # repeated augmentation (arXiv 1901.09335): copies of an image, each augmented anew, in an epoch
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    auto_augment: str | None = None  # for example rand-m9-mstd0.5-inc1
    erasing: Fraction = 0.0  # probability of random erasing
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    erasing_count: Positive = 1
    mixup: Rate = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: Rate = 0.0
    mixup_prob: Fraction = 1.0  # probability of mixing a batch at all
    switch_prob: Fraction = 0.5  # probability of cutmix where both are on
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"

    @model_validator(mode="after")
    def check(self):
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: [{low}, {high}] must be in ascending order")
        return self


class OptimizerConfig(Section):
    name: Literal["adamw"] = "adamw"
    base_lr: Annotated[float, Field(gt=0)] = 5e-4  # at a global batch of lr_batch_size; scaled linearly
    lr_batch_size: Positive | None = 512  # null: base_lr is used as it is
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.9, 0.999], min_length=2, max_length=2)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Rate = 0.05
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0  # of the global gradient norm; null: no clipping


class ScheduleConfig(Section):
    """Learning rate against time, in epochs; rates are at lr_batch_size and scaled with base_lr."""

    name: Literal["cosine", "official_cosine"] = "cosine"
    min_lr: Rate = 5e-6
    warmup_epochs: Rate = 20.0
    warmup_lr: Rate = 1e-5  # at the first update
    cooldown_epochs: Rate = 0.0  # at the end, at cooldown_lr
    cooldown_lr: Rate = 5e-6


class TrainConfig(Section):
    epochs: Positive = 300
    batch_size: Positive = 64  # images per device and forward pass
    accumulation_steps: Positive = 1  # forward passes per update
    resume: bool | str = False  # false, auto (the run's last checkpoint) or a path
    pretrained: str | None = None  # weights to start from
    keep_checkpoints: Positive = 3  # newest epochs kept, beside last and best
    log_interval: Positive = 50  # updates between lines of the log
    stop_after_epoch: Positive | None = (
        None  # end early with the schedule of the full length; resume goes on from there
    )


class EmaConfig(Section):
    """Exponential moving average of the weights."""

    enabled: bool = True
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99992
    warmup: bool = False  # decay at update t is at most (1 + t) / (10 + t), so that early averages are not the start


class AmpConfig(Section):
    """Mixed precision and loss scaling."""

    level: Literal["O0", "O1", "O2", "O3"] = "O0"
    loss_scale: Literal["dynamic", "fixed", "none"] = "dynamic"
    init_scale: Annotated[float, Field(ge=1)] = 1024.0
    growth_interval: Positive = 2000  # updates without overflow before the scale doubles


class EvalConfig(Section):
    batch_size: Positive = 64
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 0.875  # the short side becomes floor(img_size / crop_ratio)
    interval: Positive = 1  # epochs between evaluations while training


class RuntimeConfig(Section):
    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    device_id: Annotated[int, Field(ge=0)] | None = None  # null: by local rank
    mode: Literal["graph", "pynative"] = "graph"
    jit_level: Literal["auto", "O0", "O1", "O2"] = "auto"  # O2 is Ascend's graph engine
    precision_mode: Literal[  # of Ascend's operators
        "must_keep_origin_dtype", "allow_fp32_to_fp16", "allow_mix_precision", "force_fp16"
    ] = "must_keep_origin_dtype"
    conv_implementation: Literal["auto", "unfold", "conv2d"] = "auto"  # auto: unfold on CPU, conv2d on Ascend
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output: str = "auto"  # folder of the run; auto: runs/<name of the configuration>


# Constructor arguments that are a matter of the device and live in the runtime section.
RUNTIME_ARGUMENTS = ("conv_implementation",)


@dataclass(frozen=True)
class ModelConfig:
    """A model name and the constructor arguments given for it; the others have the model's defaults."""

    name: str
    arguments: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        """Every constructor argument that the model section may hold."""
        arguments = resolve_arguments(self.name, self.arguments)[1]
        return {key: value for key, value in arguments.items() if key not in RUNTIME_ARGUMENTS}


SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "ema": EmaConfig,
    "amp": AmpConfig,
    "eval": EvalConfig,
    "runtime": RuntimeConfig,
}

# Flat keys of the 2022 MindSpore ports, and where each went.
RENAMED_KEYS = {
    "arch": "model.name",
    "num_classes": "model.num_classes",
    "image_size": "model.img_size",
    "data_url": "data.path",
    "num_parallel_workers": "data.workers",
    "mix_up": "augment.mixup",
    "mixup": "augment.mixup",
    "cutmix": "augment.cutmix",
    "mixup_prob": "augment.mixup_prob",
    "switch_prob": "augment.switch_prob",
    "mixup_mode": "augment.mixup_mode",
    "auto_augment": "augment.auto_augment",
    "interpolation": "augment.interpolation",
    "re_prob": "augment.erasing",
    "re_mode": "augment.erasing_mode",
    "re_count": "augment.erasing_count",
    "label_smoothing": "augment.label_smoothing",
    "crop_ratio": "eval.crop_ratio",
    "optimizer": "optimizer.name",
    "base_lr": "optimizer.base_lr",
    "beta": "optimizer.betas",
    "eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "clip_global_norm_value": "optimizer.clip_norm",
    "use_global_norm": "optimizer.clip_norm",
    "lr_scheduler": "schedule.name",
    "min_lr": "schedule.min_lr",
    "warmup_length": "schedule.warmup_epochs",
    "warmup_lr": "schedule.warmup_lr",
    "cool_length": "schedule.cooldown_epochs",
    "cool_lr": "schedule.cooldown_lr",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "accumulation_step": "train.accumulation_steps",
    "pretrained": "train.pretrained",
    "keep_checkpoint_max": "train.keep_checkpoints",
    "print_freq": "train.log_interval",
    "enable_ema": "ema.enabled",
    "with_ema": "ema.enabled",
    "ema_decay": "ema.decay",
    "amp_level": "amp.level",
    "is_dynamic_loss_scale": "amp.loss_scale",
    "loss_scale": "amp.init_scale",
    "device_target": "runtime.device_target",
    "device_id": "runtime.device_id",
    "graph_mode": "runtime.mode",
    "seed": "runtime.seed",
    "train_url": "runtime.output",
}


@dataclass(frozen=True)
class Config:
    """A validated configuration. `sources` tells for every given key the file (or command line) it came from."""

    name: str
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    ema: EmaConfig
    amp: AmpConfig
    eval: EvalConfig
    runtime: RuntimeConfig
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return Path("runs") / self.name if self.runtime.output == "auto" else Path(self.runtime.output)

    def build_model(self, device_target: str):
        """The configured model, with randomly initialised weights, for "CPU" or "Ascend"."""
        implementation = self.runtime.conv_implementation
        if implementation == "auto":
            implementation = "conv2d" if device_target == "Ascend" else "unfold"
        return create_model(self.model.name, **self.model.arguments, conv_implementation=implementation)

    def with_data_path(self, path: Path) -> "Config":
        """The same configuration with its data elsewhere."""
        return replace(self, data=self.data.model_copy(update={"path": str(path)}))

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about one key, naming the file that set it."""
        return ConfigError(f"{self.sources.get(key, self.name)}: {key}: {problem}")

    def to_dict(self) -> dict:
        """Every key with its value, ready to be written as YAML and loaded again."""
        sections = {name: getattr(self, name).model_dump() for name in SECTIONS}
        return _plain({"name": self.name, "model": {"name": self.model.name, **self.model.resolved()}, **sections})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _plain(value):
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-4 as text for want of a dot; here it is a number, as in YAML 1.2. Repeated keys are errors."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _mapping_without_repeats(loader, node, deep=False):
    seen = set()
    for key_node, _ in node.value:
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key_node.value!r} appears twice", key_node.start_mark
            )
        seen.add(key_node.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: _mapping_without_repeats(loader, node, deep=True),
)


def find_config(name: str) -> Path:
    """The YAML file of a configuration: a path, or the bare name of a file under configs/.

    `src/configs/NAME.yaml`, where the 2022 port kept its files, finds the same file as NAME.

    Raises:
        ConfigError: no such file; the message gives the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {found.stem: found for found in sorted(CONFIG_ROOT.rglob("*.yaml"))}
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if stem in known and (path.parent == Path(".") or path.parent.name == "configs"):
        return known[stem]
    near = difflib.get_close_matches(stem, known, n=1, cutoff=0.4)
    hint = f"did you mean {_shown(known[near[0]])}?" if near else f"configurations are under {_shown(CONFIG_ROOT)}"
    raise ConfigError(f"configuration {name}: no such file; {hint}")


def _shown(path: Path) -> str:
    """A path as a user would type it: relative to the working directory where that is shorter."""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def load_config(path: str | Path, overrides: list[str] = (), flags: dict[str, Any] | None = None) -> Config:
    """Read a configuration file with what it inherits, apply overrides, validate.

    Args:
        path: a file, or a name that find_config knows.
        overrides: "section.key=value" strings; values are YAML, so `model.depths=[1,2]` and `train.resume=auto` work.
        flags: "section.key" to a value that is no text to be parsed (a folder may be called "no"); overrides win.

    Raises:
        ConfigError: one line that names the file, the key, and the nearest valid name or value.
    """
    path = find_config(str(path))
    values, sources = _read(path, ())
    for key, value in [*(flags or {}).items(), *map(_parse_override, overrides)]:
        values[key], sources[key] = value, COMMAND_LINE
    return _validate(path, values, sources)


def load_model_config(name: str, overrides: list[str] = ()) -> ModelConfig:
    """A model by name with constructor arguments given as "key=value" on the command line (without the section).

    Raises:
        ConfigError: see load_config.
    """
    given = {"name": name}
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{COMMAND_LINE}: {text!r} is not of the form key=value")
        key, value = _parse_override(f"model.{text.removeprefix('model.')}")
        given[key.removeprefix("model.")] = value
    return _validate_model(given, {f"model.{key}": COMMAND_LINE for key in given}, COMMAND_LINE)


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Flat {"section.key": value} of a file and its bases, and the file that each came from."""
    if path.resolve() in seen:
        raise ConfigError(f"{_shown(path)}: base: inherits from itself")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_shown(path)}: not valid YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_shown(path)}: cannot be read ({error})") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{_shown(path)}: must hold sections (model, data, ...), not a {type(content).__name__}")
    values, sources = {}, {}
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{_shown(path)}: base: must be a file or a list of files, got {bases!r}")
    for base in bases:
        base_path = path.parent / base
        if not base_path.is_file():
            raise ConfigError(f"{_shown(path)}: base: {base} does not exist")
        inherited, inherited_sources = _read(base_path, (*seen, path.resolve()))
        values |= inherited
        sources |= inherited_sources
    for section, keys in content.items():
        if section == "name" and isinstance(keys, str) and keys:
            values["name"], sources["name"] = keys, _shown(path)
            continue
        if section not in (*SECTIONS, "model") or not isinstance(keys, dict):
            _refuse_top_level(section, keys, _shown(path))
        for key, value in keys.items():
            values[f"{section}.{key}"], sources[f"{section}.{key}"] = value, _shown(path)
    return values, sources


def _refuse_top_level(key, value, source):
    if key in RENAMED_KEYS and not isinstance(value, dict):
        raise ConfigError(f"{source}: {key}: is now {RENAMED_KEYS[key]} (keys live in sections)")
    if key == "name":
        raise ConfigError(f"{source}: name: must be a text, got {value!r}")
    if key in (*SECTIONS, "model"):
        raise ConfigError(f"{source}: {key}: is a section and needs keys below it, got {value!r}")
    raise ConfigError(f"{source}: {key}: unknown section{_nearest(str(key), [*SECTIONS, 'model', 'base', 'name'])}")


def _nearest(key: str, names) -> str:
    near = difflib.get_close_matches(key, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not of the form section.key=value")
    if key in RENAMED_KEYS:
        raise ConfigError(f"{COMMAND_LINE}: {key}: is now {RENAMED_KEYS[key]}")
    if key.count(".") != 1 or key.split(".")[0] not in (*SECTIONS, "model"):
        section = key.split(".")[0]
        raise ConfigError(f"{COMMAND_LINE}: {key}: unknown section{_nearest(section, [*SECTIONS, 'model'])}")
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: {key}: {value!r} is not a YAML value") from error


def _validate(path: Path, values: dict, sources: dict) -> Config:
    shown = _shown(path)
    values = dict(values)
    name = values.pop("name", path.stem)
    by_section: dict[str, dict] = {section: {} for section in (*SECTIONS, "model")}
    for key, value in values.items():
        section, local = key.split(".", 1)
        by_section[section][local] = value

    sections = {}
    for section, schema in SECTIONS.items():
        sections[section] = _validate_section(section, schema, by_section[section], sources, shown)
    model = _validate_model(by_section["model"], sources, shown)
    config = Config(name=name, model=model, sources=sources, **sections)
    _check_across_sections(config)
    return config


def _validate_section(section: str, schema: type[BaseModel], given: dict, sources: dict, shown: str):
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        local = str(first["loc"][0]) if first["loc"] else ""
        key = f"{section}.{local}" if local else section
        source = sources.get(key, shown)
        if first["type"] == "extra_forbidden":
            renamed = RENAMED_KEYS.get(local)
            hint = f"; is now {renamed}" if renamed else _nearest(local, schema.model_fields)
            raise ConfigError(f"{source}: {key}: unknown key{hint}") from error
        # A union reports one error per member; all of them say what would be valid.
        problems = dict.fromkeys(
            e["msg"].removeprefix("Value error, ") for e in error.errors() if e["loc"][:1] == first["loc"][:1]
        )
        got = f", got {given[local]!r}" if local in given else ""
        raise ConfigError(f"{source}: {key}: {' or '.join(problems)}{got}") from error


def _validate_model(given: dict, sources: dict, shown: str) -> ModelConfig:
    """Check the model section against the constructor's signature, then by the model's own rules."""
    given = dict(given)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{sources.get('model.name', shown)}: model.name: must be the name of a model, got {name!r}")
    try:
        family, _ = find_model(name)
    except ValueError as error:
        raise ConfigError(f"{sources['model.name']}: model.name: {error}") from error
    # Without defaults in the schema, only what was given is checked and kept.
    fields = {
        key: (parameter.annotation, None)
        for key, parameter in family.parameters().items()
        if key not in RUNTIME_ARGUMENTS
    }
    schema = create_schema("ModelArguments", __config__=Section.model_config, **fields)
    _validate_section("model", schema, given, sources, shown)
    try:
        resolve_arguments(name, given)
    except ArgumentError as error:
        key = f"model.{error.argument}"
        source = sources.get(key, sources["model.name"])
        raise ConfigError(f"{source}: {key}: {error.reason}") from error
    return ModelConfig(name, given)


def _check_across_sections(config: Config) -> None:
    channels = config.model.resolved()["in_chans"]
    if channels not in (1, 3):
        raise config.error("model.in_chans", f"images are read as grey (1) or RGB (3), not with {channels} channels")
    for key in ("mean", "std"):
        if len(getattr(config.data, key)) != channels:
            raise config.error(f"data.{key}", f"has {len(getattr(config.data, key))} values for {channels} channels")
    schedule, train = config.schedule, config.train
    if schedule.warmup_epochs + schedule.cooldown_epochs > train.epochs:
        raise config.error(
            "schedule.warmup_epochs",
            f"{schedule.warmup_epochs:g} warm-up and {schedule.cooldown_epochs:g} cool-down epochs do not fit into "
            f"train.epochs {train.epochs}",
        )
