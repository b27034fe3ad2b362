"""Sparse R-CNN and RepPoints v2 as the rest of the project uses them: training, candidates, arguments, sizes, names."""

import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from focal_twins.files.weights import official_names
from focal_twins.models import ArgumentError, create_model
from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.models.detectors.set_losses import SetLosses
from tests.models.test_training_options import FAMILIES
from tests.reference import formula_value, images
from tests.tasks.detection.small_detection import SETS_AND_POINTS

CANVAS = (32, 64)
X = Tensor(images((2, 3, *CANVAS)))
EXTENTS = ((32, 30), (20, 64))
OBJECTS = (np.array([[2, 3, 20, 28]], np.float32), np.array([[5, 5, 16, 14], [30, 1, 60, 19]], np.float32))


def small(name, family="focal", canvas=CANVAS, **options):
    """A detector on a backbone of two stages, with weights by formula but for the boxes of proposals."""
    arguments = {key: value for key, value in FAMILIES[family].items() if key != "num_classes"}
    arguments |= {"img_size": list(canvas)} | ({} if family == "twins" else {"pretrain_size": 32})
    on = create_model(family, features_only=True, **arguments)
    model = create_model(name, backbone=on, **{"num_classes": 3} | SETS_AND_POINTS[name] | options)
    for key, parameter in official_names(model).items():
        if "topk_cloest" not in key and "proposal_bboxes" not in key:  # a box needs positive sides
            parameter.set_data(Tensor(np.asarray(formula_value(key, parameter.shape))))
    return model


def targets_of(model, objects=OBJECTS):
    maker, generator = pickle.loads(pickle.dumps(model.target_maker())), np.random.default_rng(0)
    both = [
        maker(model.img_size, extent, boxes, np.arange(len(boxes), dtype=np.int32), generator)
        for extent, boxes in zip(EXTENTS, objects, strict=True)
    ]
    assert all(len(arrays) == len(maker.names) for arrays in both)
    return tuple(Tensor(np.stack(arrays)) for arrays in zip(*both, strict=True))


def losses_of(model, objects=OBJECTS):
    extents, targets = Tensor(EXTENTS, ms.int32), targets_of(model, objects)
    sums, weights = model.loss()(model.set_train()(X, extents, targets), targets)
    return sums.asnumpy(), weights.asnumpy()


@pytest.mark.parametrize("name", SETS_AND_POINTS)
@pytest.mark.parametrize("family", ["focal", "twins"])
def test_training_and_detection(name, family):
    model = small(name, family)
    sums, weights = losses_of(model)
    assert len(sums) == len(weights) == len(model.loss_names) == len(model.loss_floors)
    assert np.isfinite(sums).all()
    assert (sums > 0).all()
    assert (weights > 0).all()
    candidates = model.set_train(False)(X, Tensor(EXTENTS, ms.int32)).asnumpy()
    assert candidates.shape == (2, model.candidate_count, SelectionRule.of(model).columns)
    assert np.isfinite(candidates).all()
    assert (candidates[..., 4:] >= 0).all() and (candidates[..., 4:] <= 1).all()


@pytest.mark.parametrize("name", SETS_AND_POINTS)
def test_images_without_objects_have_a_loss(name):
    """Sparse R-CNN's divisor is then 0, which loss_floors replace."""
    model = small(name)
    sums, weights = losses_of(model, (OBJECTS[0][:0], OBJECTS[1][:0]))
    assert np.isfinite(sums).all()
    assert sums[0] > 0
    assert np.maximum(weights, model.loss_floors).min() > 0


@pytest.mark.parametrize("name", SETS_AND_POINTS)
def test_a_batch_is_the_sum_of_its_images(name):
    """So that ranks and accumulated batches can be added up."""
    model, extents = small(name), np.array(EXTENTS, np.int32)
    targets, both = targets_of(model), losses_of(model)
    alone = []
    for i in range(2):
        own = tuple(array[i : i + 1] for array in targets)
        sums, weights = model.loss()(model(X[i : i + 1], Tensor(extents[i : i + 1]), own), own)
        alone.append((sums.asnumpy(), weights.asnumpy()))
    for found, first, second in zip(both, *alone, strict=True):
        np.testing.assert_allclose(found, first + second, rtol=1e-4)


class SumOfSetLosses(nn.Cell):
    """The loss of Sparse R-CNN as a function of logits and boxes alone."""

    def __init__(self, objects, labels):
        super().__init__()
        self.loss = SetLosses(3)
        self.sides, self.targets = Tensor(np.full((2, 1, 4), 64, np.float32)), (Tensor(objects), Tensor(labels))

    def construct(self, logits, boxes):
        sums, _ = self.loss((logits, boxes, self.sides), self.targets)
        return sums.sum()


def test_gradients_past_the_compiled_matching_equal_those_of_operators(graph_mode):
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 30, (2, 2, 9, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(5, 30, corner.shape)], 3).astype(np.float32)
    inputs = Tensor(generator.standard_normal((2, 2, 9, 3)).astype(np.float32)), Tensor(boxes)
    objects = boxes[:, 0, :4] + 1
    labels = np.array([[0, 1, 1, 2], [2, -1, -1, -1]], np.int32)
    compiled = ms.value_and_grad(SumOfSetLosses(objects, labels), (0, 1))(*inputs)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    value, gradients = ms.value_and_grad(SumOfSetLosses(objects, labels), (0, 1))(*inputs)
    assert abs(float(compiled[0]) / float(value) - 1) < 1e-5
    for found, expected in zip(compiled[1], gradients, strict=True):
        np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETS_AND_POINTS)
def test_another_canvas_has_the_same_parameters(name):
    model = small(name)
    other = model.at((64, 32))
    assert {id(p) for p in model.trainable_params()} == {id(p) for p in other.trainable_params()}
    extents = Tensor([(64, 32)], ms.int32)
    found = other.set_train(False)(Tensor(images((1, 3, 64, 32))), extents)
    assert found.shape == (1, other.candidate_count, 7)


def test_candidates_in_padding_have_no_score():
    """Images fill 32 x 32 of the canvas: half of the places."""
    model = small("reppoints_v2").set_train(False)
    scores = model(X, Tensor([(20, 30), (32, 64)], ms.int32)).asnumpy()[..., 4:].max(-1)
    assert (scores[0] > 0).sum() == 8 * 8 + 4 * 4 + 2 * 2
    assert (scores[1] > 0).all()


def test_proposals_begin_at_the_image_and_not_at_the_canvas():
    model = create_model("sparse_rcnn", backbone=small("sparse_rcnn").backbone, **SETS_AND_POINTS["sparse_rcnn"])
    boxes, _ = model.rpn_head(Tensor(np.array([[[30, 20, 30, 20]]], np.float32)))
    np.testing.assert_array_equal(boxes.asnumpy()[0], np.tile([[0, 0, 30, 20]], (12, 1)))


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("sparse_rcnn", {"proposals": 3}, "max_boxes"),
        ("sparse_rcnn", {"num_heads": 3}, "num_heads"),
        ("sparse_rcnn", {"stages": 0}, "stages"),
        ("reppoints_v2", {"channels": 40}, "channels"),
        ("reppoints_v2", {"corner_channels": 8}, "corner_channels"),
        ("reppoints_v2", {"levels": 1}, "levels"),
        ("reppoints_v2", {"max_boxes": 256}, "max_boxes"),
        ("reppoints_v2", {"canvas": (32, 48)}, "img_size"),
    ],
)
def test_arguments_that_cannot_work_are_named(name, arguments, key):
    with pytest.raises(ArgumentError) as error:
        small(name, **arguments)
    assert error.value.argument == key


@pytest.mark.parametrize(
    ("name", "out_indices", "options", "millions"),
    [
        ("sparse_rcnn", (0, 1, 2, 3), {"proposals": 300}, 110.64),
        ("reppoints_v2", (1, 2, 3), {}, 45.82),
    ],
)
def test_parameters_equal_the_published(name, out_indices, options, millions):
    """With tables of neighbours in the last stage, which a classifier of 224 px does not have; see pretrain_size."""
    with no_init_parameters():
        sizes = {"img_size": 224, "pretrain_size": 448}
        backbone = create_model("focal_tiny_patch4_window7_224", features_only=True, out_indices=out_indices, **sizes)
        model = create_model(name, backbone=backbone, **options)
    assert round(sum(parameter.size for parameter in model.trainable_params()) / 1e6, 2) == millions


def test_names_are_those_of_published_checkpoints():
    names = official_names(small("sparse_rcnn")).keys() | official_names(small("reppoints_v2")).keys()
    assert names >= {
        "rpn_head.init_proposal_bboxes.weight",
        "roi_head.bbox_head.1.attention.attn.in_proj_weight",
        "roi_head.bbox_head.0.instance_interactive_conv.dynamic_layer.bias",
        "roi_head.bbox_head.0.ffn.layers.0.0.weight",
        "roi_head.bbox_head.0.reg_fcs.7.weight",
        "neck.bi_fpn.1.lateral_combine_conv.1.gn.weight",
        "neck.bi_fpn.0.out_combine.1.weights",
        "bbox_head.hem_tl.p1_conv1.conv.weight",
        "bbox_head.reppoints_cls_conv.weight",
    }
