"""Writes models as ONNX files with MindSpore's exporter, and checks the files.

The exporter writes operators of opset 11, and has no converter for Im2Col (`ops.unfold`), GroupNorm and Rsqrt. A model
to be exported is therefore a fresh one, built with real convolutions, in which `make_expressible` replaces the rest.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.errors import UserError
from focal_twins.models.batch_norm import BatchNorm
from focal_twins.models.detectors.suppression import ComposedSuppression, RankedSuppression
from focal_twins.tasks.task import Signature, TensorSpec

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


class FoldedNorm(nn.Cell):
    """Normalises tokens by running statistics: BatchNorm in evaluation, as one product and one sum with constants.

    Which rows count in training does not matter then.
    """

    def __init__(self, norm: BatchNorm):
        super().__init__()
        weight, bias, mean, variance = (
            parameter.asnumpy().astype(np.float64)
            for parameter in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        factor = weight / np.sqrt(variance + norm.eps)
        self.factor = Tensor(factor.astype(np.float32))
        self.addend = Tensor((bias - mean * factor).astype(np.float32))

    def construct(self, x, counted=None):
        return x * self.factor + self.addend


def make_expressible(model: nn.Cell) -> None:
    """Replace in place the layers that the exporter cannot express by ones that are equal with the present weights."""
    for _, cell in list(model.cells_and_names()):
        for name, child in cell.name_cells().items():
            if isinstance(child, nn.GroupNorm):
                setattr(cell, name, MapNorm(child))
            elif isinstance(child, BatchNorm):
                setattr(cell, name, FoldedNorm(child))
            elif isinstance(child, RankedSuppression):
                setattr(cell, name, ComposedSuppression(child.iou))


def example_tensor(spec: TensorSpec) -> Tensor:
    """Return a tensor of zeros or, where the batch size is open, one without values."""
    sides = [side for side in spec.shape if side is not None]
    if len(sides) < len(spec.shape):
        return Tensor(shape=list(spec.shape), dtype=ms.float32)
    return Tensor(np.zeros(sides, np.float32))


def write_onnx(model: nn.Cell, path: Path, signature: Signature) -> None:
    """Write a model as an ONNX file. The exporter needs a fresh model, which has not run before.

    Args:
        signature: one input, and outputs; where their first side is None, the file takes any number of images.

    Raises:
        UserError: the model has an operator that MindSpore cannot export.
    """
    (images,) = signature.inputs
    is_open = images.shape[0] is None
    axes = {images.name: {0: "batch"}} if is_open else {}
    try:
        ms.onnx.export(
            model,
            example_tensor(images),
            file_name=str(path),
            input_names=[images.name],
            output_names=[output.name for output in signature.outputs],
            dynamic_axes=axes,
        )
    except RuntimeError as error:
        match = re.search(r"Can not find key (\w+) in convert map", str(error))
        if match is None:
            raise
        raise UserError(
            f"--format ONNX: MindSpore cannot export the operator {match[1]}; use --format MINDIR"
        ) from error
    if is_open and find_spec("onnx"):
        _name_batch_axis(path)


def _name_batch_axis(path: Path) -> None:
    """Name the first axis of outputs like the input's; the exporter writes -1, which is no valid size."""
    import onnx

    content = onnx.load(str(path))
    for output in content.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
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
