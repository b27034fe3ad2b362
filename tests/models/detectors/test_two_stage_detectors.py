"""Two-stage detectors as the rest of the project uses them: training, candidates, masks, sizes, arguments."""


import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.files.weights import official_names
from src.models import create_model
from tests.models.test_training_options import FAMILIES
from tests.reference import formula_value, images

NAMES = ("mask_rcnn", "cascade_rcnn")
CANVAS = (64, 96)
SMALL = {
    "num_classes": 3, "channels": 8, "hidden": 16, "anchor_scale": 4.0, "anchor_samples": 16, "samples": 16,
    "proposals_per_level": 64, "proposals": 48, "max_boxes": 4,
}  # fmt: skip
X = Tensor(images((2, 3, *CANVAS)))
EXTENTS = ((64, 90), (40, 96))
OBJECTS = (
    (np.array([[2, 3, 40, 48], [30, 10, 64, 60]], np.float32), np.array([0, 2], np.int32)),
    (np.array([[5, 5, 46, 34]], np.float32), np.array([1], np.int32)),
)
NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def small(name="mask_rcnn", family="focal", canvas=CANVAS, **options):
    """A detector on a backbone of two stages, with weights by formula."""
    arguments = {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}
    arguments |= {"img_size": list(canvas)} | ({} if family == "twins" else {"pretrain_size": 32})
    on = create_model(family, features_only=True, **arguments)
    model = create_model(name, backbone=on, **SMALL | options)
    for key, parameter in official_names(model).items():
        if "topk_cloest" not in key:
            parameter.set_data(Tensor(np.asarray(formula_value(key, parameter.shape, 1.0))))
    return model


def target(model, extent, objects, seed=0):
    boxes, labels = objects
    masks = np.zeros((len(boxes), *extent), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2] = 1  # the left half of each box
    maker = model.target_maker()
    return maker(model.img_size, extent, boxes, labels, np.random.default_rng(seed), masks)


def batch(*of_images):
    return tuple(Tensor(np.stack(arrays)) for arrays in zip(*of_images, strict=True))


def targets_of(model, objects=OBJECTS):
    return batch(*(target(model, e, o, i) for i, (e, o) in enumerate(zip(EXTENTS, objects, strict=True))))


class Gradients(nn.Cell):
    """The parts of a detector's loss and its gradients by the parameters of neck and heads."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model, self.loss = model, model.loss()
        self.chosen = [p for p in model.trainable_params() if not p.name.startswith("backbone.")]
        self.gradients = ms.value_and_grad(self.total, None, self.chosen, has_aux=True)

    def total(self, x, extents, targets):
        sums, weights = self.loss(self.model(x, extents, targets), targets)
        parts = sums / ms.ops.maximum(weights, Tensor(self.model.loss_floors))
        return parts.sum(), parts, weights

    def construct(self, x, extents, *targets):
        return self.gradients(x, extents, targets)
