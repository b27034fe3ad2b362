"""Computes the training loss of a segmentor."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.compiled import CompiledCrossEntropy, KernelLayer
from focal_twins.models.device_options import device_options, set_device_options
from focal_twins.models.resize import BilinearResize
from focal_twins.models.segmentors.segmentor import Segmentor
from focal_twins.tasks.losses import Losses


class PixelCrossEntropy(nn.Cell, KernelLayer):
    """Computes the cross entropy of each pixel; pixels of no class have 0, and no gradient.

    It has its own gradient, which needs the logits alone: the probabilities, less 1 at the label. MindSpore's would
    keep all log-probabilities, and write into a map of zeros at one place for each pixel, which an Ascend does slowly.
    """

    def __init__(self, classes: int, ignore_index: int):
        super().__init__()
        self.classes = Tensor(np.arange(classes, dtype=np.int32))
        self.ignore_index = ignore_index
        # Primitives in place of functions: what MindSpore has made of a function's sources is gone for all other cells
        # once a cell with a gradient of its own has called it.
        self.select, self.gather, self.zeros_like = ops.Select(), ops.GatherD(), ops.ZerosLike()
        self.softmax, self.log_softmax = ops.Softmax(-1), ops.LogSoftmax(-1)
        self.kernel = None

    def make_kernel(self, library):
        return CompiledCrossEntropy(library, self.ignore_index)

    def construct(self, logits, labels):
        """Map logits [B, L, classes] float32 and labels [B, L] int32 to losses [B, L]."""
        if self.kernel is not None:
            return self.kernel(logits.reshape((-1, logits.shape[2])), labels.reshape(-1)).reshape(labels.shape)
        known = labels != self.ignore_index
        column = self.select(known, labels, self.zeros_like(labels)).reshape((*labels.shape, 1))
        own = self.gather(self.log_softmax(logits), 2, column).reshape(labels.shape)
        return -own * known.astype(ms.float32)

    def bprop(self, logits, labels, out, dout):
        if self.kernel is not None:
            rows = logits.reshape((-1, logits.shape[2]))
            gradient = self.kernel.gradient(rows, labels.reshape(-1), dout.reshape(-1))
            return gradient.reshape(logits.shape), self.zeros_like(labels)
        known = (labels != self.ignore_index).astype(ms.float32)
        at_label = (labels.reshape((*labels.shape, 1)) == self.classes).astype(ms.float32)
        gradient = (self.softmax(logits) - at_label) * (dout * known).reshape((*labels.shape, 1))
        return gradient, self.zeros_like(labels)


class PixelLosses(Losses):
    """Computes each head's cross entropy, in float32, of logits resized to the labels.

    Args:
        network: gives the logits tokens of every head from images, drop-path scales and channel scales.
        model: the segmentor that the network is; it describes the heads.
        ignore_index: the label of pixels that belong to no class.
        mean: "all": over all pixels, so that ignored ones count as right, as mmsegmentation 0.11 does, whose recipes
            the published weights were trained by; "valid": over the pixels of the update that have a class.
    """

    def __init__(self, network: nn.Cell, model: Segmentor, ignore_index: int, mean: str):
        super().__init__()
        self.network = network
        self.names = model.head_names
        self.head_weights = model.head_weights
        self.resizes = nn.CellList([BilinearResize(size, model.img_size) for size in model.head_map_sizes])
        self.cross_entropy = PixelCrossEntropy(model.num_classes, ignore_index)
        set_device_options(self.cross_entropy, kernels=device_options(network)["kernels"])
        self.ignore_index = ignore_index
        self.counts_valid = mean == "valid"
        if self.counts_valid:
            self.weight_floors = (1.0,) * len(self.names)

    def construct(self, images, labels, drop_path=None, channel_scales=None):
        """Return (parts, weights) of images [B, C, H, W], their labels [B, H * W] int32 and the step's noise."""
        heads = self.network(images, drop_path, channel_scales)
        parts = ()
        for i in range(len(self.head_weights)):
            logits = self.resizes[i](heads[i].astype(ms.float32))
            loss = self.cross_entropy(logits, labels).sum(-1).sum()
            parts = parts + (loss * self.head_weights[i],)
        if not self.counts_valid:
            return ops.stack(parts) / labels.size, None
        valid = (labels != self.ignore_index).astype(ms.float32).sum(-1).sum()
        return ops.stack(parts), ops.stack((valid,) * len(self.head_weights))
