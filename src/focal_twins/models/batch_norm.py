"""Normalises tokens over batches, with statistics over all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from focal_twins.models.compiled import CompiledAffine, KernelLayer
from focal_twins.models.layers import AddBias


class BatchNorm(nn.Cell, KernelLayer):
    """Normalises each channel of tokens by its mean and variance over all tokens, torch.nn.BatchNorm's arithmetic.

    In training, statistics are those of the batch, and the running ones take them in: new = (1 - momentum) * old +
    momentum * batch's, the variance unbiased (divided by rows - 1). A batch whose statistics are not finite leaves them
    as they are. In evaluation the layer is an affine map by the running statistics. It computes in float32; the result
    has the type of the tokens.

    A single token has no variance, and PyTorch refuses it in training. Pooling of one image to one bin makes it, so
    here the layer then normalises by the running statistics, and leaves them as they are.

    By default a rank normalises by its own tokens; after `synchronise_batch_norms` by all tokens of all ranks, as
    torch.nn.SyncBatchNorm does. The mean comes first and the squares are of centred values, for a difference of large
    sums would lose digits. MindSpore's nn.SyncBatchNorm is for Ascend alone, and its BatchNorm2d needs [B, C, H, W].

    Parameters are named as PyTorch's: weight, bias, running_mean, running_var. The running statistics have no gradient.

    Args:
        channels: C.
        momentum: the share of the new batch in the running statistics.
        eps: added to the variance.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.channels = channels
        self.momentum = momentum
        self.eps = eps
        self.weight = Parameter(initializer("ones", (channels,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32), name="bias")
        self.running_mean = Parameter(
            initializer("zeros", (channels,), ms.float32), name="running_mean", requires_grad=False
        )
        self.running_var = Parameter(
            initializer("ones", (channels,), ms.float32), name="running_var", requires_grad=False
        )
        self.ranks = 1
        self.all_reduce = None  # see synchronise_batch_norms
        self.keeps_running = False  # see running_statistics_kept
        self.sum = ops.ReduceSum()
        self.add = AddBias()
        self.kernel = None

    def make_kernel(self, library):
        return CompiledAffine(library)

    def construct(self, x, counted=None):
        """Normalise tokens [R, C] or [B, L, C], in training the same number on every rank; the shape stays.

        Args:
            counted: float32, one number for each token, 0 for those that the statistics leave out and 1 for the others;
                None: they take all.
        """
        rows = x.reshape((-1, self.channels)).astype(ms.float32)
        if self.training and rows.shape[0] * self.ranks > 1:
            total = rows.shape[0] * self.ranks
            if counted is not None:
                counted = counted.reshape((-1, 1)).astype(ms.float32)
                total = ops.maximum(self.sum_over_ranks(self.sum(counted)), Tensor(2.0, ms.float32))
            mean = self.sum_over_ranks(self.sum(self.of_counted(rows, counted), 0)) / total
            centred = self.centred(rows, mean)
            squares = self.sum_over_ranks(self.sum(self.of_counted(centred * centred, counted), 0))
            variance = squares / total
            if not self.keeps_running:
                centred = ops.depend(centred, self.take_in(self.running_mean, mean))
                centred = ops.depend(centred, self.take_in(self.running_var, squares / (total - 1)))
        else:
            centred = self.centred(rows, self.running_mean)
            variance = self.running_var
        # Not by Rsqrt, which MindSpore cannot write to ONNX.
        scale = self.weight / ops.sqrt(variance + self.eps)
        out = centred * scale + self.bias if self.kernel is None else self.kernel(centred, scale, self.bias)
        return out.reshape(x.shape).astype(x.dtype)

    def centred(self, rows, mean):
        """Subtract a mean [C] from rows [R, C]."""
        return rows - mean if self.kernel is None else self.add(rows, -mean)

    def of_counted(self, rows, counted):
        """Set the rows [R, C] that statistics leave out to zero."""
        return rows if counted is None else rows * counted

    def sum_over_ranks(self, x):
        """Sum a tensor over the ranks. The collective itself gives the gradient: the sum of the gradients."""
        return x if self.all_reduce is None else self.all_reduce(x)

    def take_in(self, running, new):
        """Move running statistics towards those of a batch."""
        new = ops.stop_gradient(new)
        moved = running * (1 - self.momentum) + new * self.momentum
        return ops.assign(running, ops.select(ops.isfinite(new), moved, running))


def batch_norms(network: nn.Cell) -> list[BatchNorm]:
    """Return all BatchNorm layers of a network."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, BatchNorm)]


def synchronise_batch_norms(network: nn.Cell, ranks: int) -> None:
    """Let every BatchNorm of a network take statistics over all ranks.

    Call it when the ranks have come together, before a graph is compiled.
    """
    if ranks == 1:
        return
    for layer in batch_norms(network):
        layer.ranks = ranks
        layer.all_reduce = ops.AllReduce()


@contextmanager
def running_statistics_kept(network: nn.Cell) -> Iterator[None]:
    """Keep the running statistics of BatchNorm as they are within the context, while it normalises by the batch.

    In graph mode this is decided when a graph is compiled: run in the context only cells that run nowhere else.
    """
    layers = batch_norms(network)
    for layer in layers:
        layer.keeps_running = True
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_running = False
