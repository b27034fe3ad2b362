"""Turns logits into counts and metrics: top-1, top-5, loss, the confusion matrix."""

from dataclasses import dataclass

import numpy as np

from focal_twins.phrases import counted
from focal_twins.tasks.classification.label_maps import LabelSpace


@dataclass(frozen=True, eq=False)
class Scoring:
    """Says how an evaluation turns logits into counts.

    Attributes:
        space: the classes to choose among, and the class of each folder.
        images: number of images of the data set, read or not.
        valid: the valid outputs of each image, by its index in the sorted files (label_maps.py); or None.
        flip: whether logits are averaged with those of the mirror image. Logits are averaged, not probabilities, so
            that the loss and the ranks stay those of one softmax, and a tie of logits stays exact.
    """

    space: LabelSpace
    images: int
    valid: list[frozenset[int]] | None = None
    flip: bool = False


@dataclass(frozen=True, eq=False)
class Metrics:
    """Holds counts over a data set and derives metrics from them. Counts add up over batches and devices.

    Attributes:
        confusion: [classes, classes + 1] images by label and prediction. The last column counts images without a
            prediction (see `predictions`), so rows sum to the images of a class, and the diagonal to `top1_correct`.
        predicted: [images] the column of each image in `confusion`, by its index in the sorted files; -1 for those that
            do not count.
        real_count, real_correct: number of images with valid labels, and of those for which one of these was predicted;
            None without a file of valid labels.
    """

    count: int
    top1_correct: int
    top5_correct: int
    loss_sum: float
    confusion: np.ndarray
    predicted: np.ndarray
    real_count: int | None = None
    real_correct: int | None = None

    @property
    def top1(self) -> float:
        """The percentage of images whose most likely class is the right one."""
        return 100 * self.top1_correct / max(self.count, 1)

    @property
    def top5(self) -> float:
        """The percentage of images with the right class among the five most likely."""
        return 100 * self.top5_correct / max(self.count, 1)

    @property
    def loss(self) -> float:
        """The mean cross-entropy, without label smoothing, in nats."""
        return self.loss_sum / max(self.count, 1)

    @property
    def real(self) -> float | None:
        """The percentage of the images with valid labels whose most likely class is one of these."""
        if self.real_count is None or self.real_correct is None:
            return None
        return 100 * self.real_correct / max(self.real_count, 1)

    @property
    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of images of each class [classes], and the number of those that are right [classes]."""
        return self.confusion.sum(axis=1), self.confusion.diagonal()

    @property
    def scores(self) -> "ClassScores":
        """The precision, recall and F1 of each class."""
        return class_scores(self.confusion[:, :-1], self.per_class[0])

    def __str__(self):
        real = "" if self.real is None else f"  real {self.real:.2f}%  ({counted(self.real_count or 0, 'image')})"
        top5 = f"  top-5 {self.top5:.2f}%" if has_top5(len(self.confusion)) else ""
        return f"top-1 {self.top1:.2f}%{top5}  loss {self.loss:.4f}  ({counted(self.count, 'image')}){real}"


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Holds scores of classes in percent, [classes]; NaN where one is not defined.

    Attributes:
        predicted: the number of images that were taken for each class.
        precision: the share of these that are of the class; not defined for a class that nothing was taken for.
        recall: the share of a class's images that were taken for it, its accuracy; not defined without images.
        f1: the harmonic mean of the two; not defined for a class without images that nothing was taken for.
    """

    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def macro(self) -> dict[str, float | int | None]:
        """Return the means over all classes whose F1 is defined, and their number.

        A precision or recall that is not defined counts as 0 there, as in scikit-learn.
        """
        counted = ~np.isnan(self.f1)
        means = {
            name: float(np.nan_to_num(getattr(self, name)[counted]).mean()) if counted.any() else None
            for name in ("precision", "recall", "f1")
        }
        return means | {"classes": int(counted.sum())}


def class_scores(confusion: np.ndarray, counts: np.ndarray) -> ClassScores:
    """Compute the scores of classes from a confusion matrix [labels, predictions].

    Args:
        counts: [classes] number of images of each class, with those that have no prediction.
    """
    correct, predicted = confusion.diagonal(), confusion.sum(axis=0)

    def percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)

    f1 = percent(2 * correct, predicted + counts)
    return ClassScores(predicted, percent(correct, predicted), percent(correct, counts), f1)


def has_top5(classes: int) -> bool:
    """Tell whether top-5 accuracy says something: of five classes or fewer, the five most likely are all."""
    return classes > 5


def batch_counts(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return [count, top-1 correct, top-5 correct, loss sum] of a batch, float64; images of weight 0 do not count.

    An image's rank is the number of other classes with at least the logit of its own: a tie is a miss, whatever the
    order of classes (a network that answers alike for all is never right), and so are logits that are not finite.
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
    """Return the most likely class [B] of each image, by the rule of `batch_counts`.

    Where several classes share the highest logit, or not all logits are finite, it is one past the last class.
    """
    alone = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) == 1
    return np.where(alone & np.isfinite(logits).all(axis=1), logits.argmax(axis=1), logits.shape[1])
