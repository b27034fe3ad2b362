"""Writes models as ONNX files with MindSpore's exporter, and checks the files.

The exporter writes operators of opset 11, and has no converter for Im2Col (`ops.unfold`) and GroupNorm. A model to
be exported is therefore a fresh one, built with real convolutions, in which `make_expressible` replaces the rest.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.errors import UserError

PACKAGES = ("onnx", "onnxruntime")
INSTALL = 'pip install "onnx>=1.16,<2" "onnxruntime>=1.17,<2"'


class MapNorm(nn.Cell):
    """Normalises a map [B, C, H, W] by its own mean and variance: GroupNorm of one group, out of sums and products."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.gamma, self.beta, self.epsilon = norm.gamma, norm.beta, norm.eps

    def construct(self, x):
        centred = x - x.mean((1, 2, 3), True)
        variance = (centred * centred).mean((1, 2, 3), True)
        shape = (1, -1, 1, 1)
        return centred / ops.sqrt(variance + self.epsilon) * self.gamma.reshape(shape) + self.beta.reshape(shape)


def make_expressible(model: nn.Cell) -> None:
    """Replace in place the layers that the exporter cannot express by equal ones; the weights stay."""
    for _, cell in list(model.cells_and_names()):
        for name, child in cell.name_cells().items():
            if isinstance(child, nn.GroupNorm):
                setattr(cell, name, MapNorm(child))


def write_onnx(model: nn.Cell, path: Path, batch_size: int | None, names: tuple[str, str]) -> None:
    """Write a model as an ONNX file. The exporter needs a fresh model, which has not run before.

    Args:
        batch_size: None for any number of images.
        names: names of the input and of the output.

    Raises:
        UserError: the model has an operator that MindSpore cannot export.
    """
    shape = (batch_size, model.in_chans, *model.img_size)
    images = Tensor(np.zeros(shape, np.float32)) if batch_size else Tensor(shape=list(shape), dtype=ms.float32)
    axes = {names[0]: {0: "batch"}} if batch_size is None else {}
    try:
        ms.onnx.export(
            model,
            images,
            file_name=str(path),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_axes=axes,
        )
    except RuntimeError as error:
        match = re.search(r"Can not find key (\w+) in convert map", str(error))
        if match is None:
            raise
        raise UserError(
            f"--format ONNX: MindSpore cannot export the operator {match[1]}; use --format MINDIR"
        ) from error
    if batch_size is None and find_spec("onnx"):
        _name_batch_axis(path)


def _name_batch_axis(path: Path) -> None:
    """Name the output's first axis like the input's; the exporter writes -1, which is no valid size."""
    import onnx

    content = onnx.load(str(path))
    content.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(content, str(path))


def missing_packages() -> list[str]:
    """Return the packages that have to be installed for checking and running ONNX files."""
    return [package for package in PACKAGES if not find_spec(package)]


def check_onnx(path: Path) -> None:
    """Check with the `onnx` package that a file is valid ONNX.

    Raises:
        UserError: it is not.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"export {path}: not valid ONNX ({' '.join(str(error).split())[:200]})") from error
