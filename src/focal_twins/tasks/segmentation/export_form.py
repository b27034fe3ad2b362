"""Gives an exported segmentor one of three kinds of output."""

from mindspore import nn, ops

from focal_twins.models.resize import BilinearResize
from focal_twins.models.segmentors.segmentor import Segmentor

LOGITS, FULL_SIZE, LABELS = "logits", "full_size", "labels"


class ExportForm(nn.Cell):
    """Runs a segmentor and arranges its output for programs that know nothing of it.

    Args:
        output: "logits": [B, classes, h, w] as the network gives them, smaller than the image; "full_size": resized to
            [B, classes, H, W] of the input; "labels": [B, H, W] int32, the most likely class of each pixel.
    """

    def __init__(self, model: Segmentor, output: str):
        super().__init__()
        self.model = model
        self.num_classes = model.num_classes
        self.gives_labels = output == LABELS
        self.size = model.map_size if output == LOGITS else model.img_size
        self.resize = BilinearResize(model.map_size, self.size)
        self.argmax = ops.Argmax(axis=3)
        self.expand, self.squeeze = ops.ExpandDims(), ops.Squeeze(3)

    def construct(self, images):
        """Map images [B, C, H, W] to what was chosen."""
        logits = self.resize(self.model(images)).reshape((-1, *self.size, self.num_classes))
        if self.gives_labels:
            # The ONNX exporter loses the output's name, or its type, where a graph ends with an argmax or a reshape.
            return self.squeeze(self.expand(self.argmax(logits), 3))
        return logits.transpose((0, 3, 1, 2))
