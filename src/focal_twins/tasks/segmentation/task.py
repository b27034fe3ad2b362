"""Defines the task of giving a class to every pixel of an image."""

from dataclasses import replace

import numpy as np
from mindspore import Tensor

from focal_twins.data.dataset import DataError
from focal_twins.data.dense_transforms import resize_pixels
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.data.transforms import normalise
from focal_twins.distributed.ranks import resolve_device
from focal_twins.files.names import only_in
from focal_twins.tasks.segmentation import run_sections
from focal_twins.tasks.segmentation.evaluator import SegmentationEvaluator
from focal_twins.tasks.segmentation.export_form import FULL_SIZE, LABELS, LOGITS, ExportForm
from focal_twins.tasks.segmentation.loss import PixelLosses
from focal_twins.tasks.segmentation.networks import NetworksBySize, kept_sizes
from focal_twins.tasks.segmentation.predictor import SegmentPredictor
from focal_twins.tasks.segmentation.preparation import ImagePreparation
from focal_twins.tasks.segmentation.samples import SegmentationEvalSamples, SegmentationTrainSamples
from focal_twins.tasks.task import Figure, Signature, Task, TensorSpec


class Segmentation(Task):
    """Gives a class to every pixel; mIoU chooses the best checkpoint."""

    name = "segmentation"
    outputs = (LOGITS, FULL_SIZE, LABELS)
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

    def losses(self, network, model, data, dist):
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
            config.eval.canvas_step or 1,
        )

    def evaluator(self, model, data, dist, classes=None, label="the model"):
        if classes is not None and classes != data.classes:
            raise DataError(
                f"data folder {data.path}: data.classes are not those of {label}, "
                f"{only_in(data.classes, classes, 'data.classes', 'the model')}; give the same, or null to take the "
                "model's"
            )
        return SegmentationEvaluator(model, data, self.config, self._mode(dist.device_target), dist)

    def _mode(self, device_target: str) -> str:
        """Return eval.mode, with "auto" resolved for a device."""
        mode = self.config.eval.mode
        if mode == "auto":
            return "slide" if device_target == "Ascend" else "whole"
        return mode

    def exported(self, model, output):
        return ExportForm(model, output)

    def for_one_size(self, config):
        """Evaluate by windows, at one scale, whatever the configuration asks for."""
        update = {"mode": "slide", "canvas_step": None, "scales": [1.0], "flip": False}
        given = config.eval.model_dump()
        changed = [f"eval.{key}={given[key]}" for key, value in update.items() if given[key] not in (value, "auto")]
        if changed:
            print(f"an exported file is evaluated by windows at one scale, not with {', '.join(changed)}", flush=True)
        return replace(config, eval=config.eval.model_copy(update=update))

    def signature(self, model, batch_size, output):
        images = TensorSpec("images", (batch_size, model.in_chans, *model.img_size))
        if output == LABELS:
            answer = TensorSpec("labels", (batch_size, *model.img_size), "int32")
        else:
            size = model.img_size if output == FULL_SIZE else model.map_size
            answer = TensorSpec("logits", (batch_size, model.num_classes, *size))
        return Signature((images,), (answer,))

    def sample_inputs(self, model, count):
        """Return the first readable validation images, resized to the model's size; without any, noise."""
        mean, std = self.config.data.mean, self.config.data.std
        shape = (model.in_chans, *model.img_size)
        return self.images_or_noise(
            lambda images: (resize_pixels(p, tuple(model.img_size)) for p in images.readable_pixels(model.in_chans)),
            lambda pixels: normalise(np.stack(pixels), mean, std),
            shape,
            count,
        )

    def answer(self, model):
        """Return what computes logits [B, classes, h, w] of images of any size that the network can have."""
        networks = NetworksBySize(model, model, "O0", kept_sizes(self.config.eval))
        return lambda images, part=None: np.moveaxis(networks(Tensor(images), part).asnumpy(), -1, 1)

    def preprocessing(self, model, output):
        mode = self._mode(resolve_device(self.config.runtime.device_target))
        preparation = ImagePreparation.of(self.config, model, mode)
        return (preparation if output is None else preparation.of_exported(output)).to_dict()

    @classmethod
    def predictor(cls, answer, preprocessing, batch_size, classes, options):
        return SegmentPredictor(answer, ImagePreparation.from_dict(preprocessing), batch_size, classes, options)

    @classmethod
    def read_evaluation(cls, path, content):
        return run_sections.read_evaluation(path, content)

    @classmethod
    def sections(cls, evaluation, config, data, roots):
        return run_sections.sections(evaluation, config, data, roots)
