"""Two updates of the smallest segmentor on six images, over one rank or several, without noise."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal_twins.models import create_model
from focal_twins.models.batch_norm import synchronise_batch_norms
from focal_twins.tasks.segmentation.loss import PixelLosses
from tests.tasks.segmentation.small_run import CLASSES, CONFIG
from tests.training.plain_step import plain_step

IMAGES, UPDATES, IGNORED = 6, 2, 255


def build(ranks=1, reducer_of=lambda parameters: None, accumulation_steps=1):
    """The network and its training step, by plain gradient descent and the mean over valid pixels."""
    ms.set_seed(3)
    backbone = create_model(features_only=True, **CONFIG["backbone"] | {"drop_path_rate": 0.0})
    model = create_model(backbone=backbone, **CONFIG["model"] | {"dropout": 0.0})
    synchronise_batch_norms(model, ranks)
    losses = PixelLosses(model, model, IGNORED, "valid")
    reducer = reducer_of(model.trainable_params())
    step = plain_step(losses, model, reducer=reducer, ranks=ranks, accumulation_steps=accumulation_steps)
    return model, step


def batch_of(update):
    """Six images and their labels, of which some have no class: each image another share."""
    generator = np.random.default_rng(update)
    images = generator.standard_normal((IMAGES, 3, 32, 32)).astype(np.float32)
    labels = generator.integers(0, len(CLASSES), (IMAGES, 32 * 32)).astype(np.int32)
    labels[generator.random(labels.shape) < np.linspace(0, 0.9, IMAGES)[:, None]] = IGNORED
    return images, labels


def outcome_of_run(rank=0, ranks=1, reducer_of=lambda parameters: None):
    """All parameters after the updates, running statistics included, and the loss of each update."""
    model, step = build(ranks, reducer_of)
    losses = []
    for update in range(UPDATES):
        images, labels = (array[rank::ranks] for array in batch_of(update))
        scalars = Tensor(0.1, ms.float32), True, Tensor(0.0, ms.float32)
        losses.append(step(*scalars, Tensor(images), Tensor(labels), None, None).asnumpy()[0])
    return {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}, losses
