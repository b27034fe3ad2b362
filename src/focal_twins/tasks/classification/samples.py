"""Turns labelled image files into batches for a classifier."""

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import AS_STORED, Reading, UnreadableImage, decode
from focal_twins.data.image_files import reason_of
from focal_twins.data.image_set import ImageSet
from focal_twins.data.mixup import draw_mixing, is_mixing_enabled, mix_images, mix_targets, soft_targets
from focal_twins.data.pipeline import BatchKey, EvalSamples, TrainSamples, UnreadableImages, epoch_order
from focal_twins.data.random_erasing import draw_rectangles, erase
from focal_twins.data.transforms import Preprocessing, TrainTransform, normalise
from focal_twins.random_streams import Stream, generator


class LabelledTrainSamples(TrainSamples):
    """Makes training batches: images [B, C, H, W] float32 and targets [B, classes] float32, augmented and mixed.

    The next readable image of the same class replaces an unreadable one, so that the label stays true and the choice
    is the same in every epoch and on every rank.

    Args:
        mean, std: mean and deviation of each channel, of pixels scaled to [0, 1].
        reading: says how files become pixels.
    """

    outputs = ("pixels", "target")

    def __init__(
        self,
        images: ImageSet,
        transform: TrainTransform,
        mean: list[float],
        std: list[float],
        unreadable: UnreadableImages,
        reading: Reading = AS_STORED,
    ):
        self.images, self.transform, self.unreadable = images, transform, unreadable
        self.mean, self.std, self.reading = mean, std, reading

    def sample(self, columns, epoch, position):
        image, label = columns
        try:
            array = decode(self.images.file_content(image), len(self.mean), self.reading)
        except (UnreadableImage, OSError) as error:
            augment = self.transform.augment
            order = epoch_order(self.transform.seed, epoch, self.images.size, augment.repeats)
            array = self.replacement(int(order[position]), reason_of(error))
        return self.transform(array, epoch, position), label

    def replacement(self, index: int, reason: str) -> np.ndarray:
        """Return the pixels of the next readable image of an unreadable image's class.

        Raises:
            DataError: no image of the class is readable.
        """
        images = self.images
        self.unreadable.add(images.path / images.name(index), reason)
        for other in images.successors(index):
            try:
                return decode(images.content(other), len(self.mean), self.reading)
            except (UnreadableImage, OSError):
                continue
        raise DataError(
            f"data folder {images.path}: no image of class {images.classes[images.labels[index]]} is readable"
        )

    def batch(self, arrays, key: BatchKey):
        """Normalise, erase and mix pixels [B, H, W, C]; return them with their targets."""
        pixels, labels = arrays
        images = normalise(pixels, self.mean, self.std)
        augment, seed = self.transform.augment, self.transform.seed
        targets = soft_targets(labels, len(self.images.classes), augment.label_smoothing)
        if self.transform.mode(key.epoch) != "all":
            return images, targets
        height, width = images.shape[2:]
        if augment.erasing:
            count = augment.erasing_count
            count = tuple(count) if isinstance(count, list) else (count, count)
            for image, position in zip(images, key.positions, strict=True):
                choices = generator(seed, Stream.ERASING, key.epoch, position)
                rectangles = draw_rectangles(choices, height, width, augment.erasing, count)
                erase(image, rectangles, augment.erasing_mode, choices)
        if is_mixing_enabled(augment) and not (augment.mixup_off_epoch and key.epoch >= augment.mixup_off_epoch):
            choices = generator(seed, Stream.MIXING, key.update, key.part, key.rank)
            mixing = draw_mixing(choices, augment, len(images), height, width)
            mix_images(images, mixing)
            targets = mix_targets(targets, mixing)
        return images, targets


class LabelledEvalSamples(EvalSamples):
    """Makes evaluation batches: images [B, C, H, W] float32, labels [B], weights [B] float32 and indices [B].

    An unreadable image keeps its place with weight 0: counting another image twice would falsify the metrics.
    """

    outputs = ("pixels", "target", "weight", "sample_index")

    def __init__(self, images: ImageSet, preprocessing: Preprocessing, unreadable: UnreadableImages):
        self.images, self.preprocessing, self.unreadable = images, preprocessing, unreadable

    def sample(self, columns, index):
        image, label = columns
        try:
            pixels = self.preprocessing.pixels(self.images.file_content(image))
            return pixels, label, np.float32(1), np.int64(index)
        except (UnreadableImage, OSError) as error:
            self.unreadable.add(self.images.path / self.images.name(index), reason_of(error))
            return self.preprocessing.blank(), label, np.float32(0), np.int64(index)

    def batch(self, arrays):
        pixels, labels, weights, indices = arrays
        return self.preprocessing.normalise(pixels), labels, weights, indices
