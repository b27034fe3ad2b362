"""Accuracy and loss over a data set, every image once."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from src.config.load import Config
from src.data.image_set import DataError, ImageSet, check_num_classes
from src.data.open_images import open_images
from src.data.pipeline import EvalBatches, UnreadableImages, configure_reading, resolve_workers
from src.data.transforms import Preprocessing
from src.distributed.compile_cache import CompileCache
from src.distributed.ranks import Dist
from src.errors import UserError
from src.files.weights import class_names, load_weights, read_checkpoint, select_weights
from src.models.precision import apply_precision, missing_kernels_named
from src.tasks.classification.evaluation_report import report, report_path, worst_classes, write_evaluation
from src.tasks.classification.label_maps import LabelSpace, read_class_map, read_valid_labels
from src.tasks.classification.metrics import Metrics, Scoring, batch_counts, predictions


def evaluate(
    network: nn.Cell, epoch, batch_size: int, dist: Dist, scoring: Scoring, compile_cache: CompileCache | None = None
) -> Metrics:
    """Metrics of a network over one pass of an evaluation dataset (src/data/pipeline.py).

    Args:
        network: images [B, C, H, W] to logits [B, outputs]; put into evaluation mode and back.
        epoch: iterable of (images, labels, weights, indices); a short last batch is filled up, for the graph to keep
            its shape.
    """
    forward = partial(compile_cache.call, network) if compile_cache is not None else network
    was_training = network.training
    network.set_train(False)
    space = scoring.space
    counts, real = np.zeros(4), np.zeros(2, np.int64)
    confusion = np.zeros((len(space.names), len(space.names) + 1), np.int64)
    columns = np.zeros(scoring.images, np.int64)  # of images in the confusion, plus one; another rank's are 0 here
    outputs = np.append(space.outputs, -1)  # of predictions; the last where there is none
    for images, labels, weights, indices in epoch:
        logits = space.among(_logits(forward, images, batch_size, scoring.flip))
        labels, kept, predicted = space.labels[labels], weights > 0, predictions(logits)
        counts += batch_counts(logits, labels, weights)
        np.add.at(confusion, (labels[kept], predicted[kept]), 1)
        columns[indices[kept]] = predicted[kept] + 1
        if scoring.valid is not None:
            valid = [scoring.valid[index] for index in indices[kept]]
            real[0] += sum(map(bool, valid))
            real[1] += sum(output in classes for output, classes in zip(outputs[predicted[kept]], valid, strict=True))
    network.set_train(was_training)
    loss_sum = float(dist.sum(counts[3:])[0])
    whole = dist.sum_counts(np.concatenate([counts[:3].astype(np.int64), real, confusion.ravel(), columns]))
    count, top1_correct, top5_correct, *real = whole[:5].tolist()
    real = real if scoring.valid is not None else (None, None)
    confusion, columns = np.split(whole[5:], [confusion.size])
    confusion = confusion.reshape(-1, len(outputs))
    return Metrics(count, top1_correct, top5_correct, loss_sum, confusion, columns - 1, *real)


def _logits(forward: Callable[[Tensor], Tensor], images: np.ndarray, batch_size: int, flip: bool) -> np.ndarray:
    """Logits [n, outputs] of n <= batch_size images, computed in batches of one size."""
    short = batch_size - len(images)
    if short:
        padding = np.zeros((short, *images.shape[1:]), images.dtype)
        return _logits(forward, np.concatenate([images, padding]), batch_size, flip)[: len(images)]
    logits = forward(Tensor(images)).asnumpy().astype(np.float32)
    if flip:
        mirrored = np.ascontiguousarray(images[..., ::-1])
        logits = (logits + forward(Tensor(mirrored)).asnumpy().astype(np.float32)) / 2
    return logits


def run_checkpoint(config: Config, checkpoint: str | None) -> Path:
    """The checkpoint to use: the one given, or the best of the configuration's run.

    Raises:
        UserError: there is none.
    """
    path = Path(checkpoint) if checkpoint else config.output / "checkpoints" / "best.ckpt"
    if not path.is_file():
        hint = "" if checkpoint else "; train first, or name one with --checkpoint"
        raise UserError(f"checkpoint {path}: no such file{hint}")
    return path


def load_for_inference(
    config: Config, checkpoint: Path, weights: str, device_target: str, content: dict | None = None
) -> tuple[nn.Cell, str, tuple[str, ...] | None]:
    """A model in evaluation mode with a checkpoint's weights, which weights these are, and its class names if known.

    Args:
        weights: "raw", "ema", or "auto": the averaged weights where the file has them.
        content: of the checkpoint, where it was read already.

    Raises:
        UserError: an unreadable file, weights of another model, or averaged weights that are not there.
    """
    content = content or read_checkpoint(checkpoint)
    label = f"checkpoint {checkpoint}"
    selected, used = select_weights(content, weights, label)
    model = config.build_model(device_target)
    # Position parameters may come from another image size; a head that was not trained has nothing to measure.
    load_weights(model, selected, adapt=("size",), announce=print, label=label)
    model.set_train(False)
    return model, used, class_names(content)


def label_space(
    config: Config, images: ImageSet, num_classes: int, names: tuple[str, ...] | None, label: str
) -> tuple[LabelSpace, str | None]:
    """The classes that a folder is evaluated on, and a line to print if they are not simply the model's.

    Args:
        names: the model's class names, where the checkpoint (`label`) knows them.

    Raises:
        DataError: a class map that does not fit, or, without one, other classes than the model's.
    """
    if config.eval.class_map:
        space = read_class_map(config.eval.class_map, images.classes, num_classes, names)
        line = f"class map {config.eval.class_map}: {len(images.classes)} folders"
        return space, f"{line}; predictions among {len(space.names)} of {num_classes} classes"
    if names is not None and set(images.classes) < set(names):
        space = LabelSpace.of_names(images.classes, names)
        return (
            space,
            f"the folders are {len(images.classes)} of the model's {num_classes} classes: predictions among these",
        )
    check_num_classes(images, num_classes)
    if names is not None and names != images.classes:
        raise DataError(
            f"data folder {images.path}: its classes are not those of {label} ({', '.join(names[:3])}, ...)"
        )
    return LabelSpace.of_names(images.classes, images.classes), None


def valid_labels(config: Config, images: ImageSet, num_classes: int) -> list[frozenset[int]] | None:
    """The valid labels of a folder's images, by index, if the configuration names a file of them."""
    path = config.eval.real_labels
    return read_valid_labels(path, images.names, num_classes) if path else None


def evaluate_checkpoint(
    config: Config, dist: Dist, checkpoint: str | None, weights: str = "auto", json_path: str | None = None
) -> Metrics:
    """Evaluate a checkpoint on the configuration's validation folder, print the result and write its report.

    Args:
        json_path: of the report; None for `report_path`, where a folder that cannot be written is only warned about.

    Raises:
        UserError: no checkpoint, weights of another model, data of other classes, or a `json_path` not to be written.
    """
    path = run_checkpoint(config, checkpoint)
    model, used, names = load_for_inference(config, path, weights, dist.device_target)
    images = open_images(config.data.path, config.data.val, names)
    space, line = label_space(config, images, model.num_classes, names, f"checkpoint {path}")
    scoring = Scoring(space, images.size, valid_labels(config, images, model.num_classes), config.eval.flip)
    if line and dist.is_main:
        print(line, flush=True)
    network = apply_precision(model, config.amp.level)
    compile_cache = CompileCache(config, dist, model, partial(print, flush=True))
    configure_reading(config.data)
    with tempfile.TemporaryDirectory() as scratch:
        unreadable = UnreadableImages(Path(scratch) / "unreadable_images.txt")
        batches = EvalBatches(
            images,
            Preprocessing.of(config, model.img_size).transform,
            config.data,
            batch_size=config.eval.batch_size,
            unreadable=unreadable,
            rank=dist.rank,
            ranks=dist.size,
            workers=resolve_workers(config.data.workers, dist.local_size),
        )
        with missing_kernels_named(config.amp.level, dist.device_target):
            metrics = evaluate(network, batches, config.eval.batch_size, dist, scoring, compile_cache)
        skipped = unreadable.read()
    if dist.is_main:
        for image, reason in skipped.items():
            print(f"unreadable image {image} ({reason}); not counted")
        if skipped:
            print(f"{len(skipped)} unreadable images")
        print(f"{path} ({used} weights): {metrics}", flush=True)
        if worst := worst_classes(metrics, space.names):
            print(worst, flush=True)
        content = {"checkpoint": str(path), "weights": used} | report(metrics, scoring, config, images, model.img_size)
        content |= {"unreadable_images": sorted(skipped)}
        try:
            write_evaluation(
                Path(json_path) if json_path else report_path(path, used, images.path), content, metrics.confusion
            )
        except UserError as error:
            if json_path:
                raise
            print(f"warning: no report: {error}; --json FILE writes it elsewhere", flush=True)
    return metrics
