"""Gives the objects of images arrays of one shape, for graphs of static shapes."""

import numpy as np


def padded_objects(
    boxes: np.ndarray, labels: np.ndarray, most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [most, 4] float32 and labels [most] int32: behind the n objects' own, zeros and labels of -1.

    Args:
        boxes: [n, 4]. labels: [n].
        most: of more objects, so many are drawn.
    """
    if len(boxes) > most:
        kept = np.sort(generator.choice(len(boxes), most, replace=False))
        boxes, labels = boxes[kept], labels[kept]
    padded_boxes, padded_labels = np.zeros((most, 4), np.float32), np.full(most, -1, np.int32)
    padded_boxes[: len(boxes)], padded_labels[: len(boxes)] = boxes, labels
    return padded_boxes, padded_labels
