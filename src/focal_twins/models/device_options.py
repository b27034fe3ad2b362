"""Chooses which of two equal operators a device runs: a matter of speed, and never of results or weights."""

import mindspore as ms
from mindspore import nn

from focal_twins.kernels.library import load_kernels
from focal_twins.models.compiled import KernelLayer
from focal_twins.models.convolutions import Conv2d, DepthwiseConv2d, EnlargedConvolution, MapConvolution
from focal_twins.models.layers import Gelu, LayerNorm
from focal_twins.models.registry import ArgumentError

_CONVOLUTIONS = (Conv2d, MapConvolution, EnlargedConvolution, DepthwiseConv2d)

# For each option its layers, their attribute, and its values: first the CPU's choice, which layers start with.
_OPTIONS: dict[str, tuple[tuple[type[nn.Cell], ...], str, tuple[str, str]]] = {
    "conv_implementation": (_CONVOLUTIONS, "implementation", ("unfold", "conv2d")),
    "norm_gradient": ((LayerNorm,), "gradient", ("products", "operator")),
    "gelu": ((Gelu,), "form", ("polynomial", "erf")),
}
KERNELS = ("compiled", "none")
DEVICE_OPTIONS = (*_OPTIONS, "kernels")
# The default of each option on each device.
DEVICE_DEFAULTS = {
    "CPU": {name: values[0] for name, (_, _, values) in _OPTIONS.items()} | {"kernels": "compiled"},
    "Ascend": {name: values[1] for name, (_, _, values) in _OPTIONS.items()} | {"kernels": "none"},
}


def set_device_options(
    model: nn.Cell,
    conv_implementation: str | None = None,
    norm_gradient: str | None = None,
    gelu: str | None = None,
    kernels: str | None = None,
) -> nn.Cell:
    """Choose the operators of a model's layers, before a graph of it is compiled; None leaves them as they are.

    Args:
        conv_implementation: "unfold" or "conv2d", see convolutions.Conv2d.
        norm_gradient: "products" or "operator", see layers.LayerNorm.
        gelu: "polynomial" or "erf", see layers.Gelu.
        kernels: "compiled": the compiled kernels of focal_twins/kernels on CPU, in float32, wherever there is one for a
            layer, or, where this machine cannot build them, operators; "none": operators, as layers start with.

    Returns:
        The model itself.

    Raises:
        ArgumentError: another value.
    """
    chosen = {"conv_implementation": conv_implementation, "norm_gradient": norm_gradient, "gelu": gelu}
    for name, value in chosen.items():
        layers, attribute, values = _OPTIONS[name]
        if value is None:
            continue
        _check(name, value, values)
        for _, cell in model.cells_and_names():
            if isinstance(cell, layers):
                setattr(cell, attribute, value)
    if kernels is not None:
        _check("kernels", kernels, KERNELS)
        library = load_kernels(ms.get_context("runtime_num_threads")) if kernels == "compiled" else None
        for _, cell in list(model.cells_and_names()):
            if isinstance(cell, KernelLayer):
                cell.use_kernels(None if library is None else str(library))
    return model


def _check(name: str, value: str, values: tuple[str, str]) -> None:
    if value not in values:
        raise ArgumentError(name, f"must be {' or '.join(values)}, got {value!r}")


def device_options(model: nn.Cell) -> dict[str, str | None]:
    """Return the options of a model by name, as set_device_options takes them; None where no layer has one."""
    cells = [cell for _, cell in model.cells_and_names()]
    chosen = {
        name: next((getattr(cell, attribute) for cell in cells if isinstance(cell, layers)), None)
        for name, (layers, attribute, _) in _OPTIONS.items()
    }
    libraries = [cell.library for cell in cells if isinstance(cell, KernelLayer)]
    return chosen | {"kernels": ("compiled" if libraries[0] else "none") if libraries else None}
