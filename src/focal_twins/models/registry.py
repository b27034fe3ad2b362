"""Builds models by name. Nothing here knows about configurations, files or devices."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class ArgumentError(ValueError):
    """Says that a model argument cannot work. `argument` is its name."""

    def __init__(self, argument: str, reason: str):
        super().__init__(f"{argument}: {reason}")
        self.argument = argument
        self.reason = reason


NOT_KEYS = ("backbone", "out_indices")  # arguments of constructors that create_model takes by themselves


@dataclass(frozen=True)
class Family:
    """Describes models by a class: its constructor's signature lists the arguments, its `check` refuses bad ones.

    A constructor whose first argument is `backbone` is that of a network on a backbone.
    """

    build: type[Any]

    @property
    def check(self) -> Callable[[dict], None]:
        return self.build.check

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the constructor's arguments by name, with annotations and defaults, that may describe a model.

        A constructor with **arguments passes these on to its base class, whose own arguments count as well. Left out
        are out_indices, which distinguishes a backbone from a classifier, and backbone: see create_model.
        """
        found: dict[str, inspect.Parameter] = {}
        for constructor in self.build.__mro__:
            parameters = constructor_parameters(constructor)
            found = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD} | found
            if len(found) >= len(parameters) and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                return {name: p for name, p in found.items() if name not in NOT_KEYS}
        raise TypeError(f"{self.build.__name__}: **arguments lead nowhere")

    @property
    def has_backbone(self) -> bool:
        """Tell whether the family's networks stand on a backbone."""
        return "backbone" in constructor_parameters(self.build)

    def defaults(self) -> dict:
        return {name: parameter.default for name, parameter in self.parameters().items()}


def constructor_parameters(build: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class's constructor by name, also of one that it inherits.

    The signature of the class itself will not do: in Python 3.11.2 it is that of nn.Cell's __new__ where __init__ is
    inherited.
    """
    return dict(list(inspect.signature(build.__init__).parameters.items())[1:])  # without self


_FAMILIES: dict[str, Family] = {}
_MODELS: dict[str, tuple[str, dict]] = {}


def register_family(name: str):
    """Decorate a class of networks to make it available under the family's name, with its constructor's defaults."""

    def register(build):
        _FAMILIES[name] = Family(build)
        return build

    return register


def register_model(name: str, family: str, **arguments) -> None:
    """Make a published size available by name."""
    _MODELS[name] = (family, arguments)


def list_models() -> list[str]:
    """Return the names of the published models."""
    return sorted(_MODELS)


def find_model(name: str) -> tuple[Family, dict]:
    """Return the family of a model or family name, and the arguments that its size fixes.

    Raises:
        ValueError: unknown name; the message gives the nearest one.
    """
    if name in _FAMILIES:
        return _FAMILIES[name], {}
    if name not in _MODELS:
        names = [*list_models(), *_FAMILIES]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    family, arguments = _MODELS[name]
    return _FAMILIES[family], arguments


def resolve_arguments(
    name: str, overrides: dict, features_only: bool = False, out_indices: Sequence[int] | None = None
) -> tuple[Family, dict]:
    """Merge and check all constructor arguments of a model: family defaults, then its size, then the overrides.

    Args:
        features_only, out_indices: see create_model.

    Raises:
        ValueError: unknown model name.
        ArgumentError: unknown argument, or arguments that cannot work together.
    """
    family, size = find_model(name)
    known = family.defaults()
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ArgumentError(key, f"not an argument of {name}" + (f"; did you mean {near[0]}?" if near else ""))
    arguments = {**known, **size, **overrides}
    if features_only and family.has_backbone:
        raise ArgumentError("features_only", f"{name} stands on a backbone and gives no maps of its own")
    if features_only and "num_classes" in overrides:
        raise ArgumentError("num_classes", "a backbone of features has no classes; leave it or features_only out")
    if not features_only and out_indices is not None:
        raise ArgumentError("out_indices", "only a backbone gives maps; add features_only=True")
    every_stage = range(len(arguments.get("depths", ())))
    chosen = tuple(every_stage if out_indices is None else out_indices) if features_only else None
    family.check(arguments | {"out_indices": chosen})
    return family, arguments | ({"out_indices": chosen} if features_only else {})


def create_model(
    name: str, features_only: bool = False, out_indices: Sequence[int] | None = None, backbone=None, **overrides
):
    """Build a model by name, e.g. create_model("focalv2_tiny_useconv_patch4_window7_224", num_classes=10).

    A family name ("focalv2") builds from the original constructor's defaults. A network on a backbone has only that:
    create_model("upernet", backbone=create_model("twins_svt_small", features_only=True), num_classes=10).

    Args:
        features_only: build a backbone, which gives token maps [B, H * W, C] (models/backbones/backbone.py), in
            place of a classifier.
        out_indices: the stages, from 0, whose maps it gives; None: all.
        backbone: the backbone that the network stands on. It becomes a part of this network alone.

    Raises:
        ValueError, ArgumentError: see resolve_arguments.
    """
    family, arguments = resolve_arguments(name, overrides, features_only, out_indices)
    if family.has_backbone != (backbone is not None):
        raise ArgumentError("backbone", f"{name} {'needs one' if family.has_backbone else 'stands on none'}")
    return family.build(**arguments, **({"backbone": backbone} if family.has_backbone else {}))
