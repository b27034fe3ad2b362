"""Turns images and the boxes of their objects into batches for a detector."""

import numpy as np

from focal_twins.config.detection import nearest
from focal_twins.data.box_transforms import Augmentation, canvas_of, draw_augmentation, placed
from focal_twins.data.coco import CocoImages
from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.dense_transforms import pad, rescaled_size, resize_pixels
from focal_twins.data.grouping import grouped_positions
from focal_twins.data.pipeline import BatchKey, EvalSamples, TrainSamples, UnreadableImages
from focal_twins.data.transforms import normalise_parts
from focal_twins.models.detectors.detector import TargetMaker
from focal_twins.random_streams import Stream, generator


class DetectionTrainSamples(TrainSamples):
    """Makes training batches: images [B, C, H, W] float32 and extents [B, 2] int32 on one canvas, and the targets.

    All images of an update are on one canvas. On which one an image is follows from its size in the JSON and from what
    is drawn for it, so the order of an epoch is arranged by canvases before any image is opened. (The originals group
    images by the files' orientation, which a crop may change, and pad to the largest of a batch.)

    The next readable image that comes out on the same canvas replaces an unreadable one: the choice is the same on
    every rank.

    Args:
        canvases: (height, width) of each.
        augment: the augment section of a configuration.
        mean, std: mean and deviation of each channel, of pixels scaled to [0, 1].
        target_maker: turns boxes into what the detector takes; its arrays follow on images and extents.

    Raises:
        DataError: an image may come out larger than every canvas.
    """

    def __init__(
        self,
        data: CocoImages,
        canvases: list[tuple[int, int]],
        augment,
        mean: list[float],
        std: list[float],
        seed: int,
        unreadable: UnreadableImages,
        target_maker: TargetMaker,
    ):
        self.data, self.canvases, self.augment, self.seed, self.unreadable = data, canvases, augment, seed, unreadable
        self.mean, self.std, self.target_maker = mean, std, target_maker
        self.outputs = ("pixels", "extent", *target_maker.names)
        for size in sorted(largest_sizes(np.unique(data.sizes, axis=0).tolist(), augment)):
            check_canvas_for(size, canvases, "augment.short_sides, augment.long_side")

    def arrange(self, epoch, order, unit):
        """Group the samples by their canvases, see grouped_positions."""
        if len(self.canvases) == 1:
            return None
        canvases = [
            self._canvas(self._augmentation(index, epoch, position)[0]) for position, index in enumerate(order.tolist())
        ]
        offset = generator(self.seed, Stream.ORDER, epoch, 1).random()
        return grouped_positions(np.array([self.canvases.index(canvas) for canvas in canvases]), unit, offset)

    def _augmentation(self, index: int, epoch: int, position: int) -> tuple[Augmentation, np.random.Generator]:
        """Return what is drawn for a sample, and the generator, which goes on to draw for its targets."""
        choices = generator(self.seed, Stream.AUGMENTATION, epoch, position)
        return draw_augmentation(choices, self.data.image_size(index), self.augment), choices

    def _canvas(self, drawn: Augmentation) -> tuple[int, int]:
        """Return the canvas of an augmented image; there is one, as the constructor has checked."""
        return canvas_of(drawn.size, self.canvases) or self.canvases[0]

    def sample(self, columns, epoch, position):
        """Return pixels [H, W, C] uint8 of a canvas, the height and width that the image takes of it, and targets."""
        index, pixels = self.readable(int(columns[0]), epoch, position)
        drawn, choices = self._augmentation(index, epoch, position)
        canvas = self._canvas(drawn)
        boxes, kept = drawn.boxes(self.data.boxes(index))
        masks = drawn.masks(self.data.masks(index)[kept]) if self.target_maker.needs_masks else None
        labels = self.data.labels(index)[kept]
        targets = self.target_maker(canvas, drawn.size, boxes, labels, choices, masks)
        return pad(drawn.pixels(pixels), canvas, 0), np.array(drawn.size, np.int32), *targets

    def readable(self, index: int, epoch: int, position: int) -> tuple[int, np.ndarray]:
        """Return the first readable sample from an index on that has the canvas of that index, and its pixels.

        The first sample follows on the last.

        Raises:
            DataError: no such sample is readable.
        """
        data, canvas = self.data, self._canvas(self._augmentation(index, epoch, position)[0])
        for other in [*range(index, data.size), *range(index)]:
            if other != index and self._canvas(self._augmentation(other, epoch, position)[0]) != canvas:
                continue
            try:
                return other, data.pixels(other, len(self.mean))
            except UnreadableImage as error:
                self.unreadable.add(data.path / data.name(other), str(error))
        raise DataError(f"data folder {data.path}: no image for the canvas {canvas[0]} x {canvas[1]} is readable")

    def batch(self, arrays, key: BatchKey):
        pixels, extents, *targets = arrays
        return normalise_parts(pixels, extents, self.mean, self.std), extents, *targets


class DetectionEvalSamples(EvalSamples):
    """Makes evaluation batches: images, extents, weights and indices.

    - images [B, C, H, W] float32: resized, the aspect kept, in the top left corner of a canvas; 0 beyond.
    - extents [B, 2] int32: the height and width that each takes.
    - weights [B] float32: 0 for an unreadable image, which keeps its place and is black; else 1.
    - indices [B] int64: the samples' places in the data set.

    Images of different canvases do not fit into one batch; the pipeline says so.

    Args:
        canvases: (height, width) of each. Where there is one alone, as exported files have, what it does not hold is
            made smaller.
        short_side, long_side: bounds of the sides.
        mean, std: mean and deviation of each channel, of pixels scaled to [0, 1].

    Raises:
        DataError: an image is larger than every one of several canvases.
    """

    outputs = ("pixels", "extent", "weight", "index")

    def __init__(
        self,
        data: CocoImages,
        canvases: list[tuple[int, int]],
        short_side: int,
        long_side: int,
        mean: list[float],
        std: list[float],
        unreadable: UnreadableImages,
    ):
        self.data, self.canvases, self.bounds, self.unreadable = data, canvases, (short_side, long_side), unreadable
        self.mean, self.std = mean, std
        if len(canvases) > 1:
            for size in sorted({rescaled_size(size, self.bounds) for size in np.unique(data.sizes, axis=0).tolist()}):
                check_canvas_for(size, canvases, "eval.short_side, eval.long_side")

    def placed(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the canvas (height, width) of a sample and the extent that it takes."""
        return placed(self.data.image_size(index), self.bounds, self.canvases)

    def order(self, indices):
        """Return samples by their canvases: the network has a graph for each, compiled once so."""
        return sorted(indices, key=lambda index: self.canvases.index(self.placed(index)[0]))

    def sample(self, columns, index):
        canvas, extent = self.placed(index)
        try:
            pixels, weight = resize_pixels(self.data.pixels(index, len(self.mean)), extent), 1
        except UnreadableImage as error:
            self.unreadable.add(self.data.path / self.data.name(index), str(error))
            pixels, weight = np.zeros((*extent, len(self.mean)), np.uint8), 0
        return pad(pixels, canvas, 0), np.array(extent, np.int32), np.float32(weight), np.int64(index)

    def batch(self, arrays):
        pixels, extents, weights, indices = arrays
        return normalise_parts(pixels, extents, self.mean, self.std), extents, weights, indices


def largest_sizes(sizes: list[tuple[int, int]], augment) -> set[tuple[int, int]]:
    """Return sizes (height, width) that hold all those which images of some sizes may have after augmentation.

    Without crops, they are what each image is resized to. What crops may come to is bounded by one size for lying and
    one for standing crops.
    """
    largest = {
        rescaled_size(size, (short_side, augment.long_side)) for size in sizes for short_side in augment.short_sides
    }
    if not augment.crop:
        return largest
    bounds = max(augment.short_sides), augment.long_side
    short_side = min(bounds)
    for size in sizes:
        for crop_short_side in augment.crop_short_sides:
            enlarged = rescaled_size(size, (crop_short_side, augment.long_side))
            least, greatest = ([min(side, limit) for side in enlarged] for limit in augment.crop_range)
            height, width = rescaled_size((least[0], greatest[1]), bounds)
            if height <= width:
                largest.add((short_side, width))
            height, width = rescaled_size((greatest[0], least[1]), bounds)
            if width <= height:
                largest.add((height, short_side))
    return largest


def check_canvas_for(size: tuple[int, int], canvases: list[tuple[int, int]], keys: str) -> None:
    """Check that a canvas holds images of a size.

    Args:
        keys: what the size follows from.

    Raises:
        DataError: none does; the message names the nearest.
    """
    if canvas_of(size, canvases) is None:
        raise DataError(
            f"data.canvases: no canvas holds images of {size[0]} x {size[1]} (height x width), which these data can "
            f"come to ({keys}); {nearest(canvases, size)}"
        )
