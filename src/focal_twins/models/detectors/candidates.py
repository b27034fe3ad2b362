"""Chooses, in a graph, which places of a pyramid a detector's evaluation goes on with."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.detectors.detector import PAD_DIVISOR


class BestOfLevels(nn.Cell):
    """Chooses the places of each level that rank best.

    Args:
        spans: (first, end) of each level's places.
        per_level: how many of each level; of one that has no more, all.

    Attributes:
        counts: chosen places of each level.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], per_level: int):
        super().__init__()
        self.spans = tuple(spans)
        self.counts = tuple(min(end - first, per_level) for first, end in self.spans)
        self.top = ops.TopK()

    def construct(self, ranks):
        """Map ranks [B, L] float32 to the numbers of the places [B, sum of counts] int32, level after level."""
        chosen = ()
        for i in range(len(self.spans)):
            first, end = self.spans[i]
            if end - first > self.counts[i]:
                chosen = chosen + (self.top(ranks[:, first:end], self.counts[i])[1] + first,)
            else:
                every = Tensor(np.arange(first, end, dtype=np.int32)).reshape((1, -1))
                chosen = chosen + (ops.tile(every, (ranks.shape[0], 1)),)
        return ops.concat(chosen, 1)


def stands_on_image(places, extents):
    """Tell by 1 and 0 which places stand on images, rounded up to whole multiples of PAD_DIVISOR: [B, L] float32.

    Args:
        places: [1, L, 2], (y, x) in pixels. extents: [B, 2], (height, width).
    """
    padded = (extents + (PAD_DIVISOR - 1)) // PAD_DIVISOR * PAD_DIVISOR
    inside = (places < padded.reshape((-1, 1, 2))).astype(ms.float32)
    return inside[..., 0] * inside[..., 1]
