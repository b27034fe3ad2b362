"""Model names and how to build them. Nothing here knows about configurations, files or devices."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass


class ArgumentError(ValueError):
    """A model argument that cannot work. `argument` is its name."""

    def __init__(self, argument: str, reason: str):
        super().__init__(f"{argument}: {reason}")
        self.argument = argument
        self.reason = reason


@dataclass(frozen=True)
class Family:
    """A constructor whose signature is the list of its arguments, and the check that they can work together."""

    build: type
    check: Callable[[dict], None]

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The constructor's arguments by name, with type annotations and defaults.

        A constructor with **arguments passes these on to its base class, whose own arguments count as well.
        """
        found: dict[str, inspect.Parameter] = {}
        for constructor in self.build.__mro__:
            parameters = inspect.signature(constructor).parameters
            found = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD} | found
            if len(found) >= len(parameters) and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                return found
        raise TypeError(f"{self.build.__name__}: **arguments lead nowhere")

    def defaults(self) -> dict:
        return {name: parameter.default for name, parameter in self.parameters().items()}


_FAMILIES: dict[str, Family] = {}
_MODELS: dict[str, tuple[str, dict]] = {}


def register_family(name: str, check: Callable[[dict], None]):
    """Class decorator: make a constructor available under the family's name, with its own defaults."""

    def register(build):
        _FAMILIES[name] = Family(build, check)
        return build

    return register


def register_model(name: str, family: str, **arguments) -> None:
    """Make a published size available by name."""
    _MODELS[name] = (family, arguments)


def list_models() -> list[str]:
    """Names of the published models."""
    return sorted(_MODELS)


def find_model(name: str) -> tuple[Family, dict]:
    """The family of a model or family name, and the arguments that its size fixes.

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


def resolve_arguments(name: str, overrides: dict) -> tuple[Family, dict]:
    """All constructor arguments of a model: family defaults, then its size, then the overrides, checked.

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
    family.check(arguments)
    return family, arguments


def create_model(name: str, **overrides):
    """Build a model by name, e.g. create_model("focalv2_tiny_useconv_patch4_window7_224", num_classes=10).

    A family name ("focalv2") builds from the original constructor's defaults.

    Raises:
        ValueError, ArgumentError: see resolve_arguments.
    """
    family, arguments = resolve_arguments(name, overrides)
    return family.build(**arguments)
