"""Gathers rows of every image's matrix, by tables or by numbers that arise in the graph."""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.functional import is_sequence_value_unknown


class RowGather(nn.Cell):
    """Gathers rows of every sample's matrix by a static table: [B, R, D] to [B, n, D].

    The batch becomes part of the row number: the gradient of a gather along the first axis is a plain scatter-add,
    along another it is wrapped in two transposes (2.3 times as slow, forward and backward together). A batch of unknown
    size, as exported models have, is left alone. A table that only reorders the rows has a gather as its gradient.
    """

    def __init__(self, index: np.ndarray):
        """Store the table `index`: row numbers below R, of any shape; they are used in row-major order."""
        super().__init__()
        index = index.reshape(-1).astype(np.int32)
        self.index = Tensor(index)
        self.count = index.size
        inverse = np.argsort(index).astype(np.int32)
        self.is_order = bool((index[inverse] == np.arange(index.size)).all())
        self.is_identity = bool((index == np.arange(index.size)).all())
        if self.is_order:
            self.reorder = RowOrder(index, inverse)

    def construct(self, rows):
        if is_sequence_value_unknown(rows.shape):
            return ops.gather(rows, self.index, 1)
        batch, count, width = rows.shape
        if self.is_identity and count == self.count:
            return rows
        rows = rows.reshape((-1, width))
        if self.is_order and count == self.count:
            return self.reorder(rows).reshape((batch, -1, width))
        return ops.gather(rows, rows_of_batch(self.index, batch, count), 0).reshape((batch, -1, width))


class RowOrder(nn.Cell):
    """Reorders every sample's R rows, [B * R, D] to the same; the gradient goes back by the inverse order."""

    def __init__(self, order: np.ndarray, inverse: np.ndarray):
        super().__init__()
        self.count = order.size
        self.order, self.inverse = Tensor(order), Tensor(inverse)

    def construct(self, rows):
        return ops.gather(rows, rows_of_batch(self.order, rows.shape[0] // self.count, self.count), 0)

    def bprop(self, rows, out, gradient):
        gradient = gradient.astype(rows.dtype)  # in mixed precision they may differ
        return (ops.gather(gradient, rows_of_batch(self.inverse, rows.shape[0] // self.count, self.count), 0),)


def rows_of_batch(numbers, batch, count):
    """Turn numbers of one sample's `count` rows into those of a batch's, [batch * n].

    Args:
        numbers: [n], the same for all samples, or [batch, n].
    """
    first = Tensor(np.arange(batch, dtype=np.int32) * count).reshape((-1, 1))
    return (first + numbers).reshape(-1)


def gather_rows(values, numbers):
    """Gather each sample's values [B, G, ...] by its numbers [B, n] int32, of which those below 0 count as 0.

    Returns:
        [B, n, ...].
    """
    batch, count = values.shape[:2]
    rows = rows_of_batch(ops.maximum(numbers, 0), batch, count)
    gathered = ops.gather(values.reshape((batch * count, *values.shape[2:])), rows, 0)
    return gathered.reshape((batch, -1, *values.shape[2:]))


def with_padding_token(tokens):
    """Append a token of zeros, which stands for all padding of a map: [B, L, C] to [B, L + 1, C]."""
    return ops.concat((tokens, tokens[:, :1] * 0), 1)  # a product, which ONNX has; it has no ZerosLike
