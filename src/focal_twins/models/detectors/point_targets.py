"""Makes the targets of RepPoints v2 (arXiv 2007.08508) that follow from the objects alone, in NumPy.

Sources: core/bbox/assigners/point_assigner_v2.py and point_hm_assigner.py, datasets/pipelines/loading.py of
SwinTransformer/Swin-Transformer-Object-Detection. All computes in float32, as there.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from focal_twins.models.detectors.anchors import map_sizes, padded_extent
from focal_twins.models.detectors.assign import NEAREST
from focal_twins.models.detectors.detector import TargetMaker
from focal_twins.models.detectors.padded_objects import padded_objects
from focal_twins.models.level_layers import level_spans

POINT_SCALE = 4  # strides that the side of an object has on the level whose point starts from it
CORNER_IOU = 0.7  # how well a box with a displaced corner has to fit for the corner to count as nearly right
BEYOND = -1.0  # heat of places beyond the image, which no loss counts


class PointTargets(TargetMaker):
    """Makes RepPoints v2's targets of an image.

    Its arrays, for L places of all levels:

    - boxes [max_boxes, 4] float32 and labels [max_boxes] int32 of the objects; behind them zeros, and labels of -1. Of
      more objects than max_boxes, so many are drawn.
    - starts [L] int32: the object that the place starts from, the place nearest to the object's middle on the level of
      its size; -1 for none.
    - heat [L, 2] float32 of top left and bottom right corners: 1 at the place nearest to a corner, less around it;
      BEYOND outside the image.
    - corner_offsets [L, 4] float32: where heat is 1, (x, y) from the place to the top left corner in strides, then to
      the bottom right one.
    - semantics [l, C] uint8, for the l places of the largest map: the smallest object of each class whose box covers
      the cell, counted from 1; 0 for none.
    - few_places [levels, NEAREST] int32: for a level with fewer places in the image than GraphATSS considers for an
      object, all of these and some of them drawn once more, to be as many; -1 for the others.

    Args:
        num_classes: C.
        strides: of the levels.
        max_boxes: at most 255.
    """

    names = ("boxes", "labels", "starts", "heat", "corner_offsets", "semantics", "few_places")

    def __init__(self, num_classes: int, strides: Sequence[int], max_boxes: int):
        self.num_classes, self.strides, self.max_boxes = num_classes, tuple(strides), max_boxes

    def __call__(self, canvas, extent, boxes, labels, generator, masks=None):
        sizes = map_sizes(canvas, self.strides)
        padded_boxes, padded_labels = padded_objects(boxes, labels, self.max_boxes, generator)
        count = min(len(boxes), self.max_boxes)
        boxes, labels = padded_boxes[:count], padded_labels[:count]
        levels = places_of_levels(canvas, self.strides)
        valid = [(places < padded_extent(extent)[::-1]).all(axis=1) for places in levels]
        starts = starting_points(levels, valid, self.strides, boxes)
        heat, offsets = corner_heat(levels, valid, self.strides, boxes)
        semantics = smallest_covering(sizes[0], self.strides[0], boxes, labels, self.num_classes)
        few = few_places(valid, level_spans(sizes), generator)
        return padded_boxes, padded_labels, starts, heat, offsets, semantics, few


@lru_cache(maxsize=64)  # more than there are canvases
def places_of_levels(canvas: tuple[int, int], strides: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return (x, y) [L, 2] float32 in pixels of the places of each level; they are the corners of the maps' cells."""
    levels = []
    for (height, width), stride in zip(map_sizes(canvas, strides), strides, strict=True):
        row, column = np.divmod(np.arange(height * width), width)
        levels.append(np.stack([column, row], axis=1).astype(np.float32) * np.float32(stride))
    return tuple(levels)


def starting_points(
    levels: Sequence[np.ndarray], valid: Sequence[np.ndarray], strides: Sequence[int], boxes: np.ndarray
) -> np.ndarray:
    """Find the place of one level that starts from each object: [L] int32 of object numbers, -1 for none.

    The level is that on which the object has some POINT_SCALE strides, the place the nearest to its middle, in sides of
    the object. A place that is the nearest to several objects starts from the one that is nearest to it.

    Args:
        levels: (x, y) [l, 2] of each level's places. valid: [l], which of them are on the image.
        boxes: [n, 4] float32.
    """
    found = [np.full(len(places), -1, np.int32) for places in levels]
    exponents = np.log2(np.asarray(strides)).astype(int)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(1e-6))
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    wanted = np.log2(sides / np.float32(POINT_SCALE)).sum(axis=1) / 2
    wanted = np.clip(wanted.astype(int), exponents[0], exponents[-1])
    for exponent, places, inside, starts in zip(exponents, levels, valid, found, strict=True):
        candidates, objects = np.flatnonzero(inside), np.flatnonzero(wanted == exponent)
        if len(objects) == 0:
            continue
        away = (places[candidates, None] - middles[objects]) / sides[objects]
        distance = np.sqrt(np.square(away).sum(axis=2))  # [places, objects]
        nearest = distance.argmin(axis=0)
        least = distance[nearest, np.arange(len(objects))]
        order = np.lexsort((-np.arange(len(objects)), -least))  # from the furthest on, and so that the first one wins
        starts[candidates[nearest[order]]] = objects[order]
    return np.concatenate(found)


def corner_heat(
    levels: Sequence[np.ndarray], valid: Sequence[np.ndarray], strides: Sequence[int], boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return heat [L, 2] and offsets [L, 4] of the objects' corners on every level, see PointTargets.

    Around a corner, heat falls with the distance in pixels as a Gaussian, up to the radius within which a box with a
    displaced corner still fits.

    Args:
        levels, valid, boxes: see starting_points.
    """
    heat = [np.where(inside[:, None], np.zeros((len(inside), 2), np.float32), np.float32(BEYOND)) for inside in valid]
    offsets = [np.zeros((len(inside), 4), np.float32) for inside in valid]
    radius = corner_radius(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    spread = 2 * np.square((2 * radius + 1) / 6)
    for stride, places, inside, hot, moved in zip(strides, levels, valid, heat, offsets, strict=True):
        candidates = np.flatnonzero(inside)
        if len(boxes) == 0:
            continue
        for corner in range(2):
            targets = boxes[:, 2 * corner : 2 * corner + 2]
            distance = np.sqrt(np.square(places[candidates, None] - targets).sum(axis=2))  # [places, objects]
            around = np.where(distance < radius, np.exp(-np.square(distance) / spread), 0)
            hot[candidates, corner] = around.max(axis=1)
            nearest = candidates[distance.argmin(axis=0)]  # of several objects with one nearest place, the last counts
            hot[nearest, corner] = 1
            moved[nearest, 2 * corner : 2 * corner + 2] = (targets - places[nearest]) / np.float32(stride)
    return np.concatenate(heat), np.concatenate(offsets)


def corner_radius(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return how far [n], in pixels, corners may move while the box still overlaps the object by CORNER_IOU.

    It is the least of three cases: one corner moves into the object and the other out of it, both in, or both out.
    """
    total, area, share = width + height, width * height, np.float32(CORNER_IOU)
    both = (total - np.sqrt(np.square(total) - 4 * area * (1 - share) / (1 + share))) / 2
    inner = (2 * total - np.sqrt(4 * np.square(total) - 16 * (1 - share) * area)) / 8
    outer_b = -2 * share * total
    outer = (outer_b + np.sqrt(np.square(outer_b) - 16 * share * (share - 1) * area)) / (8 * share)
    return np.minimum(np.minimum(both, inner), outer)


def smallest_covering(
    size: tuple[int, int], stride: int, boxes: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return the number [h * w, C] uint8, from 1, of the smallest object of each class that covers a cell; 0 for none.

    A box covers every cell that it touches.
    """
    covering = np.zeros((*size, num_classes), np.uint8)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(area, kind="stable")[::-1]:
        x1, y1, x2, y2 = (boxes[i] / stride).astype(int)
        covering[y1 : y2 + 1, x1 : x2 + 1, labels[i]] = i + 1
    return covering.reshape(-1, num_classes)


def few_places(
    valid: Sequence[np.ndarray], spans: Sequence[tuple[int, int]], generator: np.random.Generator
) -> np.ndarray:
    """Fill up levels with fewer than NEAREST places: [levels, NEAREST] int32, see PointTargets.

    The original draws by a generator without a key (atss_assigner_v2.py).
    """
    found = np.full((len(valid), NEAREST), -1, np.int32)
    for level, (inside, (first, _)) in enumerate(zip(valid, spans, strict=True)):
        places = np.flatnonzero(inside)
        missing = NEAREST - len(places)
        if missing > 0:
            drawn = generator.choice(places, missing, replace=missing > len(places))
            found[level] = first + np.concatenate([places, drawn])
    return found
