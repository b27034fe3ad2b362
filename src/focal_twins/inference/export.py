"""Exports models to files that run without this code."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from focal_twins.config.load import Config
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.atomic import replace_synced, write_text
from focal_twins.files.file_digest import sha256
from focal_twins.files.weights import load_weights, official_names
from focal_twins.inference.exported import SUFFIXES, description_path, load_runner
from focal_twins.inference.onnx_files import (
    INSTALL,
    check_onnx,
    example_tensor,
    make_expressible,
    missing_packages,
    write_onnx,
)
from focal_twins.inference.trained import load_for_inference, run_checkpoint
from focal_twins.models.attention import GatheredAttention
from focal_twins.tasks.export_difference import Difference, Outputs, worst_difference
from focal_twins.tasks.find_task import create_task
from focal_twins.tasks.task import Signature, TensorSpec, as_tuple, on_arrays

ONNX_OPTIONS = {"conv_implementation": "conv2d", "gelu": "polynomial"}  # forms that MindSpore can write as ONNX
OPEN_BATCHES = (1, 3)  # batch sizes with which a file for any batch is verified


def export_checkpoint(
    config: Config,
    dist: Dist,
    checkpoint: str | None,
    weights: str = "auto",
    file_format: str = "MINDIR",
    output: str | None = None,
    batch_size: int | None = 1,
    output_form: str | None = None,
) -> Path:
    """Export a checkpoint's model in float32, with its description beside it, and verify the file.

    The written file is loaded back and its outputs are compared with the checkpoint's, on validation images where there
    are any; a file that fails does not replace an earlier one. Position biases of the attentions are folded into
    constants.

    Args:
        batch_size: images per call of the exported model; None for any number.
        output_form: what the exported model gives, see Task.outputs; None for the task's first.

    Raises:
        UserError: no checkpoint, outputs that the task has not, a format that this machine cannot write, a file that
            cannot be written, or an exported model that disagrees with the checkpoint.
    """
    if file_format == "AIR" and dist.device_target != "Ascend":
        raise UserError("--format AIR: MindSpore writes AIR on Ascend only; run there, or use --format MINDIR or ONNX")
    if file_format == "AIR" and batch_size is None:
        raise UserError(
            "--dynamic-batch: AIR files have fixed shapes; give --batch_size, or use --format MINDIR or ONNX"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size: must be at least 1, got {batch_size}")
    task = create_task(config)
    form = output_form or task.outputs[0]
    if form not in task.outputs:
        raise UserError(f"--outputs {form}: a model of {task.name} gives {' or '.join(task.outputs)}")
    path = run_checkpoint(config, checkpoint)
    trained = load_for_inference(config, path, weights, dist.device_target)
    model = trained.network
    target = Path(output) if output else config.output / f"{config.name}{SUFFIXES[file_format]}"
    if target.suffix != SUFFIXES[file_format]:
        target = target.with_name(target.name + SUFFIXES[file_format])

    signature = task.signature(model, batch_size, form)
    (input_spec,) = signature.inputs
    batches = OPEN_BATCHES if batch_size is None else (batch_size,)
    samples, source = task.sample_inputs(model, max(batches))
    exported = task.exported(exportable(config, model, dist.device_target, file_format), form).set_train(False)
    unverified = None
    if file_format == "AIR":
        unverified = "AIR files are run by CANN's own tools"
    elif file_format == "ONNX" and (missing := missing_packages()):
        unverified = f"{' and '.join(missing)} not installed: {INSTALL}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            temporary = Path(scratch) / target.name
            if file_format == "ONNX":
                write_onnx(exported, temporary, signature)
            else:
                write_graph(exported, temporary, signature, file_format)
            difference = None
            if not unverified:
                compare = partial(task.difference, model, form)
                difference = verify(temporary, task.exported(model, form), samples, batches, compare)
            description = {
                "format": file_format,
                "file": target.name,
                "sha256": sha256(temporary),
                "input": describe_tensor(input_spec),
                "output": describe_tensor(signature.outputs[0]),
                "further_outputs": [describe_tensor(spec) for spec in signature.outputs[1:]],
                "preprocessing": task.preprocessing(model, form),
                "classes": trained.classes,
                "checkpoint": {"file": str(path), "weights": trained.weights, "sha256": sha256(path)},
                "verified": None if difference is None else {"images": source, difference.key: difference.value},
                "configuration": config.to_dict(),
            }
            replace_synced(temporary, target)
    except OSError as error:
        raise UserError(f"export {target}: cannot be written ({error})") from error
    write_text(description_path(target), json.dumps(description, indent=2, ensure_ascii=False) + "\n")

    shape = ", ".join("any" if side is None else str(side) for side in input_spec.shape)
    size = target.stat().st_size / 1e6
    print(
        f"{path} ({trained.weights} weights) to {target} ({size:.1f} MB) and {description_path(target).name}",
        flush=True,
    )
    outputs = ", ".join(f"output {spec.name} {spec.dtype}" for spec in signature.outputs)
    print(f"input {input_spec.name} [{shape}] {input_spec.dtype}, {outputs}", flush=True)
    if unverified:
        print(f"written but not verified: {unverified}", flush=True)
    else:
        counts = " and ".join(map(str, batches))
        print(f"verified on {source}, {counts} at a time: {difference}", flush=True)
    return target


def describe_tensor(spec: TensorSpec) -> dict:
    """Return the name, shape (None: any) and type of an input or output."""
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def exportable(config: Config, model: nn.Cell, device_target: str, file_format: str) -> nn.Cell:
    """Build a fresh copy of a model, with its weights, in the form that a format asks for."""
    is_onnx = file_format == "ONNX"
    options = {"kernels": "none"} | (ONNX_OPTIONS if is_onnx else {})  # a file is to run on other machines
    copy = config.build_model(device_target, **options)
    load_weights(copy, dict(official_names(model)), adapt=())
    copy.set_train(False)
    for _, cell in copy.cells_and_names():
        if isinstance(cell, GatheredAttention):
            cell.fold_position_bias()
    if is_onnx:
        make_expressible(copy)
    return copy


def write_graph(model: nn.Cell, path: Path, signature: Signature, file_format: str) -> None:
    """Write a model in MindSpore's own formats, MINDIR and AIR, for batches of one size or (MINDIR) of any."""
    inputs = [example_tensor(spec) for spec in signature.inputs]
    ms.export(model, *inputs, file_name=str(path), file_format=file_format)


def verify(
    path: Path,
    model: nn.Cell,
    samples: np.ndarray,
    batches: tuple[int, ...],
    compare: Callable[[list[tuple[Outputs, Outputs]]], Difference] = worst_difference,
) -> Difference:
    """Compare an exported file's outputs with its model's.

    Args:
        samples: inputs [n, ...], as many as the largest batch.
        batches: sizes of the batches to run the file with.
        compare: compares pairs of (the file's, the model's) outputs.

    Raises:
        UserError: the difference is too large, or the file is not valid.
    """
    if path.suffix == SUFFIXES["ONNX"]:
        check_onnx(path)
    expected = as_tuple(on_arrays(model)(samples))
    answer = load_runner(path)
    difference = compare(
        [(as_tuple(answer(samples[:size])), tuple(output[:size] for output in expected)) for size in batches]
    )
    if not difference.is_small:
        raise UserError(f"export {path}: its outputs differ from the checkpoint's: {difference}")
    return difference
