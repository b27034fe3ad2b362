"""Defines what a detector is to the rest of the project: candidates for detections, a loss, and the targets it takes.

A family (retinanet.py, atss.py, ...) is a class on Detector. Images of a batch stand in the top left corner of frames
of one size, the canvas; the extent of an image is its (height, width) there, and what lies beyond is zero. Boxes are
(x1, y1, x2, y2) float32 in pixels of the canvas; a width is x2 - x1.
"""

from abc import ABC, abstractmethod

import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.network_on_backbone import NetworkOnBackbone
from focal_twins.models.registry import ArgumentError

PAD_DIVISOR = 32  # of images, in the originals: what is padded to whole multiples of it counts as image


class TargetMaker(ABC):
    """Turns the boxes of one image into the arrays that a detector's training takes, in the workers that read images.

    It can be pickled, and computes with NumPy alone. What depends on the canvas, such as anchors, it computes when it
    first meets that canvas, and keeps.

    Attributes:
        names: names of the arrays that it returns, in their order.
        needs_masks: it wants the masks of the objects, too.
    """

    names: tuple[str, ...]
    needs_masks = False

    @abstractmethod
    def __call__(
        self,
        canvas: tuple[int, int],
        extent: tuple[int, int],
        boxes: np.ndarray,
        labels: np.ndarray,
        generator: np.random.Generator,
        masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, ...]:
        """Return arrays whose shapes follow from the canvas alone.

        Args:
            canvas: (H, W) of the frame. extent: (h, w) of the image in it.
            boxes: [n, 4] float32 of the objects, within the extent. labels: [n] int32 of their classes.
            generator: draws what is drawn for this image.
            masks: [n, h, w] uint8 of 0 and 1, those of the objects in the extent; None unless `needs_masks`.
        """


class Detector(NetworkOnBackbone):
    """Runs images through a backbone, a neck and heads, which give candidates for detections.

    Parameter names are those of the published checkpoints: `backbone.*`, `neck.*`, `bbox_head.*`, `rpn_head.*`,
    `roi_head.*`. A subclass defines the members that raise NotImplementedError here, mask_cell with `has_masks` alone.

    Attributes:
        loss_names: names of the parts of the loss.
        loss_floors: the least divisor of each, see tasks/losses.py.
        score_threshold: detections have higher scores than this.
        nms_iou: of two detections of one class that overlap by more than this, the weaker is dropped; None: none is.
        max_detections: the most that an image has.
        has_factor: candidates carry a factor, by which their scores are multiplied for the ranking alone.
        class_boxes: candidates have a box for each class.
        has_masks: it gives a mask for each detection, too.
        clips_boxes: boxes are cut off at the edges of the image.
    """

    loss_names: tuple[str, ...]
    loss_floors: tuple[float, ...]
    score_threshold = 0.05
    nms_iou: float | None = 0.5
    max_detections = 100
    has_factor = False
    class_boxes = False
    has_masks = False
    clips_boxes = True

    def __init__(self, backbone: Backbone, arguments: dict):
        super().__init__(backbone, arguments)
        check_canvas(self.img_size)
        self.canvas = Tensor(np.array([self.img_size], np.int32))

    # --- what a family defines ---------------------------------------------------------------------------------------

    def training_outputs(self, images, extents, targets, drop_path):
        """Return the tuple of tensors that the loss takes; arguments as those of construct, extents never None."""
        raise NotImplementedError

    def candidates(self, images, extents):
        """Return what construct does in evaluation; arguments as those of construct, extents never None."""
        raise NotImplementedError

    @property
    def candidate_count(self) -> int:
        """Return K, the number of candidates of an image."""
        raise NotImplementedError

    def loss(self) -> nn.Cell:
        """Create the loss: a cell that maps (training outputs, targets) to sums [K] and weights [K], float32.

        The parts and divisors are those of tasks/losses.py, of this batch alone; each sum has its factor already.
        It has no parameters and computes in float32, whatever the precision of the network, of which it is no part.
        """
        raise NotImplementedError

    def target_maker(self) -> TargetMaker:
        """Create the maker of the arrays that training takes as targets."""
        raise NotImplementedError

    def mask_cell(self) -> nn.Cell:
        """Create the cell that draws the masks of detections, with this model's parameters.

        It maps what construct gives beside the candidates, boxes [B, n, 4] in pixels of the canvas and labels [B, n]
        int32 to the probabilities [B, n, M, M] float32 of the places in each box.
        """
        raise NotImplementedError

    # --- detection ---------------------------------------------------------------------------------------------------

    def construct(self, images, extents=None, targets=(), drop_path=None):
        """Map images to candidates for detections; in training, to what the loss takes.

        One method does both, because mixed precision changes or wraps `construct` alone.

        Args:
            images: [B, in_chans, *img_size]. extents: [B, 2] int32; None: images fill the canvas.
            targets: arrays of the target maker, in batches; a network takes them that samples them itself.
            drop_path: see draw_drop_path.

        Returns:
            Candidates [B, K, D] float32. Each is a box, in pixels of the canvas, and the scores of the classes:
            (x1, y1, x2, y2, score 0, ..., score C - 1), with `has_factor` followed by the factor. With `class_boxes`
            it begins with the boxes of all classes in place of one: (x1, y1, x2, y2) x C. Candidates that lie in
            padding have scores of 0. With `has_masks` a pair: the candidates, and the tokens [B, L, channels] that
            mask_cell takes.
        """
        if extents is None:
            extents = ops.tile(self.canvas, (images.shape[0], 1))
        if self.training:
            return self.training_outputs(images, extents, targets, drop_path)
        return self.candidates(images, extents)


def check_canvas(size: tuple[int, int]) -> None:
    """Refuse a size of images in which the strides of the maps do not fit.

    Raises:
        ArgumentError: a side is no multiple of PAD_DIVISOR; the message gives the nearest that is.
    """
    if any(side % PAD_DIVISOR for side in size):
        nearest = [max(PAD_DIVISOR, round(side / PAD_DIVISOR) * PAD_DIVISOR) for side in size]
        raise ArgumentError(
            "img_size", f"a detector needs sides that are multiples of {PAD_DIVISOR}, got {list(size)}; try {nearest}"
        )
