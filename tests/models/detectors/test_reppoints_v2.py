"""RepPoints v2 equals the original: its neck, outputs, targets, matching, losses, gradients and detections."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.files.weights import official_names
from src.models.backbones.backbone import FeatureMap
from src.models.bifpn import BiFPN
from src.models.detectors.graph_atss import GraphATSS
from src.models.detectors.point_losses import FACTORS, RepPointsLosses, box_of_points, places_of_tokens
from src.models.detectors.point_targets import PointTargets
from src.models.detectors.reppoints_v2 import PointCandidates, RepPointsV2Head
from src.models.detectors.selection import SelectionRule, select_detections
from src.models.level_layers import level_spans
from tests.reference import FOLDER, figures, formula_value

STRIDES = (8, 16, 32, 64, 128)
SIZES = ((48, 48), (24, 24), (12, 12), (6, 6), (3, 3))
FRAME = (384, 384)
CLASSES = 7
ADDED = {
    "reppoints_cls_out.bias": -3,
    "reppoints_hem_tl_score_out.bias": -2,
    "reppoints_hem_br_score_out.bias": -2,
    "reppoints_sem_out.bias": -3,
}


@pytest.fixture(scope="module")
def stored():
    return np.load(FOLDER / "dense/reppointsv2.npz")


def drawn_maps(seed, batch, channels, sizes):
    generator = np.random.default_rng(seed)
    return [
        Tensor(generator.standard_normal((batch, c, *size)).astype(np.float32).reshape(batch, c, -1).transpose(0, 2, 1))
        for c, size in zip(channels, sizes, strict=True)
    ]


class Holder(nn.Cell):
    """Gives a part the prefix of its names in the original."""

    def __init__(self, name, part):
        super().__init__()
        setattr(self, name, part)
        for key, parameter in official_names(self).items():
            value = formula_value(key, parameter.shape, 1.4)
            if key.endswith(".weights"):
                value = 1 + 0.1 * np.random.default_rng(__import__("zlib").crc32(key.encode())).standard_normal(parameter.shape)
            value = value + sum(number for end, number in ADDED.items() if key.endswith(end))
            if key.endswith("gn1.weight"):
                value += 1
            if key.endswith("reppoints_pts_init_out.bias"):
                value[:2] -= 2
                value[2:4] += 2
            parameter.set_data(Tensor(value.astype(np.float32)))


def test_neck(stored):
    sizes, channels = ((26, 38), (13, 19), (7, 10)), (16, 24, 48)
    maps = [FeatureMap(c, 8 * 2**i, size) for i, (c, size) in enumerate(zip(channels, sizes, strict=True))]
    neck = Holder("neck", BiFPN(maps, 32)).neck
    outputs = neck(tuple(drawn_maps(72, 1, channels, sizes)))
    for level, (out, m) in enumerate(zip(outputs, neck.feature_maps, strict=True)):
        expected = stored[f"neck_{level}"]
        found = out.asnumpy().transpose(0, 2, 1).reshape(1, 32, *m.size)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), level


def test_head(stored, monkeypatch):
    head = Holder("bbox_head", RepPointsV2Head(SIZES, 32, 32, CLASSES))
    x = ms.ops.concat(drawn_maps(73, 2, (32,) * 5, SIZES), 1)
    names = ("cls", "pts_init", "pts_refine", "hm_score", "hm_offset", "sem")
    outputs = head.bbox_head(x)
    for name, out in zip(names, outputs, strict=True):
        for level, ((first, end), size) in enumerate(zip(level_spans(SIZES), SIZES, strict=True)):
            expected = stored[f"{name}_{level}"]
            found = out[:, first:end].asnumpy().transpose(0, 2, 1).reshape(expected.shape)
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), (name, level)

    # targets
    make = PointTargets(CLASSES, STRIDES, 10)
    generator = np.random.default_rng(0)
    per_image = [
        make(FRAME, FRAME, stored[f"gt_boxes_{i}"], stored[f"gt_labels_{i}"].astype(np.int32), generator) for i in (0, 1)
    ]
    targets = dict(zip(make.names, (np.stack(values) for values in zip(*per_image, strict=True)), strict=True))
    np.testing.assert_array_equal(np.where(targets["starts"] >= 0, np.take_along_axis(targets["labels"], np.maximum(targets["starts"], 0), 1), CLASSES), stored["init_labels"])
    np.testing.assert_array_equal(targets["starts"] >= 0, stored["init_box_weights"] > 0)
    for i in range(2):
        matched = np.flatnonzero(targets["starts"][i] >= 0)
        np.testing.assert_array_equal(targets["boxes"][i][targets["starts"][i][matched]], stored["init_box_targets"][i][matched])
    np.testing.assert_allclose(targets["heat"][..., 0], stored["target_hm_tl"], atol=1e-6)
    np.testing.assert_allclose(targets["heat"][..., 1], stored["target_hm_br"], atol=1e-6)
    np.testing.assert_allclose(targets["corner_offsets"][..., :2], stored["target_offset_tl"], atol=1e-6)
    np.testing.assert_allclose(targets["corner_offsets"][..., 2:], stored["target_offset_br"], atol=1e-6)
    sem = np.unpackbits(stored["sem_map_packed"])[: 2 * 7 * 48 * 48].reshape(2, 7, -1).transpose(0, 2, 1)
    np.testing.assert_array_equal(targets["semantics"] > 0, sem > 0)
    # matching
    loss = RepPointsLosses(SIZES, STRIDES, CLASSES)
    tensors = tuple(Tensor(v) for v in targets.values())
    places, strides = places_of_tokens(SIZES, STRIDES)
    boxes = box_of_points(outputs[1]) * strides + places
    matches = GraphATSS(SIZES)(boxes, ms.ops.ones(boxes.shape[:2], ms.float32), tensors[0], tensors[1] >= 0, tensors[6]).asnumpy()
    labels = np.where(matches >= 0, np.take_along_axis(targets["labels"], np.maximum(matches, 0), 1), CLASSES)
    np.testing.assert_array_equal(labels, stored["refine_labels"])
    # losses
    def losses_of(x):
        sums, weights = loss(head.bbox_head(x), tensors)
        parts = sums / weights
        return parts.sum(), parts, weights
    expected = figures("dense/reppointsv2")
    parameters = head.trainable_params()
    (_, parts, weights), (to_x, gradients) = ms.value_and_grad(losses_of, 0, parameters, has_aux=True)(x)
    parts = dict(zip(FACTORS, parts.asnumpy().tolist()))
    print(parts, weights)
    w = expected["losses"]
    for key, value in {"loss_cls": parts["cls"], "loss_pts_init": parts["pts_init"], "loss_pts_refine": parts["pts_refine"],
      "loss_heatmap": parts["heatmap_tl"] + parts["heatmap_br"], "loss_offset": parts["offset_tl"]+parts["offset_br"], "loss_sem": parts["sem_objects"]+parts["sem_background"]}.items():
        assert abs(value / np.sum(w[key]) - 1) < 1e-5, key
    names = {id(p): n for n, p in official_names(head).items()}
    norms = {names[id(p)]: np.linalg.norm(g.asnumpy().astype(np.float64)) for p, g in zip(parameters, gradients, strict=True)}
    assert norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(norms.values()), [expected["grad_norms"][k] for k in norms], rtol=1e-3)
    found = [np.linalg.norm(to_x[:, a:b].asnumpy().astype(np.float64)) for a, b in level_spans(SIZES)]
    np.testing.assert_allclose(found, expected["input_grad_norms"], rtol=1e-3)
    # detections
    choose = PointCandidates(FRAME, SIZES, STRIDES, 1000)
    extents = np.array([[360, 350], [384, 384]], np.int32)
    from src.models.detectors import reppoints_v2
    monkeypatch.setattr(reppoints_v2, "stands_on_image", lambda places, extents: ms.ops.ones((2, places.shape[1]), ms.float32))
    cands = choose(outputs, Tensor(extents)).asnumpy()
    rule = SelectionRule(CLASSES, False, False, 0.05, 0.6, 100)
    scale = np.array([1.25, 1.2, 1.25, 1.2], np.float32)
    for i in range(2):
        found = select_detections(cands[i], rule, tuple(extents[i]))
        print(len(found.boxes))
        np.testing.assert_allclose(found.scores, stored[f"det_boxes_{i}"][:, 4], rtol=1e-4)
        np.testing.assert_array_equal(found.labels, stored[f"det_labels_{i}"])
        np.testing.assert_allclose(found.boxes / scale, stored[f"det_boxes_{i}"][:, :4], atol=1e-2)
