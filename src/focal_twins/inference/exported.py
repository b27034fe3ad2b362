"""Reads and runs exported files: the model, and beside it a JSON file that describes its inputs and outputs.

The JSON file, NAME.onnx.json beside NAME.onnx, has all that a program in another language needs: preprocessing, names
and shapes, class names, the source of the weights, and the SHA-256 of the model's file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from focal_twins.errors import UserError
from focal_twins.files.file_digest import sha256
from focal_twins.inference.onnx_files import INSTALL, missing_packages
from focal_twins.tasks.task import on_arrays

SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
RUNNABLE = (SUFFIXES["MINDIR"], SUFFIXES["ONNX"])


def description_path(path: Path) -> Path:
    """Return the path of the JSON file beside an exported one."""
    return path.with_name(f"{path.name}.json")


def read_description(path: Path) -> dict:
    """Read the description of an exported file.

    Raises:
        UserError: either file is missing, or the JSON file is no description or describes another file.
    """
    description = description_path(path)
    if not path.is_file():
        raise UserError(f"model {path}: no such file")
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        digest = content["sha256"]
    except FileNotFoundError as error:
        raise UserError(
            f"model {path}: {description.name}, which tells its preprocessing, is not beside it; copy it or export "
            "again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"model {path}: {description.name} cannot be read as the description of a model") from error
    if digest != sha256(path):
        raise UserError(f"model {path}: not the file that {description.name} describes (another SHA-256); export again")
    return content


def load_runner(path: Path, threads: int | None = None) -> Callable[[np.ndarray], Any]:
    """Load a .mindir or .onnx file; return a function from inputs [B, ...] float32 to the output [B, ...].

    Several outputs come as a tuple.

    Args:
        threads: number of threads for the operators; None for the runtime's own number.

    Raises:
        UserError: another format, an unreadable file, or ONNX without a package to run it.
    """
    suffix = path.suffix.lower()
    if suffix == SUFFIXES["MINDIR"]:
        if threads is not None:
            ms.set_context(runtime_num_threads=threads)
        try:
            network = nn.GraphCell(ms.load(str(path)))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"model {path}: not a readable MINDIR file (damaged or cut short?)") from error
        return on_arrays(network)
    if suffix == SUFFIXES["ONNX"]:
        if "onnxruntime" in missing_packages():
            raise UserError(f"model {path}: ONNX files are run by onnxruntime, which is not installed: {INSTALL}")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: its own number
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception type of its own for each kind of bad file
            raise UserError(f"model {path}: not a readable ONNX file ({' '.join(str(error).split())[:120]})") from error
        name = session.get_inputs()[0].name

        def run(images: np.ndarray):
            outputs = session.run(None, {name: images})
            return outputs[0] if len(outputs) == 1 else tuple(outputs)

        return run
    raise UserError(f"model {path}: only {' and '.join(RUNNABLE)} files can be run here")


class ExportedModel:
    """Loads an exported file with its description, ready to run.

    Attributes:
        preprocessing: describes how an image becomes an input.
        configuration: configuration of the run that the model is from, by section.
        classes: names of the classes by label, or None.
        input_shape: shape of the input; None stands for any number of images.
        output_shapes: shapes of the outputs.
        weights: weights of the checkpoint that the file was made of, "raw" or "ema".

    Raises:
        UserError: see read_description and load_runner.
    """

    def __init__(self, path: Path):
        description = read_description(path)
        try:
            self.preprocessing = dict(description["preprocessing"])
            self.configuration = dict(description["configuration"])
            self.classes = None if description["classes"] is None else tuple(description["classes"])
            self.input_shape = tuple(description["input"]["shape"])
            outputs = [description["output"], *description.get("further_outputs", ())]  # earlier files have one
            self.output_shapes = [tuple(output["shape"]) for output in outputs]
            self.weights = str(description["checkpoint"]["weights"])
            self.batch_size = self.input_shape[0]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"model {path}: {description_path(path).name} lacks or mistakes {error}") from error
        self.runner = load_runner(path)

    def answer(self, inputs: np.ndarray):
        """Compute the output [B, ...] of inputs [B, ...] float32; several outputs are a tuple.

        Raises:
            ValueError: inputs of another shape than the file's, of which a .mindir would make a wrong output.
        """
        if inputs.shape[1:] != self.input_shape[1:] or self.batch_size not in (None, len(inputs)):
            raise ValueError(f"inputs {inputs.shape} for a model of {self.input_shape}")
        return self.runner(inputs)
