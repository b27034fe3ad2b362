"""Predicts from Python, as scripts/predict.py does: classes, labels of pixels, or objects."""

import os
from collections.abc import Sequence
from pathlib import Path

from focal_twins.data.image_source import ImageSource, as_list
from focal_twins.errors import UserError
from focal_twins.inference.trained import OpenedModel, open_model
from focal_twins.models.registry import ArgumentError
from focal_twins.tasks.task import PredictionOptions


class Predictor:
    """Predicts for images: predictor(image), predictor([image, ...]). Make it by `focal_twins.load`.

    Attributes:
        task: "classification", "segmentation" or "detection".
        network: the model in evaluation mode; None of an exported file.
        classes: names of the classes by label, or None.
    """

    def __init__(self, model: OpenedModel, classes: Sequence[str] | None = None, threshold: float | None = None):
        if classes is not None and len(classes) != model.num_classes:
            raise ArgumentError("classes", f"{len(classes)} names for the {model.num_classes} classes of the model")
        self.task, self.network = model.task.name, model.network
        self.classes = model.classes if classes is None else tuple(classes)
        options = PredictionOptions(threshold=threshold)
        self._predictor = model.task.predictor(
            model.answer, model.preprocessing, model.batch_size, self.classes, options
        )

    def __call__(
        self, images: ImageSource | Sequence[ImageSource], batch_size: int | None = None, workers: int | None = None
    ):
        """Predict for an image or for a list of images, at their own sizes.

        Args:
            images: paths, Pillow images, or arrays [H, W, 3] or [H, W] uint8; grey and colour are converted.
            batch_size: images per call of the network (classification 32, else 1).
            workers: threads that read and decode (one a core).

        Returns:
            For a list, a list. Classification: `probabilities` [classes] and `top(k)`, the k most probable classes as
            (label, probability). Segmentation: `labels` [H, W] int32. Detection: `found`, with `boxes` [n, 4] (x1, y1,
            x2, y2 in pixels of the image), `scores` [n], `labels` [n] and, by some networks, masks. Each says which
            `image` it is of.

        Raises:
            UserError: an image that cannot be read.
        """
        sources, is_one = as_list(images)
        size = batch_size or self._predictor.images_per_call
        predictions = list(self._predictor.predict(sources, size, workers or os.cpu_count() or 1)) if sources else []
        for prediction in predictions:
            if prediction.problem is not None:
                raise UserError(f"image {prediction.image}: cannot be read ({prediction.problem})")
        return predictions[0] if is_one else predictions


def load(
    path: str | Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    weights: str = "auto",
    classes: Sequence[str] | None = None,
    threshold: float | None = None,
) -> Predictor:
    """Load a trained model, ready to predict: a checkpoint, or an exported file with its JSON beside it.

    MindSpore's mode and random state stay as they are. In graph mode (mindspore.set_context) the first call compiles.

    Args:
        path: .ckpt, .pth, .safetensors, .mindir or .onnx, or the name of published weights that are here.
        config: name or file of the configuration, of weights that come without one.
        overrides: "section.key=value" for the configuration, such as "eval.mode=slide".
        weights: "raw", "ema", or "auto": averaged weights where the file has them.
        classes: names of the classes, where the file has none.
        threshold: detection: the least score of an object (0.3).

    Raises:
        UserError: no such file, weights without a configuration or of another model.
        ArgumentError: another number of `classes` than the model has.

    Example:
        predictor = focal_twins.load("runs/focalv2_digits/checkpoints/best.ckpt")
        label, probability = predictor("7.png").top(1)[0]
        print(predictor.classes[label], probability)
    """
    return Predictor(open_model(str(path), config, overrides, weights, starts=False), classes, threshold)
