"""Keeps a network for each of several image sizes, which all have the same parameters."""

import gc
from collections import OrderedDict
from collections.abc import Callable

from mindspore import Tensor, nn

from focal_twins.models.precision import apply_precision
from focal_twins.models.segmentors.segmentor import Segmentor
from focal_twins.tasks.task import call_cell


def kept_sizes(section) -> int:
    """Return how many sizes of networks an evaluation keeps: at least one for each scale, which all images go through.

    Args:
        section: the section eval of a configuration.
    """
    return max(section.graphs, len(section.scales))


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
        # By size and whether it is a canvas: the model of that size, and the same in the run's precision.
        self.others: OrderedDict[tuple[tuple[int, int], bool], tuple[Segmentor, nn.Cell]] = OrderedDict()

    def __call__(self, images: Tensor, part: tuple[int, int] | None = None) -> Tensor:
        """Map images [B, C, H, W] to logits [B, h, w, classes].

        Args:
            part: (height, width) of what is not padding, where images stand on a canvas; see Segmentor.on_canvas.

        Raises:
            ArgumentError: the network cannot have this size.
        """
        model, network = self._of(images.shape[2:], part is not None)
        if part is not None:
            model.set_part(part)
        return self.call(network, images).reshape((images.shape[0], *model.map_size, -1))

    def _of(self, size: tuple[int, int], is_canvas: bool) -> tuple[Segmentor, nn.Cell]:
        """Return the model of an image size, and the same in the run's precision."""
        if size == self.model.img_size and not is_canvas:
            return self.model, self.network
        key = size, is_canvas
        if key not in self.others:
            if len(self.others) == self.kept:
                self.others.popitem(last=False)
                gc.collect()  # cyclic references keep a cell and its graph alive
            model = self.model.on_canvas(size) if is_canvas else self.model.at(size)
            self.others[key] = model, apply_precision(model, self.level).set_train(False)
        self.others.move_to_end(key)
        return self.others[key]
