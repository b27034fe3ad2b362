"""Evaluates a classifier: counts its answers over every image once."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from mindspore import Tensor

from focal_twins.config.load import Config
from focal_twins.data.dataset import DataError
from focal_twins.data.image_set import ImageSet, check_num_classes
from focal_twins.distributed.ranks import Dist
from focal_twins.files.names import only_in
from focal_twins.phrases import counted
from focal_twins.tasks.classification.evaluation_report import macro_averages, report, worst_classes
from focal_twins.tasks.classification.label_maps import LabelSpace, read_class_map
from focal_twins.tasks.classification.metrics import Metrics, Scoring, batch_counts, predictions
from focal_twins.tasks.task import Evaluator, Result, on_arrays, outputs_in_batches


class ClassificationResult(Result):
    """Holds the metrics of a data set and reports them."""

    def __init__(self, metrics: Metrics, scoring: Scoring, images: ImageSet, config: Config, img_size: tuple[int, int]):
        self.metrics, self.scoring, self.images = metrics, scoring, images
        self.config, self.img_size = config, img_size

    @property
    def figures(self):
        return {"top1": self.metrics.top1, "top5": self.metrics.top5, "loss": self.metrics.loss}

    def __str__(self):
        return str(self.metrics)

    def content(self):
        return report(self.metrics, self.scoring, self.config, self.images, self.img_size)

    def arrays(self):
        """Return the confusion matrix [labels, predictions]; images without a prediction are in no cell of it."""
        return {"confusion": self.metrics.confusion[:, :-1]}

    def remarks(self):
        lines = macro_averages(self.metrics), worst_classes(self.metrics, self.scoring.space.names)
        return [line for line in lines if line]


class ClassificationEvaluator(Evaluator):
    """Runs a classifier on evaluation batches and sums counts, not averages, over batches and ranks.

    Args:
        batch_size: number of images that the network's graph takes; short batches are filled up.
        notice: see Evaluator.
    """

    def __init__(
        self,
        scoring: Scoring,
        images: ImageSet,
        config: Config,
        img_size: tuple[int, int],
        dist: Dist,
        batch_size: int,
        notice: str | None = None,
    ):
        self.scoring, self.images, self.config = scoring, images, config
        self.img_size, self.dist, self.notice = img_size, dist, notice
        self.batch_size = batch_size
        self._start()

    def _start(self) -> None:
        classes = len(self.scoring.space.names)
        self.counts, self.real = np.zeros(4), np.zeros(2, np.int64)
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        # The column of each image in the confusion matrix, plus one; images of other ranks have 0 here.
        self.columns = np.zeros(self.scoring.images, np.int64)

    @cached_property
    def outputs(self) -> np.ndarray:
        """The network's output of each prediction; the last entry, -1, stands for no prediction."""
        return np.append(self.scoring.space.outputs, -1)

    def add(self, network, batch):
        images, labels, weights, indices = batch
        space, valid_labels = self.scoring.space, self.scoring.valid
        logits = space.select(self._logits(network, images))
        labels, kept, predicted = space.labels[labels], weights > 0, predictions(logits)
        self.counts += batch_counts(logits, labels, weights)
        np.add.at(self.confusion, (labels[kept], predicted[kept]), 1)
        self.columns[indices[kept]] = predicted[kept] + 1
        if valid_labels is not None:
            valid = [valid_labels[index] for index in indices[kept]]
            outputs = self.outputs[predicted[kept]]
            self.real[0] += sum(map(bool, valid))
            self.real[1] += sum(output in classes for output, classes in zip(outputs, valid, strict=True))

    def _logits(self, network: Callable[[Tensor], Tensor], images: np.ndarray) -> np.ndarray:
        """Return the logits [n, outputs] of n <= batch_size images."""
        answer = on_arrays(network)
        logits = outputs_in_batches(answer, images, self.batch_size).astype(np.float32)
        if self.scoring.flip:
            mirrored = np.ascontiguousarray(images[..., ::-1])
            logits = (logits + outputs_in_batches(answer, mirrored, self.batch_size).astype(np.float32)) / 2
        return logits

    def result(self):
        loss_sum = float(self.dist.sum(self.counts[3:])[0])
        counts = [self.counts[:3].astype(np.int64), self.real, self.confusion.ravel(), self.columns]
        totals = self.dist.sum_counts(np.concatenate(counts))
        count, top1_correct, top5_correct, *real = totals[:5].tolist()
        real = real if self.scoring.valid is not None else (None, None)
        confusion, columns = np.split(totals[5:], [self.confusion.size])
        confusion = confusion.reshape(self.confusion.shape)
        metrics = Metrics(count, top1_correct, top5_correct, loss_sum, confusion, columns - 1, *real)
        self._start()
        return ClassificationResult(metrics, self.scoring, self.images, self.config, self.img_size)


def label_space(
    config: Config, images: ImageSet, num_classes: int, names: tuple[str, ...] | None, label: str
) -> tuple[LabelSpace, str | None]:
    """Return the classes that a folder is evaluated on, and a line to print if they are not simply the model's.

    Args:
        names: the model's class names, where the checkpoint (`label`) knows them.

    Raises:
        DataError: a class map does not fit, or, without one, the classes are not the model's.
    """
    if config.eval.class_map:
        space = read_class_map(config.eval.class_map, images.classes, num_classes, names)
        line = f"class map {config.eval.class_map}: {counted(len(images.classes), 'folder')}"
        return space, f"{line}; predictions among {len(space.names)} of {num_classes} classes"
    if names is not None and set(images.classes) < set(names):
        space = LabelSpace.of_names(images.classes, names)
        return (
            space,
            f"the folders are {len(images.classes)} of the model's {num_classes} classes: predictions among these",
        )
    if names is not None and names != images.classes:
        raise DataError(
            f"data folder {images.path}: its classes are not those of {label}, "
            f"{only_in(images.classes, names, 'the folder', 'the model')}; map them by eval.class_map"
        )
    check_num_classes(images, num_classes)
    return LabelSpace.of_names(images.classes, images.classes), None
