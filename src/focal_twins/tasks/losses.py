"""Defines what a training loss gives the training step."""

from mindspore import nn


class Losses(nn.Cell):
    """Computes the named parts of a task's loss on one batch, as sums and their divisors.

    A subclass defines `construct(*inputs)`, which takes the batch's arrays and the step's noise in the task's own order
    and returns (sums, weights):

    - sums [K] float32, in the order of `names`. The loss is the sum of the parts, so each part has its factor already.
    - weights: None where every sum is already a mean over the batch: the loss is then the mean over ranks and over
      accumulated batches. Otherwise [K] float32, the divisors, such as counts of positives or of valid pixels. Sums and
      weights are added up over all ranks and all batches of an update before they are divided, so an update does not
      depend on how its images are spread. No gradient flows through weights.

    A loss is a function of its inputs alone, because an update of accumulated batches computes the weights of all of
    them first, and again with the gradients (see TrainStep.count).

    Attributes:
        names: names of the K parts.
        weight_floors: the least divisor of each part, or None where `construct` returns no weights.
    """

    names: tuple[str, ...]
    weight_floors: tuple[float, ...] | None = None

    def __init__(self):
        super().__init__(auto_prefix=False)  # the network's parameters keep their names
