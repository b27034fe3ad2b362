"""Collects the detections of images, brings those of all ranks together and gives them the form of COCO's results."""

import json

import numpy as np

from focal_twins.distributed.ranks import Dist
from focal_twins.models.detectors.selection import Detections
from focal_twins.tasks.detection.mask_pasting import packed_masks

BOX_DIGITS, SCORE_DIGITS = 3, 6  # decimals of pixels and of scores; evaluated is what is written
COLUMNS = 7  # of a row: the image's index, four of the box, score, label


class DetectionsOfImages:
    """Collects detections, at the size of their images; masks are packed at once.

    Args:
        has_masks: the detections have masks.
    """

    def __init__(self, has_masks: bool):
        self.has_masks = has_masks
        self.rows: list[np.ndarray] = [np.empty((0, COLUMNS))]
        self.masks: list[bytes] = []

    def add(self, index: int, detections: Detections, size: tuple[int, int]) -> None:
        """Add the detections of an image, in pixels of its own (height, width)."""
        rows = np.empty((len(detections.scores), COLUMNS))
        rows[:, 0], rows[:, 1:5] = index, detections.boxes
        rows[:, 5], rows[:, 6] = detections.scores, detections.labels
        self.rows.append(rows)
        if detections.masks is not None and detections.mask_boxes is not None:
            self.masks += packed_masks(detections.masks, detections.mask_boxes, size)

    def gather(self, dist: Dist) -> tuple[np.ndarray, list[bytes]] | None:
        """Bring the detections of all ranks to the main one; all ranks call this together.

        Returns:
            On the main rank, rows [n, 7] (index, x1, y1, x2, y2, score, label) in the order of images, whatever the
            number of ranks, and the packed mask of each where there are masks. None on the others.
        """
        rows = dist.gather(np.concatenate(self.rows))
        masks = dist.gather(np.frombuffer(b"\n".join(self.masks), np.uint8)) if self.has_masks else None
        if rows is None:
            return None
        together = np.concatenate(rows)
        order = np.argsort(together[:, 0], kind="stable")
        packed = [mask for text in masks or [] if len(text) for mask in text.tobytes().split(b"\n")]
        return together[order], [packed[place] for place in order] if self.has_masks else []


def coco_boxes(boxes: np.ndarray) -> list[list[float]]:
    """Return boxes [n, 4] of corners as COCO has them, (x, y, width, height), with the sides of the rounded corners."""
    corners = np.round(boxes.astype(np.float64), BOX_DIGITS)
    sides = np.round(corners[:, 2:] - corners[:, :2], BOX_DIGITS)
    return np.concatenate([corners[:, :2], sides], axis=1).tolist()


def coco_results(rows: np.ndarray, masks: list[bytes], truth: dict) -> list[dict]:
    """Return detections in the form of COCO's results; see DetectionsOfImages.gather for the arguments.

    Args:
        truth: the ground truth, whose images and categories are in the order of indices and labels.
    """
    images, categories = truth["images"], truth["categories"]
    boxes, scores = coco_boxes(rows[:, 1:5]), np.round(rows[:, 5], SCORE_DIGITS)
    results = [
        {
            "image_id": images[index]["id"],
            "category_id": categories[label]["id"],
            "bbox": box,
            "score": score,
        }
        for index, label, box, score in zip(
            rows[:, 0].astype(int).tolist(), rows[:, 6].astype(int).tolist(), boxes, scores.tolist(), strict=True
        )
    ]
    for result, index, counts in zip(results, rows[:, 0].astype(int), masks, strict=False):
        size = [images[index]["height"], images[index]["width"]]
        result["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
    return results


def results_file(results: list[dict]) -> bytes:
    """Return COCO results as the content of a JSON file, a line for each detection."""
    lines = (json.dumps(result, separators=(",", ":")) for result in results)
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()
