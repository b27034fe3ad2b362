"""Training targets and loss."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops


def soft_targets(labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Labels [B] as rows [B, num_classes] float32: 1 - s + s / classes on the label, s / classes elsewhere."""
    targets = np.full((len(labels), num_classes), smoothing / num_classes, dtype=np.float32)
    targets[np.arange(len(labels)), labels] += 1.0 - smoothing
    return targets


class SoftTargetCrossEntropy(nn.Cell):
    """Mean over the batch of -sum(target * log_softmax(logits)), in float32 whatever the precision of the logits."""

    def construct(self, logits, targets):
        log_probabilities = ops.log_softmax(logits.astype(ms.float32), -1)
        return -(targets * log_probabilities).sum(-1).mean()
