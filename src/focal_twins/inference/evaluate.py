"""Evaluates a checkpoint, or an exported file, on a data set, every sample once."""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import nn

from focal_twins.config.load import Config
from focal_twins.data.decoding import Reading
from focal_twins.data.pipeline import EvalBatches, UnreadableImages, configure_reading, resolve_workers
from focal_twins.distributed.compile_cache import CompileCache
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.names import escape_name
from focal_twins.inference.exported import SUFFIXES, ExportedModel
from focal_twins.inference.trained import load_for_inference, run_checkpoint
from focal_twins.models.precision import apply_precision, missing_kernels_named
from focal_twins.phrases import counted
from focal_twins.tasks.evaluation_file import evaluation_path, write_evaluation
from focal_twins.tasks.find_task import create_task
from focal_twins.tasks.task import Evaluator, Result, evaluate, outputs_in_batches


@dataclass(frozen=True)
class Subject:
    """Holds what is evaluated.

    Attributes:
        config: the configuration by which it is evaluated.
        model: a model that has the inputs and outputs of what is evaluated.
        weights: "raw" or "ema".
        classes: names of the classes by label, or None.
        evaluate: has an evaluator count the answers to batches; returns its result.
    """

    config: Config
    model: nn.Cell
    weights: str
    classes: tuple[str, ...] | None
    evaluate: Callable[[Iterable[tuple[np.ndarray, ...]], Evaluator], Result]


def evaluate_checkpoint(
    config: Config, dist: Dist, checkpoint: str | None, weights: str = "auto", json_path: str | None = None
) -> Result:
    """Evaluate a file on the configuration's validation data, print the result and write its report.

    Args:
        checkpoint: a checkpoint, or an exported .mindir or .onnx file; None for the best checkpoint of the run.
        json_path: path of the report; None for `evaluation_path`, where failing to write is only a warning.

    Raises:
        UserError: no such file, a file of another model, data of other classes, no readable image, or a `json_path`
            that cannot be written.
    """
    path = run_checkpoint(config, checkpoint)
    is_exported = path.suffix.lower() in SUFFIXES.values()
    subject = (
        open_exported(config, path, weights, dist) if is_exported else open_checkpoint(config, path, weights, dist)
    )
    config = subject.config
    task = create_task(config)
    data = task.open("val", subject.classes)
    for notice in data.notices if dist.is_main else ():
        print(notice, flush=True)
    kind = "model" if is_exported else "checkpoint"
    evaluator = task.evaluator(subject.model, data, dist, subject.classes, f"{kind} {path}")
    if evaluator.notice and dist.is_main:
        print(evaluator.notice, flush=True)
    configure_reading(config.data)
    with tempfile.TemporaryDirectory() as scratch:
        unreadable = UnreadableImages(Path(scratch) / "unreadable_images.txt")
        batches = EvalBatches(
            data,
            task.eval_samples(subject.model, data, unreadable),
            batch_size=config.eval.batch_size,
            rank=dist.rank,
            ranks=dist.size,
            workers=resolve_workers(config.data.workers, dist.local_size),
        )
        result = subject.evaluate(batches, evaluator)
        skipped = unreadable_of_all(unreadable, dist)
    if not dist.is_main:
        return result
    for image, reason in skipped.items():
        print(f"unreadable image {escape_name(image)} ({reason}); not counted")
    if skipped:
        print(counted(len(skipped), "unreadable image"))
    if len(skipped) == data.size:
        raise UserError(f"data folder {data.path}: none of its images could be read, so nothing was measured")
    print(f"{path} ({subject.weights} weights): {result}", flush=True)
    for remark in result.remarks():
        print(remark, flush=True)
    content = {"checkpoint": str(path), "weights": subject.weights} | result.content()
    content |= {"unreadable_images": sorted(skipped)}
    try:
        report = Path(json_path) if json_path else evaluation_path(path, subject.weights, data)
        write_evaluation(report, content, result.arrays(), result.pictures(), result.files())
    except UserError as error:
        if json_path:
            raise
        print(f"warning: no report: {error}; --json FILE writes it elsewhere", flush=True)
    return result


def unreadable_of_all(unreadable: UnreadableImages, dist: Dist) -> dict[str, str]:
    """Return on the main rank the unreadable images of all ranks, with their reasons; all ranks call this together."""
    found = json.dumps(unreadable.read()).encode()
    texts = dist.gather(np.frombuffer(found, np.uint8)) or []
    return {image: reason for text in texts for image, reason in json.loads(text.tobytes()).items()}


def open_checkpoint(config: Config, path: Path, weights: str, dist: Dist) -> Subject:
    """Open a checkpoint for evaluation, in the precision of the configuration; see `load_for_inference`."""
    trained = load_for_inference(config, path, weights, dist.device_target)
    level = config.precision(dist.device_target)
    network = apply_precision(trained.network, level)

    def run(batches, evaluator: Evaluator) -> Result:
        with missing_kernels_named(level, dist.device_target):
            cache = CompileCache(config, dist, trained.network, lambda line: print(line, flush=True))
            return evaluate(network, batches, evaluator, cache.call)

    return Subject(config, trained.network, trained.weights, trained.classes, run)


def open_exported(config: Config, path: Path, weights: str, dist: Dist) -> Subject:
    """Open an exported file for evaluation. It gets images as the configuration says, as many at a time as it takes.

    Raises:
        UserError: the file cannot be run here, or the configuration is of another model.
    """
    if weights != "auto":
        raise UserError(f"--weights {weights}: model {path} has one kind of weights, chosen when it was exported")
    exported = ExportedModel(path)
    config = create_task(config).for_one_size(config)
    model, task = config.build_model(dist.device_target), create_task(config)
    needed = task.outputs[0]
    given = exported.preprocessing.get("output") or needed
    if given != needed:
        raise UserError(f"model {path}: gives {given}; evaluation needs {needed}: export with --outputs {needed}")
    signature = task.signature(model, exported.batch_size, needed)
    shapes = signature.inputs[0].shape, signature.outputs[0].shape
    for what, shape, configured in zip(
        ("input", "output"), (exported.input_shape, exported.output_shapes[0]), shapes, strict=True
    ):
        if shape[1:] != configured[1:]:
            raise UserError(
                f"model {path}: its {what} is {list(shape[1:])}, that of {config.name} {list(configured[1:])}; give "
                "the configuration that it was exported with"
            )
    described = task.preprocessing(model, needed)
    theirs = exported.preprocessing
    theirs |= {"reading": Reading.from_dict(theirs.get("reading", {})).to_dict()}  # files of earlier versions have none
    # Rules are words for people; an earlier version had others, or none.
    differing = [key for key, value in described.items() if key != "rules" and theirs.get(key, value) != value]
    if differing and dist.is_main:
        print(
            f"model {path}: was exported for other images ({', '.join(differing)}); the configuration's are used",
            flush=True,
        )

    def answer(images: np.ndarray):
        return outputs_in_batches(exported.answer, images, exported.batch_size or len(images))

    def run(batches, evaluator: Evaluator) -> Result:
        answer_of_file = evaluator.answering_file(answer)
        for batch in batches:
            evaluator.add(answer_of_file, batch)
        return evaluator.result()

    return Subject(config, model, exported.weights, exported.classes, run)
