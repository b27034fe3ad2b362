"""Layers and matching of RepPoints v2 alone: deformable convolution, corners, matching in the graph, targets."""

import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.models.deformable import PlacesOnLevels, SharedDeformableConv
from focal_twins.models.detectors.assign import NEAREST, assign_by_centres
from focal_twins.models.detectors.corners import CornerPool, CornerRefinement
from focal_twins.models.detectors.graph_atss import GraphATSS
from focal_twins.models.detectors.point_losses import FACTORS, RepPointsLosses
from focal_twins.models.detectors.point_targets import BEYOND, PointTargets, corner_radius, places_of_levels
from focal_twins.models.level_layers import SharedConv, level_spans

SIZES = ((4, 6), (2, 3))
LENGTH = 30


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# --- deformable convolution -----------------------------------------------------------------------------------------


def cells_of_places():
    """The row and column [1, L, 1] of each token on its level."""
    places = [np.divmod(np.arange(height * width), width) for height, width in SIZES]
    return (np.concatenate(axis).reshape(1, -1, 1).astype(np.float32) for axis in zip(*places, strict=True))


def test_taps_at_their_own_cells_make_a_convolution():
    """Beyond a level's edge they see zeros, not the tokens of another level or image."""
    plain, deformable = SharedConv(3, 4, 3, SIZES, has_bias=False), SharedDeformableConv(3, 4, 3)
    deformable.weight = plain.weight
    (row, column), (down, across) = cells_of_places(), np.divmod(np.arange(9), 3)
    places = [np.tile(axis, (2, 1, 1)) for axis in (row + down - 1.0, column + across - 1.0)]
    cells = PlacesOnLevels(SIZES, 9)(*(Tensor(axis.astype(np.float32)) for axis in places))
    x = Tensor(drawn(2, LENGTH, 3))
    np.testing.assert_allclose(deformable(x, *cells).asnumpy(), plain(x).asnumpy(), atol=1e-5)


def test_between_cells_values_are_interpolated():
    """A linear map has its own values between cells, and gradients by the places are its slopes."""
    row, column = cells_of_places()
    values = Tensor((2 * row + 5 * column).astype(np.float32))
    conv, around = SharedDeformableConv(1, 1, 1), PlacesOnLevels(SIZES, 1)
    conv.weight.set_data(Tensor(np.ones((1, 1, 1, 1), np.float32)))
    inside = np.zeros((1, LENGTH, 1), np.float32)
    inside[:, [7, 8, 9, 13, 24]] = 1  # whose lower right cells are on the map
    rows, columns = Tensor(row + 0.25 * inside), Tensor(column + 0.5 * inside)

    def value(rows, columns):
        return (conv(values, *around(rows, columns)) * Tensor(inside)).sum()

    found, (by_rows, by_columns) = ms.value_and_grad(value, (0, 1))(rows, columns)
    expected = ((2 * row + 5 * column + 0.5 + 2.5) * inside).sum()
    assert abs(float(found) / expected - 1) < 1e-6
    np.testing.assert_allclose(by_rows.asnumpy(), 2 * inside, atol=1e-5)
    np.testing.assert_allclose(by_columns.asnumpy(), 5 * inside, atol=1e-5)


class SumAtPlaces(nn.Cell):
    """A deformable convolution as a function of tokens and places, summed up by random factors."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.around, self.factors = conv, PlacesOnLevels(SIZES, 9), Tensor(drawn(2, LENGTH, 4, seed=1))

    def construct(self, x, rows, columns):
        return (self.conv(x, *self.around(rows, columns)) * self.factors).sum()


def test_the_compiled_gradients_equal_those_of_operators(graph_mode):
    (row, column), conv = cells_of_places(), SharedDeformableConv(3, 4, 3)
    places = [
        Tensor((axis + 2 * drawn(2, LENGTH, 9, seed=i)).astype(np.float32)) for i, axis in enumerate((row, column))
    ]
    inputs = Tensor(drawn(2, LENGTH, 3)), *places
    compiled = ms.grad(SumAtPlaces(conv), (0, 1, 2), conv.trainable_params())(*inputs)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    expected = ms.grad(SumAtPlaces(conv), (0, 1, 2), conv.trainable_params())(*inputs)
    for found, other in zip((*compiled[0], *compiled[1]), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(found.asnumpy(), other.asnumpy(), atol=1e-5)


# --- corners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "axis", "backwards"), [
    ((1, 0), 0, True), ((-1, 0), 0, False), ((0, 1), 1, True), ((0, -1), 1, False),
])  # fmt: skip
def test_corner_pooling_takes_the_largest_value_in_a_direction(direction, axis, backwards):
    x = drawn(2, LENGTH, 3)
    expected = []
    for (first, end), size in zip(level_spans(SIZES), SIZES, strict=True):
        maps = x[:, first:end].reshape(2, *size, 3)
        order = np.flip(maps, axis + 1) if backwards else maps
        pooled = np.maximum.accumulate(order, axis + 1)
        expected.append((np.flip(pooled, axis + 1) if backwards else pooled).reshape(2, -1, 3))
    np.testing.assert_array_equal(CornerPool(SIZES, direction)(Tensor(x)).asnumpy(), np.concatenate(expected, 1))


def test_corners_move_to_the_hottest_of_four_cells():
    heat, offsets = np.full((1, 24, 2), -5, np.float32), np.zeros((1, 24, 4), np.float32)
    heat[0, 1 * 6 + 2, 0] = 3  # top left: row 1, column 2
    heat[0, 3 * 6 + 5, 1] = 3  # bottom right: row 3, column 5
    offsets[0, 1 * 6 + 2, :2], offsets[0, 3 * 6 + 5, 2:] = (0.25, -0.5), (0.5, 0.125)
    boxes = np.array([[[9, 8, 47, 30], [30, 2, 15, 31]]], np.float32)  # of stride 8
    found = CornerRefinement((4, 6), 8)(*map(Tensor, (boxes, heat, offsets))).asnumpy()[0]
    np.testing.assert_allclose(found[0], [(2 + 0.25) * 8, (1 - 0.5) * 8, (5 + 0.5) * 8, (3 + 0.125) * 8])
    # No corner near: of equally hot cells the first, that of the corner itself.
    np.testing.assert_allclose(found[1], [24, 0, 8, 16])


# --- matching -------------------------------------------------------------------------------------------------------


def boxes_around(sizes, strides, seed):
    """Boxes [L, 4] of random sides near the places of all levels, and objects."""
    generator = np.random.default_rng(seed)
    middles = np.concatenate(
        [
            (np.stack(np.divmod(np.arange(h * w), w)[::-1], 1) + generator.random((h * w, 2))) * stride
            for (h, w), stride in zip(sizes, strides, strict=True)
        ]
    )
    half = generator.uniform(4, 30, middles.shape)
    corner = generator.uniform(0, 40, (5, 2))
    objects = np.concatenate([corner, corner + generator.uniform(10, 50, (5, 2))], 1)
    return np.concatenate([middles - half, middles + half], 1).astype(np.float32), objects.astype(np.float32)


def matched(sizes, boxes, valid, objects, counts, few_places):
    padded = np.arange(objects.shape[1]) < np.asarray(counts)[:, None]
    return GraphATSS(sizes)(*map(Tensor, (boxes, valid.astype(np.float32), objects, padded, few_places))).asnumpy()


def test_matching_in_the_graph_equals_that_of_the_workers():
    sizes, strides = ((10, 12), (5, 6)), (8, 16)
    boxes, objects = zip(*(boxes_around(sizes, strides, seed) for seed in range(3)), strict=True)
    few = np.full((3, 2, NEAREST), -1, np.int32)
    valid, counts = np.ones((3, 150)), [5, 2, 0]
    found = matched(sizes, np.stack(boxes), valid, np.stack(objects), counts, few)
    for i, count in enumerate(counts):
        np.testing.assert_array_equal(found[i], assign_by_centres(boxes[i], objects[i][:count], (120, 30)))
    assert (found[0] >= 0).sum() > 5


def test_places_beyond_the_image_have_no_part():
    """The same as if their boxes were far away."""
    sizes, strides = ((10, 12), (5, 6)), (8, 16)
    boxes, objects = boxes_around(sizes, strides, 1)
    valid = np.random.default_rng(0).random(150) < 0.6
    far = np.where(valid[:, None], boxes, 1e4).astype(np.float32)
    few = np.full((1, 2, NEAREST), -1, np.int32)
    found = matched(sizes, boxes[None], valid[None], objects[None], [5], few)[0]
    np.testing.assert_array_equal(found, assign_by_centres(far, objects, (120, 30)))
    assert (found[~valid] < 0).all()


def test_levels_of_few_places_count_some_of_them_twice():
    """The third level has 6 places: with 3 drawn again, its overlaps count nine times in mean and deviation."""
    sizes, strides = ((10, 12), (5, 6), (2, 3)), (8, 16, 32)
    boxes, objects = boxes_around(sizes, strides, 2)
    few = np.full((1, 3, NEAREST), -1, np.int32)
    few[0, 2] = 150 + np.array([0, 1, 2, 3, 4, 5, 1, 4, 4])
    found = matched(sizes, boxes[None], np.ones((1, 156)), objects[None], [5], few)[0]
    repeated = np.concatenate([boxes[:150], boxes[few[0, 2]]])  # as a level of nine boxes
    expected = assign_by_centres(repeated, objects, (120, 30, NEAREST))
    np.testing.assert_array_equal(found, expected[:156])


# --- targets --------------------------------------------------------------------------------------------------------

MAKE = PointTargets(3, (8, 16, 32), max_boxes=4)
BOXES, LABELS = np.array([[4, 4, 30, 28], [20, 8, 60, 50]], np.float32), np.array([2, 0], np.int32)


def targets(extent=(60, 90), boxes=BOXES, labels=LABELS, seed=0):
    made = pickle.loads(pickle.dumps(MAKE))((64, 96), extent, boxes, labels, np.random.default_rng(seed))
    return dict(zip(MAKE.names, made, strict=True))


def test_places_of_a_dozen_canvases_are_kept():
    listed = [places_of_levels((32, 32 * width), (8, 16)) for width in range(1, 13)]
    assert all(places_of_levels((32, 32 * width), (8, 16)) is places for width, places in enumerate(listed, 1))


def test_targets_have_shapes_of_the_canvas():
    shapes = {name: array.shape for name, array in targets().items()}
    assert shapes == {name: array.shape for name, array in targets(boxes=BOXES[:0], labels=LABELS[:0]).items()}
    assert shapes == {name: array.shape for name, array in targets(extent=(33, 40)).items()}
    assert shapes["starts"] == (8 * 12 + 4 * 6 + 2 * 3,)
    assert shapes["semantics"] == (8 * 12, 3)


def test_the_image_ends_at_a_whole_multiple_of_32():
    """What was drawn outside of it is no target, nor is it background."""
    found = targets(extent=(20, 33), boxes=BOXES[:1], labels=LABELS[:1])
    beyond = found["heat"][: 8 * 12, 0].reshape(8, 12) == BEYOND
    np.testing.assert_array_equal(beyond, ~np.pad(np.ones((4, 8), bool), ((0, 4), (0, 4))))


def test_few_places_are_drawn_by_key():
    """Of the last level, which has 2 x 3 places in the image; the others have at least nine."""
    few = targets()["few_places"]
    assert (few[:2] == -1).all()
    assert sorted(set(few[2])) == list(range(120, 126))
    assert few[2, :6].tolist() == list(range(120, 126))
    np.testing.assert_array_equal(few, targets()["few_places"])
    assert any((few != targets(seed=seed)["few_places"]).any() for seed in range(1, 5))


def test_of_two_objects_with_one_nearest_place_the_nearer_has_it():
    boxes = np.array([[6, 6, 42, 42], [8, 8, 40, 40]], np.float32)  # both begin at (24, 24) of the first level
    found = targets(boxes=np.concatenate([boxes + 3, boxes]), labels=np.array([0, 1, 2, 0], np.int32))
    assert sorted(found["starts"][found["starts"] >= 0].tolist()) == [2]


def test_the_smallest_object_of_a_class_covers_a_cell():
    boxes = np.array([[0, 0, 95, 63], [10, 10, 30, 30], [10, 10, 20, 20]], np.float32)
    covering = targets(boxes=boxes, labels=np.array([1, 1, 0], np.int32))["semantics"].reshape(8, 12, 3)
    assert covering[0, 0].tolist() == [0, 1, 0]
    assert covering[1, 1].tolist() == [3, 2, 0]
    assert covering[3, 3].tolist() == [0, 2, 0]
    assert covering[4, 4].tolist() == [0, 1, 0]


def test_of_too_many_objects_some_are_drawn():
    boxes = np.tile(BOXES, (4, 1)) + np.arange(8, dtype=np.float32)[:, None]
    found = targets(boxes=boxes, labels=np.arange(8, dtype=np.int32) % 3)
    assert (found["labels"] >= 0).all()
    assert {tuple(box) for box in found["boxes"]} <= {tuple(box) for box in boxes}


def test_corners_within_the_radius_leave_boxes_that_fit():
    width, height = np.array([40.0, 100.0, 12.0]), np.array([30.0, 20.0, 90.0])
    radius = corner_radius(width, height)
    inner = (width - 2 * radius) * (height - 2 * radius) / (width * height)
    outer = width * height / ((width + 2 * radius) * (height + 2 * radius))
    shifted = (width - radius) * (height - radius)
    shifted = shifted / (2 * width * height - shifted)
    np.testing.assert_allclose(np.minimum(np.minimum(inner, outer), shifted), 0.7, rtol=1e-6)


# --- losses ---------------------------------------------------------------------------------------------------------


def outputs_for(sizes, classes=3):
    length = sum(h * w for h, w in sizes)
    widths = (classes, 18, 18, 2, 4, classes)
    return tuple(Tensor(drawn(2, length, width, seed=i)) for i, width in enumerate(widths))


def losses_of(outputs, made):
    batch = tuple(Tensor(np.stack(arrays)) for arrays in zip(*made, strict=True))
    sums, weights = RepPointsLosses(((8, 12), (4, 6), (2, 3)), (8, 16, 32), 3)(outputs, batch)
    return dict(zip(FACTORS, sums.asnumpy(), strict=True)), dict(zip(FACTORS, weights.asnumpy(), strict=True))


def test_images_without_objects_teach_the_background():
    outputs, empty = outputs_for(((8, 12), (4, 6), (2, 3))), targets(boxes=BOXES[:0], labels=LABELS[:0])
    sums, weights = losses_of(outputs, [tuple(empty.values())] * 2)
    assert all(np.isfinite(value) for value in sums.values())
    assert {name for name, value in sums.items() if value > 0} == {
        "classification",
        "top_left_corners",
        "bottom_right_corners",
        "semantic_background",
    }
    counted = ("classification", "first_boxes", "bottom_right_offsets")
    assert [weights[name] for name in counted] == [2, 2, 2]  # an image counts at least once
    assert weights["semantic_objects"] == weights["semantic_background"] == 0  # which loss_floors replace


def test_the_compiled_losses_equal_the_operators(graph_mode):
    outputs = outputs_for(((8, 12), (4, 6), (2, 3)))
    made = [tuple(targets().values()), tuple(targets(boxes=BOXES[:1], labels=LABELS[:1]).values())]
    compiled = losses_of(outputs, made)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for found, expected in zip(compiled, losses_of(outputs, made), strict=True):
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_what_lies_beyond_the_image_has_no_loss():
    found = targets(extent=(32, 60), boxes=BOXES[:1], labels=LABELS[:1])
    outputs, made = outputs_for(((8, 12), (4, 6), (2, 3))), [tuple(found.values())] * 2
    valid = found["heat"][:, 0] >= 0
    changed = tuple(Tensor(np.where(valid[:, None], x.asnumpy(), x.asnumpy() + 1)) for x in outputs)
    for found, expected in zip(losses_of(changed, made), losses_of(outputs, made), strict=True):
        for name in FACTORS:
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name
