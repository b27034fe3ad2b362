"""Accuracy and loss over a data set, every image once."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from src.atomic import write_text
from src.config import Config
from src.data.image_set import DataError, check_num_classes, open_images
from src.data.pipeline import EvalBatches, UnreadableImages, configure_reading, resolve_workers
from src.data.transforms import EvalTransform
from src.distributed import Dist
from src.errors import UserError
from src.precision import apply_precision, missing_kernels_named
from src.weights import class_names, load_weights, read_checkpoint, select_weights


@dataclass(frozen=True)
class Metrics:
    """Counts over a data set, and what follows from them. Counts add up across batches and devices; averages do not."""

    count: int
    top1_correct: int
    top5_correct: int
    loss_sum: float

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

    def __str__(self):
        return f"top-1 {self.top1:.2f}%  top-5 {self.top5:.2f}%  loss {self.loss:.4f}  ({self.count} images)"


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


def evaluate(network: nn.Cell, epoch, batch_size: int, dist) -> Metrics:
    """Metrics of a network over one pass of an evaluation dataset (src/data/pipeline.py).

    Args:
        network: images [B, C, H, W] to logits [B, classes]; put into evaluation mode and back.
        epoch: iterable of (images, labels, weights, indices); a short last batch is filled up, for the graph to keep
            its shape.
    """
    was_training = network.training
    network.set_train(False)
    counts = np.zeros(4)
    for images, labels, weights, _ in epoch:
        short = batch_size - len(labels)
        if short:
            images = np.concatenate([images, np.zeros((short, *images.shape[1:]), images.dtype)])
        logits = network(Tensor(images)).asnumpy()[: len(labels)]
        counts += batch_counts(logits, labels, weights)
    network.set_train(was_training)
    total = dist.sum(counts)
    return Metrics(*(round(float(value)) for value in total[:3]), float(total[3]))


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


def evaluate_checkpoint(
    config: Config, dist: Dist, checkpoint: str | None, weights: str = "auto", json_path: str | None = None
) -> Metrics:
    """Evaluate a checkpoint on the configuration's validation folder and print the result.

    Raises:
        UserError: no checkpoint, weights of another model, or data of other classes.
    """
    path = run_checkpoint(config, checkpoint)
    folder = open_images(config.data.path, config.data.val)
    model, used, classes = load_for_inference(config, path, weights, dist.device_target)
    check_num_classes(folder, model.num_classes)
    if classes is not None and classes != folder.classes:
        raise DataError(
            f"data folder {folder.path}: its classes are not those of checkpoint {path} ({', '.join(classes[:3])}, ...)"
        )
    network = apply_precision(model, config.amp.level)
    configure_reading(config.data)
    with tempfile.TemporaryDirectory() as scratch:
        unreadable = UnreadableImages(Path(scratch) / "unreadable_images.txt")
        batches = EvalBatches(
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
            metrics = evaluate(network, batches, config.eval.batch_size, dist)
        skipped = unreadable.read()
    if dist.is_main:
        for image, reason in skipped.items():
            print(f"unreadable image {image} ({reason}); not counted")
        if skipped:
            print(f"{len(skipped)} unreadable images")
        print(f"{path} ({used} weights): {metrics}", flush=True)
        if json_path:
            result = asdict(metrics) | {"top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss}
            result |= {"checkpoint": str(path), "weights": used, "unreadable_images": sorted(skipped)}
            write_text(Path(json_path), json.dumps(result, indent=2))
    return metrics
