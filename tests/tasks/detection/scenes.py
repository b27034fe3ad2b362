"""A few images with objects, as an evaluation asks a data set for them, and what a detector finds in them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from focal_twins.models.detectors.selection import Detections

CLASSES = ("cell", "a < b", "never")
CATEGORIES = (4, 2, 9)  # ids of the classes, in no order and with gaps
SIZES = ((60, 80), (90, 60), (60, 80), (50, 50))  # (height, width) of the images
# Of each image: boxes (x1, y1, x2, y2) with their labels.
OBJECTS = (
    [(5, 5, 25, 25, 0), (40, 10, 70, 50, 1)],
    [(10, 10, 50, 40, 0), (10, 50, 40, 85, 0), (2, 2, 8, 8, 1)],
    [],
    [(5, 5, 45, 45, 1)],
)
CROWD = (0, (50, 0, 80, 60, 0))  # in which image, and its box


class Scenes:
    """What an evaluator asks of a data set."""

    path, classes, size = Path("scenes"), CLASSES, len(SIZES)

    def name(self, index):
        return f"scene{index}.png"

    def image_size(self, index):
        return SIZES[index]

    def ground_truth(self):
        annotations = [
            annotation(index, box, iscrowd)
            for index, objects in enumerate(OBJECTS)
            for iscrowd, boxes in enumerate((objects, [CROWD[1]] if index == CROWD[0] else []))
            for box in boxes
        ]
        images = [
            {"id": 10 * index, "file_name": self.name(index), "height": height, "width": width}
            for index, (height, width) in enumerate(SIZES)
        ]
        categories = [{"id": number, "name": name} for number, name in zip(CATEGORIES, CLASSES, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


def annotation(index, box, iscrowd):
    """All annotations have the id 0, which pycocotools would take for no match."""
    x1, y1, x2, y2, label = box
    outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    height, width = SIZES[index]
    if iscrowd:  # of run lengths, as in COCO's files
        inside = np.zeros((height, width), np.uint8)
        inside[y1:y2, x1:x2] = 1
        values = np.concatenate([[0], inside.ravel(order="F")])
        changes = np.flatnonzero(np.diff(values)) if values.any() else []
        counts = np.diff(np.concatenate([[0], changes, [inside.size]]))
        outline = {"size": [height, width], "counts": counts.tolist()}
    return {
        "id": 0, "image_id": 10 * index, "category_id": CATEGORIES[label], "iscrowd": iscrowd, "segmentation": outline,
        "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
    }  # fmt: skip


def detections(boxes, scores, masks=False):
    """Detections of boxes with labels (x1, y1, x2, y2, label)."""
    array = np.array(boxes, np.float32).reshape(-1, 5)
    labels, candidates = array[:, 4].astype(np.int32), np.arange(len(array))
    found = Detections(array[:, :4], np.array(scores, np.float32), labels, candidates)
    filled = np.ones((len(array), 28, 28), np.float32)
    return replace(found, masks=filled, mask_boxes=found.boxes) if masks else found


def found_in(index, masks=False):
    """Every object but the small one, in image 3 as another class, and in image 2 one that is not there."""
    boxes = list(OBJECTS[index])
    if index == 0:
        boxes.append((52, 20, 60, 30, 0))  # in the crowd
    if index == 1:
        boxes = boxes[:2]
    if index == 2:
        boxes = [(1, 1, 30, 30, 0), (3, 3, 20, 20, 0)]
    if index == 3:
        boxes = [(*OBJECTS[3][0][:4], 0)]
    scores = [0.9 - 0.1 * number - 0.02 * index for number in range(len(boxes))]
    if index == 2:
        scores[1] = 0.1  # too little to be shown
    return detections(boxes, scores, masks)


def on_canvas(found, scale):
    """Detections as they are on a canvas, to which the image was resized by (vertical, horizontal) factors."""
    factors = np.array([scale[1], scale[0]] * 2, np.float32)
    mask_boxes = None if found.mask_boxes is None else found.mask_boxes * factors
    return replace(found, boxes=found.boxes * factors, mask_boxes=mask_boxes)
