"""The training loss."""

import mindspore as ms
from mindspore import nn, ops


class SoftTargetCrossEntropy(nn.Cell):
    """Mean over the batch of -sum(target * log_softmax(logits)), in float32 whatever the precision of the logits."""

    def construct(self, logits, targets):
        log_probabilities = ops.log_softmax(logits.astype(ms.float32), -1)
        return -(targets * log_probabilities).sum(-1).mean()
