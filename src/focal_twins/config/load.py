"""Loads configurations: YAML inheritance, overrides and validation.

A configuration is a YAML file with the sections of config/schema.py. `base: ../base/imagenet.yaml` (or a list)
names files whose values this one inherits; keys merge section by section, and the command line's `section.key=value`
comes last. Keys of the model section are the arguments of its constructor (models), which defines their defaults.
"""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic import create_model as create_schema

from focal_twins.config.renamed_keys import RENAMED_KEYS, SYNONYMS
from focal_twins.config.schema import (
    COMMON_SECTIONS,
    AmpConfig,
    EmaConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    Section,
    TrainConfig,
    warmup_key,
    without_ramps,
)
from focal_twins.config.suggestions import meant_key, meant_section, nearest
from focal_twins.config.task_sections import DEFAULT_TASK, TASK_SECTIONS
from focal_twins.errors import UserError
from focal_twins.models import ArgumentError, create_model, find_model, resolve_arguments
from focal_twins.models.backbones.backbone import DROPOUT_RATES
from focal_twins.models.device_options import DEVICE_DEFAULTS, DEVICE_OPTIONS, set_device_options
from focal_twins.models.precision import level_on

PACKAGE = Path(__file__).resolve().parent.parent
# The repository's folder or, of an installed package, the copy of it that the wheel has.
CONFIG_ROOT = next(path / "configs" for path in (PACKAGE, PACKAGE.parent.parent) if (path / "configs").is_dir())
COMMAND_LINE = "command line"
TOP_LEVEL = ("name", "task")  # keys that are in no section
SECTION_NAMES = ("model", "backbone", "data", "augment", "loss", "eval", *COMMON_SECTIONS)


class ConfigError(UserError):
    """Says that a configuration cannot work; the message names the file and the key."""


@dataclass(frozen=True)
class ModelConfig:
    """Holds a model name and the constructor arguments given for it; the others have the model's defaults.

    Attributes:
        is_backbone: the model gives maps to another. Its arguments may hold out_indices, and no num_classes.
    """

    name: str
    arguments: dict[str, Any]
    is_backbone: bool = False

    def resolved(self) -> dict[str, Any]:
        """Return every constructor argument that the section may hold, with its value."""
        if not self.is_backbone:
            return resolve_arguments(self.name, self.arguments)[1]
        given = dict(self.arguments)
        out_indices = given.pop("out_indices", None)
        resolved = resolve_arguments(self.name, given, features_only=True, out_indices=out_indices)[1]
        return {key: value for key, value in resolved.items() if key != "num_classes"}


@dataclass(frozen=True)
class Config:
    """Holds a validated configuration. `sources` has, for each given key, the file (or command line) it came from."""

    name: str
    task: str
    model: ModelConfig
    backbone: ModelConfig | None  # where the task's model is built around one
    data: Any  # this and the next have the schemas of the task, see task_sections.py
    augment: Any
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    ema: EmaConfig
    amp: AmpConfig
    eval: Any  # of the task's schema
    runtime: RuntimeConfig
    loss: Any = None  # of the task's schema, where it has such a section
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def output(self) -> Path:
        """Return the folder of the run."""
        return Path("runs") / self.name if self.runtime.output == "auto" else Path(self.runtime.output)

    def build_model(self, device_target: str, **device_options: str):
        """Build the configured model, with randomly initialised weights, for "CPU" or "Ascend".

        Args:
            device_options: those of set_device_options; given ones replace the configured ones.

        Raises:
            ConfigError: a network and its backbone do not fit each other.
        """
        # The blocks' arguments have the original's name for recomputing.
        recompute = {"use_checkpoint": True} if self.train.recompute else {}
        if self.backbone is None:
            model = create_model(self.model.name, **self.model.arguments | recompute)
        else:
            backbone = create_model(self.backbone.name, features_only=True, **self.backbone.arguments | recompute)
            try:
                model = create_model(self.model.name, backbone=backbone, **self.model.arguments)
            except ArgumentError as error:
                is_own = error.argument in find_model(self.model.name)[0].parameters()
                key = f"{'model' if is_own else 'backbone'}.{error.argument}"
                raise self.error(key, error.reason) from error
        chosen = {name: getattr(self.runtime, name) for name in DEVICE_OPTIONS} | device_options
        defaults = DEVICE_DEFAULTS[device_target]
        chosen = {name: defaults[name] if value == "auto" else value for name, value in chosen.items()}
        return set_device_options(model, **chosen)

    def precision(self, device_target: str) -> str:
        """Return the level of mixed precision on a device, "CPU" or "Ascend"; see apply_precision."""
        return level_on(device_target, self.amp.level)

    def with_data_path(self, path: Path) -> "Config":
        """Return the same configuration with its data at another path."""
        return replace(self, data=self.data.model_copy(update={"path": str(path)}))

    def error(self, key: str, problem: str) -> ConfigError:
        """Return an error about one key, naming the file that set it."""
        return ConfigError(f"{self.sources.get(key, self.name)}: {key}: {problem}")

    def to_dict(self) -> dict:
        """Return every key with its value, ready to be written as YAML and loaded again."""
        head: dict[str, Any] = {"name": self.name}
        if self.task != DEFAULT_TASK:
            head["task"] = self.task
        if self.backbone is not None:
            head["backbone"] = {"name": self.backbone.name, **self.backbone.resolved()}
        head["model"] = {"name": self.model.name, **self.model.resolved()}
        sections = {name: getattr(self, name).model_dump() for name in TASK_SECTIONS[self.task].schemas()}
        return plain(head | sections)

    def defaults(self) -> dict:
        """Return every key of the sections that have defaults of their own, with its default."""
        return plain({name: schema().model_dump() for name, schema in TASK_SECTIONS[self.task].schemas().items()})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def flatten(sections: dict) -> dict[str, object]:
    """Flatten {"section": {"key": value}} to {"section.key": value}."""
    flat = {}
    for section, value in sections.items():
        flat.update(
            {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
        )
    return flat


def plain(value):
    """Turn tuples into lists, for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Loader(yaml.SafeLoader):
    """Reads 5e-4 as a number, as YAML 1.2 does (to 1.1 it is text for want of a dot), and refuses repeated keys."""


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
    """Find the YAML file of a configuration by its path, or by the bare name of a file under configs/.

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
    """Return a path as a user would type it: relative to the working directory if it lies within."""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def load_config(path: str | Path, overrides: Sequence[str] = (), flags: dict[str, Any] | None = None) -> Config:
    """Read a configuration file with the files it inherits from, apply overrides and validate the result.

    Args:
        path: a file, or a name that find_config knows.
        overrides: "section.key=value" strings; values are YAML, so `model.depths=[1,2]` and `train.resume=auto` work.
        flags: "section.key" to a value that is not parsed (a folder may be called "no"); overrides win.

    Raises:
        ConfigError: one line that names the file, the key, and the nearest valid name or value.
    """
    path = find_config(str(path))
    return _completed(path, *_read(path, ()), overrides, flags)


def parse_config(text: str, path: Path, overrides: Sequence[str] = (), flags: dict[str, Any] | None = None) -> Config:
    """Load the text of a resolved configuration (Config.to_yaml) that another file, `path`, holds; see load_config.

    Raises:
        ConfigError: see load_config.
    """
    return _completed(path, *_flat(_mapping(text, path), path), overrides, flags)


def _completed(path, values, sources, overrides, flags) -> Config:
    """Make the configuration of a file's flat values, with the command line's values in place of theirs."""
    for key, value in [*(flags or {}).items(), *map(_parse_override, overrides)]:
        values[key], sources[key] = value, COMMAND_LINE
    return _validate(path, values, sources)


def load_model_config(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """Validate a model's name and constructor arguments given as "key=value" on the command line (without the section).

    Raises:
        ConfigError: see load_config.
    """
    given = {"name": name}
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{COMMAND_LINE}: {text!r} is not of the form key=value")
        key, value = _parse_override(f"model.{text.removeprefix('model.')}")
        given[key.removeprefix("model.")] = value
    sources = {f"model.{key}": COMMAND_LINE for key in given}
    return _validate_model("model", given, sources, COMMAND_LINE, False, {})


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read flat {"section.key": value} of a file and its bases, and the file that each came from."""
    if path.resolve() in seen:
        raise ConfigError(f"{_shown(path)}: base: inherits from itself")
    try:
        content = _mapping(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_shown(path)}: cannot be read (it is not UTF-8 text; save it as UTF-8)") from error
    except OSError as error:
        raise ConfigError(f"{_shown(path)}: cannot be read ({error.strerror})") from error
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
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
    own, own_sources = _flat(content, path)
    return values | own, sources | own_sources


def _mapping(text: str, path: Path) -> dict:
    """Parse the sections in a YAML text."""
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_shown(path)}: not valid YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{_shown(path)}: must hold sections (model, data, ...), not a {type(content).__name__}")
    return content


def _flat(content: dict, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return flat {"section.key": value} of sections, and the file for each."""
    values, sources = {}, {}
    for section, keys in content.items():
        if section in TOP_LEVEL and isinstance(keys, str) and keys:
            values[section], sources[section] = keys, _shown(path)
            continue
        if section not in SECTION_NAMES or not isinstance(keys, dict):
            _refuse_top_level(section, keys, _shown(path))
        for key, value in keys.items():
            values[f"{section}.{key}"], sources[f"{section}.{key}"] = value, _shown(path)
    return values, sources


def _refuse_top_level(key, value, source):
    if key in RENAMED_KEYS and not isinstance(value, dict):
        raise ConfigError(f"{source}: {key}: is now {RENAMED_KEYS[key]} (keys live in sections)")
    if key in SYNONYMS and not isinstance(value, dict):
        raise ConfigError(f"{source}: {key}: did you mean {SYNONYMS[key]}? (keys live in sections)")
    if key in TOP_LEVEL:
        raise ConfigError(f"{source}: {key}: must be a text, got {value!r}")
    if key in SECTION_NAMES:
        raise ConfigError(f"{source}: {key}: is a section and needs keys below it, got {value!r}")
    raise ConfigError(f"{source}: {key}: unknown section{nearest(str(key), [*SECTION_NAMES, 'base', *TOP_LEVEL])}")


def _known_keys(schemas: Mapping[str, type[BaseModel]], given: dict[str, dict]) -> dict[str, set[str]]:
    """Return the keys of each section; those of networks by the names that are given for them."""
    known = {section: set(schema.model_fields) for section, schema in schemas.items()}
    for section in ("model", "backbone"):
        name = given[section].get("name")
        with suppress(ValueError):  # no such network, which is said elsewhere
            known[section] = set(find_model(name)[0].parameters()) if isinstance(name, str) else set()
    return known


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not of the form section.key=value")
    if key in RENAMED_KEYS:
        raise ConfigError(f"{COMMAND_LINE}: {key}: is now {RENAMED_KEYS[key]}")
    if key.count(".") != 1 or key.split(".")[0] not in SECTION_NAMES:
        section, _, local = key.rpartition(".")
        schemas = TASK_SECTIONS[DEFAULT_TASK].schemas()
        known = {name: schemas[name].model_fields if name in schemas else () for name in SECTION_NAMES}
        raise ConfigError(f"{COMMAND_LINE}: {key}: unknown section{meant_section(section, local, known)}")
    if not value.isprintable() and any(0xDC80 <= ord(character) <= 0xDCFF for character in value):
        return key, value  # a path with bytes that are not UTF-8, which YAML refuses
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: {key}: {value!r} is not a YAML value") from error


def _validate(path: Path, values: dict, sources: dict) -> Config:
    shown = _shown(path)
    values = dict(values)
    name, task = values.pop("name", path.stem), values.pop("task", DEFAULT_TASK)
    if task not in TASK_SECTIONS:
        raise ConfigError(f"{sources['task']}: task: unknown task {task!r}{nearest(task, TASK_SECTIONS)}")
    by_section: dict[str, dict] = {section: {} for section in SECTION_NAMES}
    for key, value in values.items():
        section, local = key.split(".", 1)
        by_section[section][local] = value

    own = TASK_SECTIONS[task]
    known = _known_keys(own.schemas(), by_section)
    sections = {
        section: _validate_section(section, schema, by_section[section], sources, shown, known)
        for section, schema in own.schemas().items()
    }
    model = _validate_model("model", by_section["model"], sources, shown, own.has_backbone, known)
    backbone = None
    if own.has_backbone:
        backbone = _validate_model("backbone", by_section["backbone"], sources, shown, False, known)
        _check_no_dropout(backbone, sources, shown)
    elif by_section["backbone"]:
        _refuse_section("backbone", task, "its network is the section model", sources)
    if by_section["loss"] and "loss" not in sections:
        _refuse_section("loss", task, "its loss has no options", sources)
    config = Config(name=name, task=task, model=model, backbone=backbone, sources=sources, **sections)
    _check_across_sections(config)
    return config


def _refuse_section(section: str, task: str, reason: str, sources: dict):
    source = next(source for key, source in sources.items() if key.startswith(f"{section}."))
    raise ConfigError(f"{source}: {section}: has no meaning in the task {task}; {reason}")


def _validate_section(
    section: str, schema: type[BaseModel], given: dict, sources: dict, shown: str, known: dict[str, set[str]]
):
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        local = str(first["loc"][0]) if first["loc"] else ""
        key = f"{section}.{local}" if local else section
        source = sources.get(key, shown)
        if first["type"] == "extra_forbidden":
            hint = meant_key(section, local, {**known, section: set(schema.model_fields)})
            raise ConfigError(f"{source}: {key}: unknown key{hint}") from error
        # A union reports one error per member; all of them say what would be valid.
        problems = dict.fromkeys(
            e["msg"].removeprefix("Value error, ") for e in error.errors() if e["loc"][:1] == first["loc"][:1]
        )
        got = f", got {given[local]!r}" if local in given else ""
        raise ConfigError(f"{source}: {key}: {' or '.join(problems)}{got}") from error


def _validate_model(
    section: str, given: dict, sources: dict, shown: str, stands: bool, known: dict[str, set[str]]
) -> ModelConfig:
    """Check a section of a network against the constructor's signature, then by the network's own rules.

    Args:
        stands: whether the network has to stand on a backbone; otherwise it must not.
        known: see meant_key.
    """
    given = dict(given)
    name = given.pop("name", None)
    key = f"{section}.name"
    if not isinstance(name, str):
        raise ConfigError(f"{sources.get(key, shown)}: {key}: must be the name of a model, got {name!r}")
    try:
        family, _ = find_model(name)
    except ValueError as error:
        raise ConfigError(f"{sources[key]}: {key}: {error}") from error
    if family.has_backbone != stands:
        wanted = "stands on a backbone, and none is wanted" if family.has_backbone else "is no network on a backbone"
        raise ConfigError(f"{sources[key]}: {key}: {name} {wanted} here")
    is_backbone = section == "backbone"
    # Without defaults in the schema, only what was given is checked and kept.
    fields: dict[str, Any] = {
        argument: (parameter.annotation, None) for argument, parameter in family.parameters().items()
    }
    if is_backbone:
        del fields["num_classes"]
        fields["out_indices"] = (list[int] | None, None)
    schema = create_schema("ModelArguments", __config__=Section.model_config, **fields)
    _validate_section(section, schema, given, sources, shown, known)
    config = ModelConfig(name, given, is_backbone)
    try:
        config.resolved()
    except ArgumentError as error:
        argument = f"{section}.{error.argument}"
        source = sources.get(argument, sources[key])
        raise ConfigError(f"{source}: {argument}: {error.reason}") from error
    return config


def _check_no_dropout(backbone: ModelConfig, sources: dict, shown: str) -> None:
    """Check that a backbone drops no elements, because networks on one pass no seed for that."""
    for argument, value in backbone.resolved().items():
        if argument in DROPOUT_RATES and value:
            key = f"backbone.{argument}"
            raise ConfigError(f"{sources.get(key, shown)}: {key}: a backbone has no dropout; must be 0, got {value}")


def _check_across_sections(config: Config) -> None:
    TASK_SECTIONS[config.task].check(config)
    stages = len((config.backbone or config.model).resolved().get("depths", ()))
    if config.train.frozen_stages > stages:
        raise config.error(
            "train.frozen_stages",
            f"{config.train.frozen_stages} is more than the {stages} stages of {config.model.name}",
        )
    if not config.ema.enabled and config.ema.best_by != "ema":
        raise config.error("ema.best_by", f"{config.ema.best_by} has no effect without ema.enabled")
    _check_alternatives(config)
    _check_schedule(config)


def _check_alternatives(config: Config) -> None:
    """Check that of several keys for one setting exactly one is not null."""
    for section in TASK_SECTIONS[config.task].schemas():
        values = getattr(config, section)
        for replaced in dict.fromkeys(values.ALTERNATIVES.values()):
            keys = [replaced, *(key for key, other in values.ALTERNATIVES.items() if other == replaced)]
            given = [key for key in keys if getattr(values, key) is not None]
            if len(given) > 1:
                other, key = given[:2]
                raise config.error(
                    f"{section}.{key}",
                    f"takes the place of {section}.{other}, which is {getattr(values, other)}; set one of them to null",
                )
            if not given:
                others = " and ".join(f"{section}.{key}" for key in keys[1:])
                raise config.error(f"{section}.{replaced}", f"is null, and so is {others}; one of them is needed")


def _check_schedule(config: Config) -> None:
    schedule, epochs, updates = config.schedule, config.train.epochs, config.train.updates
    warmup = (schedule.warmup_epochs or 0.0) + (schedule.warmup_fraction or 0.0) * (epochs or 0)
    # Lengths in different units are compared when it is known how many updates an epoch has (run_length).
    if epochs is not None and warmup + schedule.cooldown_epochs > epochs:
        raise config.error(
            f"schedule.{warmup_key(schedule)}",
            f"{warmup:g} warm-up and {schedule.cooldown_epochs:g} cool-down epochs do not fit into "
            f"train.epochs {epochs}; {without_ramps(schedule)}",
        )
    if updates is not None and (schedule.warmup_updates or 0) > updates:
        raise config.error(
            "schedule.warmup_updates",
            f"{schedule.warmup_updates} do not fit into train.updates {updates}; {without_ramps(schedule)}",
        )
    if schedule.name in ("cosine", "clipped_cosine", "linear", "poly") and schedule.min_lr > config.optimizer.base_lr:
        raise config.error(
            "schedule.min_lr", f"{schedule.min_lr:g} is above optimizer.base_lr {config.optimizer.base_lr:g}"
        )
    milestones = schedule.milestones
    if (schedule.name == "multistep") != bool(milestones):
        problem = "multistep needs at least one" if not milestones else f"have no effect in a {schedule.name} schedule"
        raise config.error("schedule.milestones", problem)
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise config.error("schedule.milestones", f"{milestones} must be in ascending order")
    if epochs is None:
        return
    start = warmup if schedule.warmup_prefix else 0
    shape = epochs - schedule.cooldown_epochs - start
    if milestones and milestones[-1] >= shape:
        after = " after warm-up" if start else ""
        raise config.error("schedule.milestones", f"{milestones[-1]:g} is not within the {shape:g} epochs{after}")
