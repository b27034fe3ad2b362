"""Makes smaller ONNX files of exported ones, in float16 or with 8-bit integers, by onnxruntime's own converters.

Input and outputs stay float32, so that whatever runs the exported file runs these as well.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from focal_twins.config.load import parse_config
from focal_twins.errors import UserError
from focal_twins.files.atomic import replace_synced, write_text
from focal_twins.files.file_digest import sha256
from focal_twins.inference.exported import SUFFIXES, description_path, load_runner, read_description
from focal_twins.inference.onnx_files import INSTALL, missing_packages
from focal_twins.inference.trained import open_model
from focal_twins.tasks.export_difference import Difference, Outputs
from focal_twins.tasks.find_task import create_task
from focal_twins.tasks.task import PredictionOptions, as_tuple

PRECISIONS = ("float16", "int8")
COMPARED = 16  # calls of the model whose outputs are compared
QUANTIZED_OPERATORS = ("Conv", "Gemm", "MatMul")  # nearly all of the arithmetic; the rest stays in float32


def convert(path: Path, precision: str, images: Sequence[str], target: Path) -> Difference:
    """Write an exported ONNX file in another precision, with its description beside it.

    Args:
        precision: "float16", which halves the weights; "int8", where the products of matrices and the convolutions take
            8-bit integers, with one scale for each tensor, found by what passes through the network of the images.
        images: image files, read as the description of the file says.
        target: the file to write.

    Returns:
        How far the outputs of the new file are from those of the old one, on the first of the images.

    Raises:
        UserError: packages are missing, the file is no ONNX file or not described, no image can be read, or the network
            does not work in this precision.
    """
    if path.suffix.lower() != SUFFIXES["ONNX"]:
        raise UserError(f"model {path}: only ONNX files are converted; export with --format ONNX")
    if missing := missing_packages():
        raise UserError(f"--precision {precision}: {' and '.join(missing)} not installed: {INSTALL}")
    description = read_description(path)
    if "precision" in description:
        raise UserError(f"model {path}: is of {description['precision']} already; convert the exported file")
    inputs, outputs = seen_of(path, images)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            temporary = Path(scratch) / target.name
            if precision == "float16":
                write_float16(path, temporary)
            else:
                write_int8(path, temporary, description["input"]["name"], inputs)
            answer = load_runner(temporary)
            pairs = [(as_tuple(answer(given)), expected) for given, expected in zip(inputs, outputs, strict=False)]
            if not all(np.isfinite(output).all() for own, _ in pairs for output in own):
                raise UserError(f"--precision {precision}: outputs are not finite; keep float32, or use another one")
            difference = difference_of_files(description, path, pairs)
            description |= {"file": target.name, "sha256": sha256(temporary), "precision": precision}
            description["verified"] = {"images": "calibration images", difference.key: difference.value}
            replace_synced(temporary, target)
    except OSError as error:
        raise UserError(f"model {target}: cannot be written ({error})") from error
    write_text(description_path(target), json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return difference


def seen_of(path: Path, images: Sequence[str]) -> tuple[list[np.ndarray], list[Outputs]]:
    """Return what an exported file gets, call by call, when it predicts for images, and its outputs of the first calls.

    Raises:
        UserError: none of the images can be read.
    """
    model = open_model(str(path))
    inputs: list[np.ndarray] = []
    outputs: list[Outputs] = []

    def answer(given: np.ndarray):
        returned = model.answer(given)
        inputs.append(given)
        if len(outputs) < COMPARED:
            outputs.append(as_tuple(returned))
        return returned

    predictor = model.task.predictor(answer, model.preprocessing, model.batch_size, model.classes, PredictionOptions())
    for _ in predictor.predict(list(images), 1, 1):
        pass
    if not inputs:
        raise UserError("--calibration: none of the images could be read")
    return inputs, outputs


def difference_of_files(description: dict, path: Path, pairs: list[tuple[Outputs, Outputs]]) -> Difference:
    """Compare outputs of two files of one model, in the way in which its task compares a file with a checkpoint."""
    config = parse_config(yaml.safe_dump(description["configuration"]), path)
    task = create_task(config)
    form = description["preprocessing"].get("output") or task.outputs[0]
    return task.difference(config.build_model("CPU", kernels="none"), form, pairs)


def write_float16(path: Path, target: Path) -> None:
    """Write an ONNX file with weights and arithmetic of float16; float32 stands in where a runtime has no kernel."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), str(target))


def write_int8(path: Path, target: Path, input_name: str, inputs: list[np.ndarray]) -> None:
    """Write an ONNX file whose products of matrices and convolutions take integers of 8 bits (QDQ).

    Activations are unsigned with a zero point, weights signed and symmetric. The range of each tensor is the smallest
    that holds what passes of the inputs.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Inputs(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(inputs)

        def get_next(self):
            given = next(self.left, None)
            return None if given is None else {input_name: given}

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Inputs(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTIZED_OPERATORS),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
