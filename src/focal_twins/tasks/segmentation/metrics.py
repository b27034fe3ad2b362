"""Turns labels and predictions of pixels into counts and metrics: mIoU, mAcc, aAcc, the confusion matrix."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """Count pixels by label and prediction: [classes, classes + 1] int64.

    Args:
        labels: any shape, from 0 to classes - 1; pixels with the label `ignore_index` do not count.
        predicted: of the same shape, from 0 to `classes`, which stands for no prediction and has the last column.
    """
    kept = labels != ignore_index
    cells = labels[kept].astype(np.int64) * (classes + 1) + predicted[kept]
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Holds counts of pixels and derives metrics from them. Counts add up over images, batches and devices.

    The metrics are those of mmsegmentation 0.11 (mmseg/core/evaluation/metrics.py), as fractions: where a class is in
    neither labels nor predictions its IoU is NaN, and means leave NaN out.

    Attributes:
        confusion: [classes, classes + 1] pixels by label and prediction; see `confusion_matrix`.
    """

    confusion: np.ndarray

    @cached_property
    def labelled(self) -> np.ndarray:
        """The number of pixels [classes] that have each label."""
        return self.confusion.sum(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """The number of pixels [classes] of each label that are predicted right."""
        return self.confusion.diagonal()

    @property
    def pixels(self) -> int:
        """The number of pixels that count."""
        return int(self.labelled.sum())

    @property
    def without_prediction(self) -> int:
        """The number of pixels whose logits were not finite."""
        return int(self.confusion[:, -1].sum())

    @cached_property
    def iou(self) -> np.ndarray:
        """The intersection over union [classes] of each class: I / (P + L - I), NaN for classes that occur nowhere."""
        union = self.labelled + self.confusion[:, :-1].sum(axis=0) - self.correct
        return _ratio(self.correct, union)

    @cached_property
    def accuracy(self) -> np.ndarray:
        """The share [classes] of each label's pixels that are predicted right; NaN for labels that occur nowhere."""
        return _ratio(self.correct, self.labelled)

    @property
    def miou(self) -> float:
        """The mean IoU of the classes that occur; 0 where nothing counts."""
        return _mean(self.iou)

    @property
    def macc(self) -> float:
        """The mean accuracy of the classes that are labelled; 0 where nothing counts."""
        return _mean(self.accuracy)

    @property
    def aacc(self) -> float:
        """The share of all pixels that are predicted right."""
        return float(self.correct.sum() / max(self.pixels, 1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return 0.0 if np.isnan(values).all() else float(np.nanmean(values))
