"""Defines the task of classifying images that have one label each."""

import math
from itertools import chain, zip_longest

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal_twins.data.decoding import Reading, UnreadableImage
from focal_twins.data.image_set import ImageSet, check_classes
from focal_twins.data.open_images import open_images
from focal_twins.data.transforms import Preprocessing, TrainTransform
from focal_twins.data.validation_split import SelectedImages, split_images
from focal_twins.tasks.classification import run_sections
from focal_twins.tasks.classification.evaluator import ClassificationEvaluator, label_space
from focal_twins.tasks.classification.label_maps import read_valid_labels
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy, balanced_weights
from focal_twins.tasks.classification.metrics import Scoring, has_top5
from focal_twins.tasks.classification.predictor import Classifier, ClassPredictor, read_names
from focal_twins.tasks.classification.samples import LabelledEvalSamples, LabelledTrainSamples
from focal_twins.tasks.task import Figure, Signature, Task, TensorSpec


class Classification(Task):
    """Classifies images; it trains with soft targets, and top-1 accuracy chooses the best checkpoint."""

    name = "classification"
    figures = (Figure("top1", "top-1", "%", ".2f"), Figure("top5", "top-5", "%", ".2f"), Figure("loss", "loss"))

    def __init__(self, config):
        super().__init__(config)
        self.parts: dict[str, SelectedImages] = {}  # of the training images, with data.val_fraction

    def check(self):
        if self.config.eval.class_map:
            raise self.config.error("eval.class_map", "is for eval.py; training evaluates on the classes it trains")

    def open(self, split, classes=None):
        data = self.config.data
        if data.val_fraction is None:
            return open_images(data.path, getattr(data, split), classes)
        if not self.parts:
            images = open_images(data.path, data.train, classes)
            self.parts = split_images(images, data.val_fraction, data.split_seed)
        return self.parts[split]

    def check_data(self, train, val):
        check_classes(train, val, self.config.model.resolved()["num_classes"])

    def losses(self, network, model, data, dist):
        weights = self.config.loss.class_weights
        if weights is None:
            return SoftTargetCrossEntropy(network)
        if weights != "balanced":
            return SoftTargetCrossEntropy(network, np.array(weights))
        if len(np.unique(data.labels)) < len(data.classes):  # files packed from images that could not be read
            raise self.config.error("loss.class_weights", "balanced needs an image of every class; give a list")
        return SoftTargetCrossEntropy(network, balanced_weights(data.labels, len(data.classes)))

    def noise(self, model, generator, batch):
        scales = model.draw_drop_path(generator, len(batch[0]))
        return scales, Tensor(generator.integers(2**31), ms.int32)

    def train_samples(self, model, data, unreadable, epochs):
        config = self.config
        cooldown = config.schedule.cooldown_epochs
        transform = TrainTransform(
            tuple(model.img_size),
            config.augment,
            config.runtime.seed,
            config.data.mean,
            math.floor(epochs - cooldown) if cooldown else math.inf,
        )
        reading = Reading.from_dict(config.data.model_dump())
        return LabelledTrainSamples(data, transform, config.data.mean, config.data.std, unreadable, reading)

    def eval_samples(self, model, data, unreadable):
        return LabelledEvalSamples(data, self._preprocessing(model), unreadable)

    @property
    def repeats(self):
        return self.config.augment.repeats

    def evaluator(self, model, data, dist, classes=None, label="the model"):
        space, notice = label_space(self.config, data, model.num_classes, classes, label)
        path = self.config.eval.real_labels
        valid = read_valid_labels(path, data.names, model.num_classes) if path else None
        scoring = Scoring(space, data.size, valid, self.config.eval.flip)
        size, batch_size = tuple(model.img_size), self.config.eval.batch_size
        return ClassificationEvaluator(scoring, data, self.config, size, dist, batch_size, notice)

    def signature(self, model, batch_size, output):
        return Signature(
            (TensorSpec("images", (batch_size, model.in_chans, *model.img_size)),),
            (TensorSpec("logits", (batch_size, model.num_classes)),),
        )

    def sample_inputs(self, model, count):
        """Return the first readable images of the validation set, one of each class in turn; without any, noise."""
        preprocessing = self._preprocessing(model)
        shape = (model.in_chans, *model.img_size)
        return self.images_or_noise(
            lambda images: _readable_pixels(images, preprocessing),
            lambda pixels: preprocessing.normalise(np.stack(pixels)),
            shape,
            count,
        )

    def preprocessing(self, model, output):
        return self._preprocessing(model).to_dict()

    def _preprocessing(self, model) -> Preprocessing:
        return Preprocessing.of(self.config, tuple(model.img_size))

    @classmethod
    def predictor(cls, answer, preprocessing, batch_size, classes, options):
        names = tuple(read_names(options.classes)) if options.classes else classes
        classifier = Classifier(answer, Preprocessing.from_dict(preprocessing), batch_size, names)
        return ClassPredictor(classifier, 5 if options.top is None else options.top, options.classes)

    @classmethod
    def shown_figures(cls, config):
        """Return the figures without top-5 accuracy where it is always 100%."""
        classes = (config.get("model") or {}).get("num_classes")
        trivial = isinstance(classes, int) and not has_top5(classes)
        return tuple(figure for figure in cls.figures if not (trivial and figure.key == "top5"))

    @classmethod
    def read_evaluation(cls, path, content):
        return run_sections.read_evaluation(path, content)

    @classmethod
    def sections(cls, evaluation, config, data, roots):
        return run_sections.sections(evaluation, config, data, roots)


def _readable_pixels(images: ImageSet, preprocessing: Preprocessing):
    """Yield the pixels of readable images: the first of every class, then the second of every class, and so on."""
    by_class = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
    for index in chain.from_iterable(zip_longest(*by_class)):
        try:
            if index is not None:
                yield preprocessing.pixels(images.content(index))
        except (UnreadableImage, OSError):
            continue
