"""Computes the training loss of a classifier."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from focal_twins.tasks.losses import Losses


class SoftTargetCrossEntropy(Losses):
    """Computes the mean over the batch of -sum(target * log_softmax(logits)), in float32 whatever the logits are.

    With class weights w it is sum(w * target * -log_softmax(logits)) / sum(w * target), both over all images of an
    update: the weighted mean of PyTorch's CrossEntropyLoss, for targets that may be soft.

    Args:
        network: computes logits from images, drop-path scales and a dropout seed.
        class_weights: [classes] positive, or None for the plain mean.
    """

    names = ("loss",)

    def __init__(self, network, class_weights: np.ndarray | None = None):
        super().__init__()
        self.network = network
        self.is_weighted = class_weights is not None
        if class_weights is not None:
            self.class_weights = Tensor(class_weights.astype(np.float32))
            self.weight_floors = (float(class_weights.min()),)  # of a single image

    def construct(self, images, targets, drop_path=None, dropout_seed=None):
        """Return (sums [1], weights [1] or None) of images [B, C, H, W] with soft targets [B, classes] and noise."""
        logits = self.network(images, drop_path, dropout_seed)
        log_probabilities = ops.log_softmax(logits.astype(ms.float32), -1)
        if self.is_weighted:
            weights = targets * self.class_weights
            return -(weights * log_probabilities).sum(-1).sum().reshape(1), weights.sum(-1).sum().reshape(1)
        return -(targets * log_probabilities).sum(-1).mean().reshape(1), None


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return weights [classes] by which all classes weigh the same: images / (classes * images of the class).

    Args:
        labels: [images], with one of each class at least.
    """
    return len(labels) / (classes * np.bincount(labels, minlength=classes))
