"""Turns images and their label images into batches for a segmentor."""

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.dense_transforms import (
    distort,
    draw_crop,
    draw_distortion,
    mirror,
    pad,
    rescaled_size,
    resize_label,
    resize_pixels,
    scaled_bounds,
)
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.data.pipeline import BatchKey, EvalSamples, TrainSamples, UnreadableImages
from focal_twins.data.transforms import normalise, normalise_parts
from focal_twins.random_streams import Stream, generator


class SegmentationTrainSamples(TrainSamples):
    """Makes training batches: images [B, C, H, W] float32 and labels [B, H * W] int32, of one size.

    Pixels that belong to no class, and what pads a small image on the right and below, have data.ignore_index in the
    labels; images are padded with 0 after normalising. The next usable image replaces one that is unreadable, whose
    label is unreadable, or without a labelled pixel: the choice is the same in every epoch and on every rank.

    Args:
        size: (height, width) of the crops, the network's.
        augment: the augment section of a configuration.
        mean, std: mean and deviation of each channel, of pixels scaled to [0, 1].

    Source: the training pipeline of mmsegmentation 0.11 for ADE20K (see dense_transforms.py).
    """

    outputs = ("pixels", "label", "extent")

    def __init__(
        self,
        data: LabelledFolders,
        size: tuple[int, int],
        augment,
        mean: list[float],
        std: list[float],
        seed: int,
        unreadable: UnreadableImages,
    ):
        self.data, self.size, self.augment, self.seed, self.unreadable = data, size, augment, seed, unreadable
        self.mean, self.std = mean, std

    def sample(self, columns, epoch, position):
        """Return pixels [H, W, C] uint8, label [H, W], and the height and width that the image takes of them."""
        pixels, label = self.usable_pair(int(columns[0]))
        augment, ignore_index = self.augment, self.data.rules.ignore_index
        choices = generator(self.seed, Stream.AUGMENTATION, epoch, position)
        factor = choices.uniform(*augment.ratio_range)
        size = rescaled_size(label.shape, scaled_bounds(augment.resize, label.shape, factor))
        label = resize_label(label, size)
        top, left = draw_crop(choices, label, self.size, augment.cat_max_ratio, ignore_index)
        window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        pixels, label = resize_pixels(pixels, size)[window], label[window]
        if choices.random() < augment.hflip:
            pixels, label = mirror(pixels), mirror(label)
        if augment.photometric:
            drawn = draw_distortion(choices, augment.brightness, augment.contrast, augment.saturation, augment.hue)
            pixels = distort(pixels, drawn)
        return pad(pixels, self.size, 0), pad(label, self.size, ignore_index), np.array(label.shape, np.int32)

    def usable_pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels and label of the first usable sample from an index on, the first following on the last.

        Raises:
            DataError: no sample is usable.
        """
        data = self.data
        for other in [*range(index, data.size), *range(index)]:
            try:
                pixels, label = data.pair(other, len(self.mean))
                if (label != data.rules.ignore_index).any():
                    return pixels, label
                raise UnreadableImage("no pixel of its label image has a class")
            except UnreadableImage as error:
                self.unreadable.add(data.path / data.name(other), str(error))
        raise DataError(f"data folder {data.path}: no image of it is readable and has a labelled pixel")

    def batch(self, arrays, key: BatchKey):
        pixels, labels, extents = arrays
        images = normalise_parts(pixels, extents, self.mean, self.std)
        return images, labels.reshape(len(labels), -1).astype(np.int32)


class SegmentationEvalSamples(EvalSamples):
    """Makes evaluation batches: images, labels, weights and indices.

    - images [B, C, h, w] float32: the whole images resized, the aspect kept; one such array for each of the scales.
    - labels [B, H, W]: at the size of the files, with data.ignore_index where there is no class.
    - weights [B] float32: 0 for an unreadable image, which keeps its place; else 1.
    - indices [B] int64: the samples' places in the data set.

    Images of different sizes do not fit into one batch; the pipeline says so.

    Args:
        size: (height, width) of what stands for an image whose size is unknown, both its files being damaged.
        resize: bounds of the long and the short side; None for the image's own size.
        scales: factors of these bounds.
        step: the network sees sizes that are multiples of this, as on canvases.
    """

    def __init__(
        self,
        data: LabelledFolders,
        size: tuple[int, int],
        resize: list[int] | None,
        scales: list[float],
        mean: list[float],
        std: list[float],
        unreadable: UnreadableImages,
        step: int = 1,
    ):
        self.data, self.size, self.resize, self.scales, self.unreadable = data, size, resize, scales, unreadable
        self.mean, self.std, self.step = mean, std, step
        self.outputs = (*(f"pixels{number or ''}" for number in range(len(scales))), "label", "weight", "index")

    def order(self, indices):
        """Return samples by the size at which the network sees them: it has a graph for each, compiled once so."""
        return sorted(indices, key=self._network_size)

    def _network_size(self, index: int) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Return the size (height, width) of a sample at the first scale, then its own."""
        size = self.data.image_size(index)
        if 0 in size:
            return (0, 0), size
        scaled = rescaled_size(size, scaled_bounds(self.resize, size, self.scales[0]))
        return tuple(-(-side // self.step) * self.step for side in scaled), size

    def sample(self, columns, index):
        weight = np.float32(1)
        try:
            pixels, label = self.data.pair(index, len(self.mean))
        except UnreadableImage as error:
            self.unreadable.add(self.data.path / self.data.name(index), str(error))
            weight = np.float32(0)
            pixels, label = self.blank(index)
        scaled = [
            resize_pixels(pixels, rescaled_size(label.shape, scaled_bounds(self.resize, label.shape, scale)))
            for scale in self.scales
        ]
        return *scaled, label, weight, np.int64(index)

    def blank(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return black pixels and an ignored label that stand for an unreadable sample, of its size where known."""
        try:
            height, width = self.data.label(index).shape
        except UnreadableImage:
            try:
                height, width = self.data.pixels(index, len(self.mean)).shape[:2]
            except UnreadableImage:
                height, width = self.size
        rules = self.data.rules
        pixels = np.zeros((height, width, len(self.mean)), np.uint8)
        return pixels, np.full((height, width), rules.ignore_index, rules.dtype)

    def batch(self, arrays):
        *scaled, labels, weights, indices = arrays
        return *(normalise(pixels, self.mean, self.std) for pixels in scaled), labels, weights, indices
