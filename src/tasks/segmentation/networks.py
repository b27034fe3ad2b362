"""Keeps a network for each of several image sizes, which all have the same parameters."""

import gc
from collections import OrderedDict
from collections.abc import Callable

from mindspore import Tensor, nn

from src.models.precision import apply_precision
from src.models.segmentors.segmentor import Segmentor
from src.tasks.task import call_cell


class NetworksBySize:
    """Computes maps of logits of images of any size.

    Every size has a network, and a graph, of its own. They cost memory and seconds to compile, so those of the sizes
    that were used last are kept and the others are dropped.

    Args:
        model: the network in float32; it gives networks of other sizes.
        network: the same in the run's precision, which takes the images of the model's own size.
        level: the precision, see apply_precision.
        kept: number of other sizes that are kept.
        call: calls a network with its inputs.
    """

    def __init__(
        self, model: Segmentor, network: nn.Cell, level: str, kept: int, call: Callable[..., Tensor] = call_cell
    ):
        self.model, self.network, self.level, self.kept, self.call = model, network, level, kept, call
        self.others: OrderedDict[tuple[int, int], tuple[nn.Cell, tuple[int, int]]] = OrderedDict()

    def __call__(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, h, w, classes].

        Raises:
            ArgumentError: the network cannot have this size.
        """
        network, map_size = self._at(images.shape[2:])
        return self.call(network, images).reshape((images.shape[0], *map_size, -1))

    def _at(self, size: tuple[int, int]) -> tuple[nn.Cell, tuple[int, int]]:
        """Return the network of an image size, and (h, w) of its logits."""
        if size == self.model.img_size:
            return self.network, self.model.map_size
        if size not in self.others:
            if len(self.others) == self.kept:
                self.others.popitem(last=False)
                gc.collect()  # cyclic references keep a cell and its graph alive
            model = self.model.at(size)
            self.others[size] = apply_precision(model, self.level).set_train(False), model.map_size
        self.others.move_to_end(size)
        return self.others[size]
