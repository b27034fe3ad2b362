"""Defines the task of giving a class to every pixel of an image."""

from itertools import islice

import numpy as np

from src.data.dataset import DataError
from src.data.dense_transforms import resize_pixels
from src.data.label_folders import LabelledFolders
from src.data.transforms import UnreadableImage, normalise
from src.errors import UserError
from src.tasks.segmentation import run_sections
from src.tasks.segmentation.evaluator import SegmentationEvaluator
from src.tasks.segmentation.loss import PixelLosses
from src.tasks.segmentation.samples import SegmentationEvalSamples, SegmentationTrainSamples
from src.tasks.task import Figure, Signature, Task, TensorSpec


class Segmentation(Task):
    """Gives a class to every pixel; mIoU chooses the best checkpoint."""

    name = "segmentation"
    figures = (
        Figure("miou", "mIoU", "%", ".2f"),
        Figure("macc", "mAcc", "%", ".2f"),
        Figure("aacc", "aAcc", "%", ".2f"),
    )

    def check(self):
        """Do nothing: what the configuration asks for was checked when it was loaded."""

    def open(self, split, classes=None):
        data = LabelledFolders.of(self.config, split)
        if classes is not None and self.config.data.classes is None and len(classes) == len(data.classes):
            data.classes = classes
        return data

    def check_data(self, train, val):
        """Do nothing: both have the classes of the configuration, and label images are checked as they are read."""

    def losses(self, network, model):
        return PixelLosses(network, model, self.config.data.ignore_index, self.config.loss.mean)

    def batch_caveat(self, model, ranks):
        return model.batch_caveat(self.config.train.batch_size, ranks)

    def noise(self, model, generator, batch):
        size = len(batch[0])
        return model.draw_drop_path(generator, size), model.draw_channel_scales(generator, size)

    def train_samples(self, model, data, unreadable, epochs):
        config = self.config
        return SegmentationTrainSamples(
            data,
            tuple(model.img_size),
            config.augment,
            config.data.mean,
            config.data.std,
            config.runtime.seed,
            unreadable,
        )

    def eval_samples(self, model, data, unreadable):
        config = self.config
        return SegmentationEvalSamples(
            data,
            tuple(model.img_size),
            config.eval.resize,
            config.eval.scales,
            config.data.mean,
            config.data.std,
            unreadable,
        )

    def evaluator(self, model, data, dist, classes=None, label="the model"):
        if classes is not None and classes != data.classes:
            raise DataError(
                f"data folder {data.path}: data.classes are not those of {label} ({', '.join(classes[:3])}, ...); "
                "give the same, or null to take the model's"
            )
        mode = self.config.eval.mode
        if mode == "auto":
            mode = "slide" if dist.device_target == "Ascend" else "whole"
        return SegmentationEvaluator(model, data, self.config, mode, dist)

    def signature(self, model, batch_size):
        height, width = model.map_size
        return Signature(
            (TensorSpec("images", (batch_size, model.in_chans, *model.img_size)),),
            (TensorSpec("logits", (batch_size, height * width, model.num_classes)),),
        )

    def sample_inputs(self, model, count):
        """Return the first readable validation images, resized to the model's size; without any, noise."""
        data = self.config.data
        try:
            images = self.open("val")
        except DataError:
            images = None
        pixels = list(islice(_readable_pixels(images, model), count)) if images is not None else []
        if not pixels:
            shape = (count, model.in_chans, *model.img_size)
            noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            return noise, "random input (no validation images here)"
        repeated = np.stack([pixels[index % len(pixels)] for index in range(count)])
        return normalise(repeated, data.mean, data.std), "validation images"

    def preprocessing(self, model):
        data = self.config.data
        return {
            "color": "RGB" if model.in_chans == 3 else "grey",
            "channels": model.in_chans,
            "size": list(model.img_size),
            "resize": self.config.eval.resize,
            "interpolation": "bilinear",
            "scale": 1 / 255,
            "mean": list(data.mean),
            "std": list(data.std),
        }

    @classmethod
    def predictor(cls, answer, preprocessing, batch_size, classes, options):
        raise UserError("prediction of segmentation models is not part of this version; eval.py evaluates them")

    @classmethod
    def read_evaluation(cls, path, content):
        return run_sections.read_evaluation(path, content)

    @classmethod
    def sections(cls, evaluation, config, data, roots):
        return run_sections.sections(evaluation, config, data, roots)


def _readable_pixels(data: LabelledFolders, model):
    """Yield the pixels [H, W, C] uint8 of readable images, resized to the model's size."""
    for index in range(data.size):
        try:
            yield resize_pixels(data.pixels(index, model.in_chans), tuple(model.img_size))
        except (UnreadableImage, DataError):
            continue
