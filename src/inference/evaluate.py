"""Evaluates a checkpoint on a data set, every sample once."""

import tempfile
from pathlib import Path

from src.config.load import Config
from src.data.pipeline import EvalBatches, UnreadableImages, configure_reading, resolve_workers
from src.distributed.compile_cache import CompileCache
from src.distributed.ranks import Dist
from src.errors import UserError
from src.files.names import escape_name
from src.inference.trained import load_for_inference, run_checkpoint
from src.models.precision import apply_precision, missing_kernels_named
from src.tasks.evaluation_file import evaluation_path, write_evaluation
from src.tasks.find_task import create_task
from src.tasks.task import Result, evaluate


def evaluate_checkpoint(
    config: Config, dist: Dist, checkpoint: str | None, weights: str = "auto", json_path: str | None = None
) -> Result:
    """Evaluate a checkpoint on the configuration's validation data, print the result and write its report.

    Args:
        json_path: path of the report; None for `evaluation_path`, where failing to write is only a warning.

    Raises:
        UserError: no checkpoint, weights of another model, data of other classes, no readable image, or a `json_path`
            that cannot be written.
    """
    path = run_checkpoint(config, checkpoint)
    trained = load_for_inference(config, path, weights, dist.device_target)
    task = create_task(config)
    data = task.open("val", trained.classes)
    for notice in data.notices if dist.is_main else ():
        print(notice, flush=True)
    evaluator = task.evaluator(trained.network, data, dist, trained.classes, f"checkpoint {path}")
    if evaluator.notice and dist.is_main:
        print(evaluator.notice, flush=True)
    network = apply_precision(trained.network, config.amp.level)
    configure_reading(config.data)
    with tempfile.TemporaryDirectory() as scratch:
        unreadable = UnreadableImages(Path(scratch) / "unreadable_images.txt")
        batches = EvalBatches(
            data,
            task.eval_samples(trained.network, data, unreadable),
            batch_size=config.eval.batch_size,
            rank=dist.rank,
            ranks=dist.size,
            workers=resolve_workers(config.data.workers, dist.local_size),
        )
        with missing_kernels_named(config.amp.level, dist.device_target):
            cache = CompileCache(config, dist, trained.network, lambda line: print(line, flush=True))
            result = evaluate(network, batches, evaluator, cache.call)
        skipped = unreadable.read()
    if not dist.is_main:
        return result
    for image, reason in skipped.items():
        print(f"unreadable image {escape_name(image)} ({reason}); not counted")
    if skipped:
        print(f"{len(skipped)} unreadable images")
    if skipped and len(skipped) == len(range(dist.rank, data.size, dist.size)):
        raise UserError(f"data folder {data.path}: none of its images could be read, so nothing was measured")
    print(f"{path} ({trained.weights} weights): {result}", flush=True)
    for remark in result.remarks():
        print(remark, flush=True)
    content = {"checkpoint": str(path), "weights": trained.weights} | result.content()
    content |= {"unreadable_images": sorted(skipped)}
    try:
        report = Path(json_path) if json_path else evaluation_path(path, trained.weights, data.path)
        write_evaluation(report, content, result.arrays())
    except UserError as error:
        if json_path:
            raise
        print(f"warning: no report: {error}; --json FILE writes it elsewhere", flush=True)
    return result
