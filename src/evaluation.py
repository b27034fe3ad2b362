"""Accuracy and loss over a data set, every image once; and the report of it."""

import io
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from src.atomic import write_bytes, write_text
from src.config import Config
from src.data.image_folder import (
    DataError,
    Epochs,
    ImageFolder,
    UnreadableImages,
    check_num_classes,
    eval_dataset,
    resolve_workers,
)
from src.data.label_maps import LabelSpace, read_class_map, read_valid_labels
from src.data.transforms import EvalTransform
from src.distributed import Dist
from src.errors import UserError
from src.precision import apply_precision, missing_kernels_named
from src.weights import class_names, load_weights, read_checkpoint, select_weights

LISTED_CLASSES = 100  # a confusion matrix of more is a NumPy file beside the report
WORST_CLASSES = 5  # named in the output


@dataclass(frozen=True, eq=False)
class Scoring:
    """How an evaluation turns logits into counts.

    Attributes:
        space: the classes to choose among, and what the folders' labels mean.
        valid: the valid outputs of each image, by its index in the sorted files (src/data/label_maps.py); or None.
        flip: whether logits are averaged with those of the mirror image. Logits, not probabilities: the loss and the
            ranks stay those of one softmax, and a tie of logits stays exact.
    """

    space: LabelSpace
    valid: list[frozenset[int]] | None = None
    flip: bool = False


@dataclass(frozen=True, eq=False)
class Metrics:
    """Counts over a data set, and what follows from them. Counts add up across batches and devices; averages do not.

    Attributes:
        confusion: [classes, classes + 1] images by label and prediction. The last column are those without one
            (`predictions`), so rows sum to the images of a class, and the diagonal to `top1_correct`.
        real_count, real_correct: images with valid labels, and of these, those with one of them predicted; None where
            no file gives any.
    """

    count: int
    top1_correct: int
    top5_correct: int
    loss_sum: float
    confusion: np.ndarray
    real_count: int | None = None
    real_correct: int | None = None

    @property
    def top1(self) -> float:
        """Per cent of images whose most likely class is the right one."""
        return 100 * self.top1_correct / max(self.count, 1)

    @property
    def top5(self) -> float:
        """Per cent of images with the right class among the five most likely."""
        return 100 * self.top5_correct / max(self.count, 1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy, without label smoothing, in nats."""
        return self.loss_sum / max(self.count, 1)

    @property
    def real(self) -> float | None:
        """Per cent of the images with valid labels whose most likely class is one of these."""
        return None if self.real_count is None else 100 * self.real_correct / max(self.real_count, 1)

    @property
    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """[classes] images of each class, and those of them that are right."""
        return self.confusion.sum(axis=1), self.confusion.diagonal()

    def __str__(self):
        real = "" if self.real is None else f"  real {self.real:.2f}%  ({self.real_count} images)"
        return f"top-1 {self.top1:.2f}%  top-5 {self.top5:.2f}%  loss {self.loss:.4f}  ({self.count} images){real}"


def batch_counts(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[count, top-1 correct, top-5 correct, loss sum] of a batch, float64; images of weight 0 do not count.

    An image's rank is the number of other classes with at least its logit: a tie is a miss, whatever the order of
    classes (a network that answers alike for all is never right), and so are logits that are not finite.
    """
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(labels)), labels]
    valid = np.isfinite(logits).all(axis=1)
    rank = np.where(valid, (logits >= own[:, None]).sum(axis=1) - 1, np.inf)
    highest = logits.max(axis=1)
    losses = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest - own
    kept = weights > 0
    return np.array([kept.sum(), (rank[kept] < 1).sum(), (rank[kept] < 5).sum(), losses[kept].sum()])


def predictions(logits: np.ndarray) -> np.ndarray:
    """[B] the most likely class of each image, by the rule of `batch_counts`.

    It is one past the last class where there is none: several share the highest logit, or not all are finite.
    """
    alone = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) == 1
    return np.where(alone & np.isfinite(logits).all(axis=1), logits.argmax(axis=1), logits.shape[1])


def evaluate(network: nn.Cell, epoch, batch_size: int, dist: Dist, scoring: Scoring) -> Metrics:
    """Metrics of a network over one pass of an evaluation dataset (src/data/image_folder.py).

    Args:
        network: images [B, C, H, W] to logits [B, outputs]; put into evaluation mode and back.
        epoch: iterable of (images, labels, weights, indices); a short last batch is filled up, for the graph to keep
            its shape.
    """
    was_training = network.training
    network.set_train(False)
    space = scoring.space
    counts, real = np.zeros(4), np.zeros(2, np.int64)
    confusion = np.zeros((len(space.names), len(space.names) + 1), np.int64)
    outputs = np.append(space.outputs, -1)  # of predictions; the last where there is none
    for images, labels, weights, indices in epoch:
        logits = space.among(_logits(network, images, batch_size, scoring.flip))
        labels, kept, predicted = space.labels[labels], weights > 0, predictions(logits)
        counts += batch_counts(logits, labels, weights)
        np.add.at(confusion, (labels[kept], predicted[kept]), 1)
        if scoring.valid is not None:
            valid = [scoring.valid[index] for index in indices[kept]]
            real[0] += sum(map(bool, valid))
            real[1] += sum(output in classes for output, classes in zip(outputs[predicted[kept]], valid, strict=True))
    network.set_train(was_training)
    loss_sum = float(dist.sum(counts[3:])[0])
    whole = dist.sum_counts(np.concatenate([counts[:3].astype(np.int64), real, confusion.ravel()]))
    count, top1_correct, top5_correct, *real = whole[:5].tolist()
    real = real if scoring.valid is not None else (None, None)
    return Metrics(count, top1_correct, top5_correct, loss_sum, whole[5:].reshape(confusion.shape), *real)


def _logits(network: nn.Cell, images: np.ndarray, batch_size: int, flip: bool) -> np.ndarray:
    """Logits [n, outputs] of n <= batch_size images, computed in batches of one size."""
    short = batch_size - len(images)
    if short:
        padding = np.zeros((short, *images.shape[1:]), images.dtype)
        return _logits(network, np.concatenate([images, padding]), batch_size, flip)[: len(images)]
    logits = network(Tensor(images)).asnumpy().astype(np.float32)
    if flip:
        mirrored = np.ascontiguousarray(images[..., ::-1])
        logits = (logits + network(Tensor(mirrored)).asnumpy().astype(np.float32)) / 2
    return logits


# --- the report -----------------------------------------------------------------------------------------------------


def report(metrics: Metrics, scoring: Scoring, config: Config, folder: ImageFolder, img_size: tuple[int, int]) -> dict:
    """What a report file says of an evaluation, but for the confusion matrix."""
    space = scoring.space
    classes = [
        {"index": output, "name": name, "count": count, "correct": correct, "accuracy": _per_cent(correct, count)}
        for output, name, count, correct in zip(
            space.outputs.tolist(), space.names, *(counts.tolist() for counts in metrics.per_class), strict=True
        )
    ]
    real = {"file": config.eval.real_labels, "count": metrics.real_count, "correct": metrics.real_correct}
    return {
        "config": config.name,
        "data": str(folder.path),
        "img_size": list(img_size),
        "crop_ratio": config.eval.crop_ratio,
        "flip": scoring.flip,
        "class_map": config.eval.class_map,
        "restricted_to_classes": len(space.names) if space.restricts else None,
        "count": metrics.count,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "loss": metrics.loss if math.isfinite(metrics.loss) else None,  # JSON has no NaN
        "top1_correct": metrics.top1_correct,
        "top5_correct": metrics.top5_correct,
        "loss_sum": metrics.loss_sum if math.isfinite(metrics.loss_sum) else None,
        "without_prediction": int(metrics.confusion[:, -1].sum()),
        "real": None
        if metrics.real is None
        else real | {"accuracy": _per_cent(metrics.real_correct, metrics.real_count)},
        "classes": classes,
    }


def _per_cent(correct: int, count: int) -> float | None:
    return 100 * correct / count if count else None


def write_report(path: Path, content: dict, confusion: np.ndarray) -> None:
    """Write a report as JSON with its confusion matrix [labels, predictions].

    Images without a prediction are in no cell of it. Up to LISTED_CLASSES classes it is a list of rows, beyond that the
    name of a NumPy file (int64) beside the report: a thousand classes would make a JSON file of megabytes.

    Raises:
        UserError: no room or no permission.
    """
    matrix = confusion[:, :-1]
    if len(matrix) <= LISTED_CLASSES:
        content = content | {"confusion": matrix.tolist()}
    else:
        beside = path.with_name(f"{path.stem}_confusion.npy")
        buffer = io.BytesIO()
        np.save(buffer, matrix)
        write_bytes(beside, buffer.getvalue())
        content = content | {"confusion": beside.name}
    write_text(path, _dumped(content))


def _dumped(content: dict) -> str:
    """JSON with a line for every key and every row of a table."""

    def value(item):
        is_table = isinstance(item, list) and item and isinstance(item[0], dict | list)
        return "[\n    " + ",\n    ".join(map(json.dumps, item)) + "\n  ]" if is_table else json.dumps(item)

    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {value(item)}" for key, item in content.items()) + "\n}\n"


def report_path(checkpoint: Path, weights: str, data: Path) -> Path:
    """Where the report of a checkpoint goes unless told: into its run's folder or, alone, beside it.

    The name tells the checkpoint, its weights and the data apart: runs/NAME/eval_best_ema_val.json.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return folder / f"eval_{checkpoint.stem}_{weights}_{data.name}.json"


def worst_classes(metrics: Metrics, names: tuple[str, ...]) -> str | None:
    """A line about the classes with the lowest accuracy; None where there are two or fewer, or nothing is wrong."""
    counts, correct = metrics.per_class
    accuracy = 100 * correct / np.maximum(counts, 1)
    worst = [index for index in np.argsort(accuracy, kind="stable") if correct[index] < counts[index]][:WORST_CLASSES]
    if len(names) <= 2 or not worst:
        return None
    return "worst classes: " + ", ".join(f"{names[i]} ({accuracy[i]:.2f}% of {counts[i]})" for i in worst)


# --- checkpoints ----------------------------------------------------------------------------------------------------


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
    config: Config, checkpoint: Path, weights: str, device_target: str
) -> tuple[nn.Cell, str, tuple[str, ...] | None]:
    """A model in evaluation mode with a checkpoint's weights, which weights these are, and its class names if known.

    Args:
        weights: "raw", "ema", or "auto": the averaged weights where the file has them.

    Raises:
        UserError: an unreadable file, weights of another model, or averaged weights that are not there.
    """
    content = read_checkpoint(checkpoint)
    label = f"checkpoint {checkpoint}"
    selected, used = select_weights(content, weights, label)
    model = config.build_model(device_target)
    # Position parameters may come from another image size; a head that was not trained has nothing to measure.
    load_weights(model, selected, adapt=("size",), announce=print, label=label)
    model.set_train(False)
    return model, used, class_names(content)


def label_space(
    config: Config, folder: ImageFolder, num_classes: int, names: tuple[str, ...] | None, label: str
) -> tuple[LabelSpace, str | None]:
    """The classes that a folder is evaluated on, and a line to print if they are not simply the model's.

    Args:
        names: the model's class names, where the checkpoint (`label`) knows them.

    Raises:
        DataError: a class map that does not fit, or, without one, other classes than the model's.
    """
    if config.eval.class_map:
        space = read_class_map(config.eval.class_map, folder.classes, num_classes, names)
        line = f"class map {config.eval.class_map}: {len(folder.classes)} folders"
        return space, f"{line}; predictions among {len(space.names)} of {num_classes} classes"
    if names is not None and set(folder.classes) < set(names):
        space = LabelSpace.of_names(folder.classes, names)
        return (
            space,
            f"the folders are {len(folder.classes)} of the model's {num_classes} classes: predictions among these",
        )
    check_num_classes(folder, num_classes)
    if names is not None and names != folder.classes:
        raise DataError(
            f"data folder {folder.path}: its classes are not those of {label} ({', '.join(names[:3])}, ...)"
        )
    return LabelSpace.of_names(folder.classes, folder.classes), None


def valid_labels(config: Config, folder: ImageFolder, num_classes: int) -> list[frozenset[int]] | None:
    """The valid labels of a folder's images, by index, if the configuration names a file of them."""
    path = config.eval.real_labels
    return read_valid_labels(path, folder.names(), num_classes) if path else None


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
    folder = ImageFolder.open(Path(config.data.path) / config.data.val)
    model, used, names = load_for_inference(config, path, weights, dist.device_target)
    space, line = label_space(config, folder, model.num_classes, names, f"checkpoint {path}")
    scoring = Scoring(space, valid_labels(config, folder, model.num_classes), config.eval.flip)
    if line and dist.is_main:
        print(line, flush=True)
    network = apply_precision(model, config.amp.level)
    with tempfile.TemporaryDirectory() as scratch:
        unreadable = UnreadableImages(Path(scratch) / "unreadable_images.txt")
        batches = eval_dataset(
            folder,
            EvalTransform(model.img_size, config.eval.crop_ratio, config.augment.interpolation),
            config.data,
            batch_size=config.eval.batch_size,
            unreadable=unreadable,
            rank=dist.rank,
            ranks=dist.size,
            workers=resolve_workers(config.data.workers, dist.local_size),
        )
        with missing_kernels_named(config.amp.level, dist.device_target):
            metrics = evaluate(network, Epochs(batches), config.eval.batch_size, dist, scoring)
        skipped = unreadable.read()
    if dist.is_main:
        for image, reason in skipped.items():
            print(f"unreadable image {image} ({reason}); not counted")
        if skipped:
            print(f"{len(skipped)} unreadable images")
        print(f"{path} ({used} weights): {metrics}", flush=True)
        if worst := worst_classes(metrics, space.names):
            print(worst, flush=True)
        content = {"checkpoint": str(path), "weights": used} | report(metrics, scoring, config, folder, model.img_size)
        content |= {"unreadable_images": sorted(skipped)}
        try:
            write_report(
                Path(json_path) if json_path else report_path(path, used, folder.path), content, metrics.confusion
            )
        except UserError as error:
            if json_path:
                raise
            print(f"warning: no report: {error}; --json FILE writes it elsewhere", flush=True)
    return metrics
