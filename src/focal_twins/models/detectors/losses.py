"""Defines the losses of detectors as sums over a batch: who divides them, and by what, is the training step's matter.

They compute in float32.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.box_layers import paired_giou

PRIOR_BIAS = -math.log(99)  # where classifiers' biases start for the focal loss: every class has a probability of 1%


class SigmoidFocalLoss(nn.Cell):
    """Sums the focal loss (arXiv 1708.02002) of independent classes.

    With z the logit of what is true (the logit of the own class, minus the others'), q = sigmoid(-z) the probability
    that was missed, and w = alpha for the own class, 1 - alpha for the others, a class adds w q^gamma log(1 + e^-z).
    The gradient is its own and keeps the logits alone; MindSpore's would keep some eight maps of their size, and there
    are 16 million logits in an image of 800 x 1344.

    Args:
        classes: C.
        alpha, gamma: as above; gamma >= 1.
    """

    def __init__(self, classes: int, alpha: float = 0.25, gamma: float = 2.0):
        super().__init__()
        self.classes = Tensor(np.arange(classes, dtype=np.int32))
        self.alpha, self.gamma = alpha, gamma
        # Primitives, see PixelCrossEntropy.
        self.exp, self.log1p, self.abs, self.relu = ops.Exp(), ops.Log1p(), ops.Abs(), ops.ReLU()
        self.sigmoid, self.pow, self.sum, self.zeros_like = ops.Sigmoid(), ops.Pow(), ops.ReduceSum(), ops.ZerosLike()

    def terms(self, logits, labels):
        """Return the sign of each logit in z, the weight w of each class, q and log(1 + e^-z)."""
        own = (labels.reshape((*labels.shape, 1)) == self.classes).astype(ms.float32)
        used = (labels >= 0).astype(ms.float32).reshape((*labels.shape, 1))
        sign = own * 2 - 1
        weight = (own * (2 * self.alpha - 1) + (1 - self.alpha)) * used
        missed = -logits * sign
        return sign, weight, self.sigmoid(missed), self.relu(missed) + self.log1p(self.exp(-self.abs(missed)))

    def power(self, q, exponent):
        """Raise q to an exponent, of which 1 and 2 need no logarithm."""
        if exponent == 1.0:
            return q
        return q * q if exponent == 2.0 else self.pow(q, exponent)

    def construct(self, logits, labels):
        """Map logits [B, A, C] float32 and labels [B, A] int32 to the sum, a scalar.

        Args:
            labels: of the own class; C, or any number above, for none; below 0 for what is not counted.
        """
        _, weight, q, log_loss = self.terms(logits, labels)
        return self.sum(self.sum(weight * self.power(q, self.gamma) * log_loss, -1))

    def bprop(self, logits, labels, out, dout):
        sign, weight, q, log_loss = self.terms(logits, labels)
        slope = self.power(q, self.gamma) * (q + (1 - q) * log_loss * self.gamma)
        return -sign * weight * slope * dout, self.zeros_like(labels)


class BinaryCrossEntropy(nn.Cell):
    """Sums the weighted cross entropy of logits with probabilities as targets."""

    def __init__(self):
        super().__init__()
        self.exp, self.log1p = ops.Exp(), ops.Log1p()

    def construct(self, logits, targets, weights):
        """Map logits, targets and weights, float32 of one shape, to the sum, a scalar."""
        losses = ops.relu(logits) - logits * targets + self.log1p(self.exp(-ops.abs(logits)))
        return (losses * weights).sum()


class SmoothL1Loss(nn.Cell):
    """Sums the weighted absolute differences of deltas from their targets.

    Args:
        beta: differences below this count as half their square over beta, less half of beta beyond; 0: none do (L1).
    """

    def __init__(self, beta: float = 0.0):
        super().__init__()
        self.beta = beta

    def construct(self, deltas, targets, weights):
        """Map deltas and targets [..., 4] and weights [...], float32, to the sum, a scalar."""
        differences = ops.abs(deltas - targets)
        if self.beta:
            small = ops.minimum(differences, self.beta)
            differences = small * small * (0.5 / self.beta) + (differences - small)
        return (differences.sum(-1) * weights).sum()


class GIoULoss(nn.Cell):
    """Sums the weighted 1 - GIoU (arXiv 1902.09630) of boxes with their targets."""

    def __init__(self):
        super().__init__()

    def construct(self, boxes, targets, weights):
        """Map boxes and targets [..., 4] and weights [...], float32, to the sum, a scalar."""
        return ((1 - paired_giou(boxes, targets)) * weights).sum()
