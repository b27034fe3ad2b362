"""Mask R-CNN and Cascade Mask R-CNN equal the originals: targets, samples, losses, gradients, detections, masks.

Operator by operator, on maps in place of a backbone and a neck, with the original's own samples. Recipes:
tests/reference/README.md.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.files.weights import official_names
from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.detectors.assign import BACKGROUND, IGNORED, assign_by_iou
from focal_twins.models.detectors.mask_head import pack_bitmaps
from focal_twins.models.detectors.proposals import RULE, Proposals
from focal_twins.models.detectors.rcnn import CascadeRCNN, MaskRCNN
from focal_twins.models.detectors.selection import SelectionRule, select_detections
from focal_twins.models.gathers import rows_of_batch
from focal_twins.tasks.detection.mask_pasting import paste_mask
from tests.reference import FOLDER, figures, formula_value

CANVAS = (128, 160)
EXTENTS = ((120, 150), CANVAS)
ORIGINAL_SIZES = ((100, 120), (107, 128))
SCALE = np.array([1.25, 1.2, 1.25, 1.2], np.float32)  # from the original image to the canvas
SIZES = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))
CLASSES, SAMPLES, OBJECTS, PROPOSALS = 7, 32, 4, 75
NETWORKS = {"mask_rcnn": (MaskRCNN, 41), "cascade_rcnn": (CascadeRCNN, 51)}  # and the seed of the maps
PARTS = ("cls", "bbox", "mask")  # the original's names


class Maps(nn.Cell):
    """In place of a backbone: the maps that it is given for images."""

    out_indices = (0, 1, 2, 3)
    img_size = CANVAS
    in_chans, depths, no_weight_decay = 3, (1,), ()
    feature_maps = tuple(FeatureMap(32, 4 * 2**i, size) for i, size in enumerate(SIZES[:4]))

    def construct(self, maps, drop_path=None):
        return maps


class Unchanged(nn.Cell):
    """In place of a neck."""

    def construct(self, maps):
        return maps


class Given(nn.Cell):
    """In place of a network that proposes boxes: the original's proposals, more of which overlap an object."""

    def __init__(self, boxes, is_proposal):
        super().__init__()
        self.boxes, self.is_proposal = Tensor(boxes), Tensor(is_proposal)

    def construct(self, logits, deltas, extents):
        return self.boxes, self.is_proposal


def network_of(name):
    """The network with weights by formula, on maps, with the original's proposals; and the stored arrays."""
    build, seed = NETWORKS[name]
    arrays = np.load(FOLDER / f"dense/{name}.npz")
    model = build(
        Maps(), num_classes=CLASSES, channels=32, hidden=64, sampling_ratio=0, anchor_samples=64, samples=SAMPLES,
        max_boxes=OBJECTS,
    )  # fmt: skip
    model.neck = Unchanged()
    for key, parameter in official_names(model).items():
        value = formula_value(key, parameter.shape, 1.4)
        factor = {"rpn_reg.weight": 0.1, "fc_reg.weight": 0.2}.get(".".join(key.split(".")[-2:]), 1)
        parameter.set_data(Tensor(value * np.float32(factor)))
    boxes, is_proposal = np.zeros((2, PROPOSALS, 4), np.float32), np.zeros((2, PROPOSALS), np.float32)
    for i in range(2):
        given = arrays[f"roi_proposals_{i}"]
        boxes[i, : len(given)], is_proposal[i, : len(given)] = given, 1
    model.propose = model.propose_in_test = Given(boxes, is_proposal)
    return model, arrays, maps(seed)


def maps(seed):
    generator = np.random.default_rng(seed)
    drawn = [generator.standard_normal((2, 32, *size)).astype(np.float32).reshape(2, 32, -1) for size in SIZES]
    return tuple(Tensor(np.ascontiguousarray(level.transpose(0, 2, 1))) for level in drawn)


def ellipses(boxes):
    """The ground truth's masks: pixels whose centres lie in the ellipses that boxes enclose."""
    y, x = np.mgrid[: CANVAS[0], : CANVAS[1]] + 0.5
    x1, y1, x2, y2 = boxes.astype(np.float64).T.reshape(4, -1, 1, 1)
    return ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1


def padded(values, count):
    """Values with zeros behind them, so that there are `count`."""
    values = np.asarray(values)
    return np.concatenate([values, np.zeros((count - len(values), *values.shape[1:]), values.dtype)])


def keys_that_choose(arrays, image, stage, prefix, width):
    """Keys [width] by which the sampler takes what the original drew, in the original's order.

    The original numbers its candidates without gaps: objects, and then proposals. Behind the first stage these are the
    samples of the stage before, without the objects' own boxes.
    """
    objects = len(arrays[f"gt_boxes_{image}"])
    slots = np.arange(width - OBJECTS)
    if stage:
        own = padded(arrays[f"s{stage - 1}_pos_is_gt_{image}"], SAMPLES)
        slots = np.flatnonzero(own == 0)
    places = np.concatenate([np.arange(objects), OBJECTS + slots])
    drawn = np.concatenate([arrays[f"{prefix}{kind}_inds_{image}"] for kind in ("pos", "neg")])
    chosen = places[drawn]
    keys = np.zeros(width, np.float32)
    keys[np.concatenate([np.setdiff1d(np.arange(width), chosen), chosen[::-1]])] = np.arange(width)
    return keys


def targets_of(arrays, prefixes):
    """The original's targets, as this detector takes them; `prefixes`: of the stages' names."""
    width = OBJECTS + PROPOSALS
    images = []
    for i in range(2):
        boxes = arrays[f"gt_boxes_{i}"]
        labels = np.full(64, -1, np.float32)
        labels[: len(arrays[f"rpn_labels_{i}"])] = arrays[f"rpn_labels_{i}"]
        keys = [keys_that_choose(arrays, i, stage, prefix, width) for stage, prefix in enumerate(prefixes)]
        images.append(
            (
                padded(arrays[f"rpn_index_{i}"], 64), labels, padded(arrays[f"rpn_deltas_{i}"], 64),
                padded(boxes, OBJECTS), padded(arrays[f"gt_labels_{i}"], OBJECTS), np.int32(len(boxes)), np.stack(keys),
                pack_bitmaps(ellipses(boxes), CANVAS, OBJECTS), np.array(CANVAS, np.float32),
            )
        )  # fmt: skip
    return tuple(Tensor(np.stack(array)) for array in zip(*images, strict=True))


def norm(gradient):
    return np.linalg.norm(gradient.asnumpy().astype(np.float64))


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients_equal_the_originals(name):
    model, arrays, levels = network_of(name)
    expected = figures(f"dense/{name}")
    stages = [f"s{i}" for i in range(3)] if name == "cascade_rcnn" else [""]
    targets = targets_of(arrays, [f"{stage}_" if stage else "" for stage in stages])
    loss = model.set_train().loss()
    extents = Tensor(EXTENTS, ms.int32)

    def losses_of(*levels):
        outputs = model(levels, extents, targets)
        sums, weights = loss(outputs, targets)
        return (sums / weights).sum(), sums / weights, outputs

    parameters = model.trainable_params()
    gradient = ms.value_and_grad(losses_of, tuple(range(5)), parameters, has_aux=True)
    (_, losses, outputs), (to_maps, to_parameters) = gradient(*levels)

    figure = [sum(expected["rpn_losses"][f"loss_rpn_{part}"]) for part in ("cls", "bbox")]
    figure += [expected["losses"][f"{stage}.loss_{p}".lstrip(".")] for stage in stages for p in PARTS]
    np.testing.assert_allclose(losses.asnumpy(), figure, rtol=1e-5)
    assert len(model.loss_names) == len(figure)
    names = {id(parameter): key for key, parameter in official_names(model).items()}
    norms = {names[id(p)]: norm(value) for p, value in zip(parameters, to_parameters, strict=True)}
    assert norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(norms.values()), [expected["grad_norms"][key] for key in norms], rtol=1e-3)
    np.testing.assert_allclose([norm(g) for g in to_maps], expected["input_grad_norms"], rtol=1e-3, atol=1e-9)
    for i, stage in enumerate(stages):
        boxes, matched, is_sample, scores = outputs[2 + 6 * i : 6 + 6 * i]
        figure = arrays[f"{stage}_cls_score".lstrip("_")]
        assert np.abs(scores.asnumpy().reshape(figure.shape) - figure).max() < 1e-4 * np.abs(figure).max()
        assert (is_sample.asnumpy() == 1).all()
        for image in range(2):
            numbers = arrays[f"{stage}_pos_gt_{image}".lstrip("_")]
            np.testing.assert_array_equal(matched.asnumpy()[image, : len(numbers)], numbers)
            assert (matched.asnumpy()[image, len(numbers) :] == -1).all()
            if i:  # moved by the stage before
                np.testing.assert_allclose(boxes.asnumpy()[image], arrays[f"{stage}_rois_{image}"], atol=1e-3)
    if name == "mask_rcnn":
        boxes, matched, masks = outputs[2], outputs[3], outputs[7]
        assert np.abs(masks.asnumpy().reshape(-1, 28, 28)[::4] - arrays["mask_logits"]).max() < 1e-4
        numbers = rows_of_batch(ops.maximum(matched[:, :8], 0), 2, OBJECTS)
        frames = Tensor(np.tile(np.array(CANVAS, np.float32), (16, 1)))
        cut = loss.mask_targets(targets[7].reshape((-1, *targets[7].shape[2:])), boxes[:, :8].reshape((-1, 4)), numbers,
                                frames)  # fmt: skip
        expected_masks = np.unpackbits(arrays["mask_targets"])[: cut.size].reshape(cut.shape)
        np.testing.assert_array_equal(cut.asnumpy(), expected_masks)


@pytest.mark.parametrize("name", NETWORKS)
def test_detections_and_masks_equal_the_originals(name):
    model, arrays, levels = network_of(name)
    candidates, pyramid = model.set_train(False)(levels, Tensor(EXTENTS, ms.int32))
    rule = SelectionRule.of(model, max_detections=20)
    found = [
        select_detections(of_image, rule, extent)
        for of_image, extent in zip(candidates.asnumpy(), EXTENTS, strict=True)
    ]
    boxes, labels = np.stack([f.boxes for f in found]), np.stack([f.labels for f in found])
    masks = model.mask_cell()(pyramid, Tensor(boxes), Tensor(labels)).asnumpy()
    for i, detections in enumerate(found):
        if name == "mask_rcnn":  # stored in this order, too
            np.testing.assert_array_equal(detections.labels, arrays[f"nms_labels_{i}"])
            np.testing.assert_allclose(detections.boxes / SCALE, arrays[f"nms_boxes_{i}"][:, :4], atol=1e-3)
        order = np.argsort(detections.labels, kind="stable")  # the original's results are lists of each class
        figure = arrays[f"det_boxes_{i}"]
        np.testing.assert_array_equal(detections.labels[order], arrays[f"det_labels_{i}"])
        np.testing.assert_allclose(detections.boxes[order] / SCALE, figure[:, :4], atol=1e-3)
        np.testing.assert_allclose(detections.scores[order], figure[:, 4], rtol=1e-5)
        height, width = ORIGINAL_SIZES[i]
        pasted = np.unpackbits(arrays[f"det_masks_{i}"])[: 20 * height * width].reshape(20, height, width)
        for mask, box, expected in zip(masks[i][order], detections.boxes[order] / SCALE, pasted, strict=True):
            assert (paste_mask(mask, box, (height, width)) != expected).sum() <= 1


def test_anchors_and_proposals_equal_the_originals():
    model, arrays, levels = network_of("mask_rcnn")
    logits, deltas = model.rpn_head(ms.ops.concat(levels, 1))
    anchors = model.anchors
    for i, extent in enumerate(EXTENTS):
        assert anchors.valid(extent).all()
        match = assign_by_iou(anchors.boxes, arrays[f"gt_boxes_{i}"], RULE)
        numbers = np.select([match == IGNORED, match == BACKGROUND], [-1, 0], match + 1)
        np.testing.assert_array_equal(numbers, arrays["rpn_assigned"][i])
    boxes, is_proposal = Proposals(anchors, 150, 60, 0.7)(logits, deltas, Tensor(EXTENTS, ms.int32))
    assert (is_proposal.asnumpy() == 1).all()
    for i in range(2):
        np.testing.assert_allclose(boxes.asnumpy()[i], arrays[f"proposals_{i}"], atol=1e-3)
