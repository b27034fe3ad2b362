"""Finds the objects in images by whatever computes a detector's outputs."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np

from focal_twins.models.detectors.boxes import clip
from focal_twins.models.detectors.selection import Detections, SelectionRule, select_detections
from focal_twins.tasks.detection.export_form import DETECTIONS
from focal_twins.tasks.task import as_tuple


class Finder(Protocol):
    """Finds objects: images [B, C, H, W] float32 and their extents [B, 2] give the detections of each image.

    These are in pixels of the canvas, best first.
    """

    def __call__(self, images: np.ndarray, extents: np.ndarray) -> list[Detections]: ...


def file_finder(answer: Callable[[np.ndarray], Any], output: str, rule: SelectionRule) -> Finder:
    """Return what finds objects by an exported file, to which a whole canvas is image.

    Args:
        answer: computes the file's output of images, or outputs. output: what these are, see export_form.py.
        rule: selects detections among candidates; a file of detections has selected them.
    """

    def find(images: np.ndarray, extents: np.ndarray) -> list[Detections]:
        first, *masks = as_tuple(answer(images))
        found = []
        for number, (height, width) in enumerate(extents.tolist()):
            if output == DETECTIONS:
                detections = _listed(first[number], masks[0][number] if masks else None)
                if rule.clips_boxes:  # the masks were drawn for what it gave
                    detections = replace(detections, boxes=clip(detections.boxes, (height, width)))
            else:
                detections = select_detections(first[number], rule, (height, width))
            found.append(_with_area(detections))
        return found

    return find


def _listed(rows: np.ndarray, masks: np.ndarray | None) -> Detections:
    """Return the detections that a file lists as rows [n, 6]: boxes, scores and labels; a score of 0 fills up.

    Args:
        masks: [n, M, M], one for each.
    """
    kept = np.flatnonzero(rows[:, 4] > 0)
    boxes, labels = rows[kept, :4], np.round(rows[kept, 5]).astype(np.int32)
    found = Detections(boxes, rows[kept, 4], labels, kept)
    return found if masks is None else replace(found, masks=masks[kept], mask_boxes=boxes)


def _with_area(found: Detections) -> Detections:
    """Leave out what lies wholly in the padding, which a file does not know."""
    return taken(found, (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1))


def taken(found: Detections, which: np.ndarray) -> Detections:
    """Return some of an image's detections: those of a mask [n] bool, or of numbers [m]."""
    columns = ((field.name, getattr(found, field.name)) for field in fields(found))
    return Detections(**{name: column[which] for name, column in columns if column is not None})


def at_image_size(found: Detections, extent: tuple[int, int], size: tuple[int, int]) -> Detections:
    """Return detections in pixels of the image itself, in place of those of the canvas it was resized to.

    Args:
        extent: (height, width) that the image takes of the canvas. size: its own (height, width).
    """
    factors = np.array([size[1] / extent[1], size[0] / extent[0]] * 2, np.float64)
    mask_boxes = None if found.mask_boxes is None else found.mask_boxes * factors
    return replace(found, boxes=found.boxes * factors, mask_boxes=mask_boxes)


def found_in_batches(find: Finder, images: np.ndarray, extents: np.ndarray, batch_size: int) -> list[Detections]:
    """Return the detections of any number of images, batch_size of them at a time.

    The last batch is filled up with black images, so that a network keeps its one graph.
    """
    found: list[Detections] = []
    for first in range(0, len(images), batch_size):
        part, sizes = images[first : first + batch_size], extents[first : first + batch_size]
        short = batch_size - len(part)
        if short:
            part = np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
            sizes = np.concatenate([sizes, np.tile(np.array(part.shape[2:], sizes.dtype), (short, 1))])
        found += find(part, sizes)[: batch_size - short]
    return found
