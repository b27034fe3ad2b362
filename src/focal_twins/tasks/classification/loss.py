"""Computes the training loss of a classifier."""

import mindspore as ms
from mindspore import ops

from focal_twins.tasks.losses import Losses


class SoftTargetCrossEntropy(Losses):
    """Computes the mean over the batch of -sum(target * log_softmax(logits)), in float32 whatever the logits are.

    Args:
        network: computes logits from images, drop-path scales and a dropout seed.
    """

    names = ("loss",)

    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, images, targets, drop_path=None, dropout_seed=None):
        """Return ([1], None): the loss of images [B, C, H, W] with soft targets [B, classes] and the step's noise."""
        logits = self.network(images, drop_path, dropout_seed)
        log_probabilities = ops.log_softmax(logits.astype(ms.float32), -1)
        return -(targets * log_probabilities).sum(-1).mean().reshape(1), None
