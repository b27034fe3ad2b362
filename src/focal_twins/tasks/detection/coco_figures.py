"""Computes the figures of COCO's detection challenge by pycocotools, and what was matched with what on the way."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOXES, MASKS = "bbox", "segm"  # kinds of overlap, as pycocotools calls them
MAX_DETECTIONS = (1, 10, 100)  # the most detections of a class and image that count, in COCO's challenge
# The twelve figures, in pycocotools' order. Those of sizes and of one overlap are at the most detections.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
         "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
SIZES = ("small", "medium", "large")  # areas below 32 x 32, below 96 x 96 and from there on, in pixels
SIZE_BOUNDS = (32**2, 96**2)
OVERLAPS = np.linspace(0.5, 0.95, 10)  # IoU from which on a detection is right, of the T below
RECALLS = np.linspace(0, 1, 101)  # recalls of the R below
NONE = -1.0  # what pycocotools gives where there is no object


@dataclass(frozen=True, eq=False)
class Matches:
    """Says which detections are right, and which objects are found, at an IoU of 0.5.

    Attributes:
        right: [D] bool, whether a detection has an object of its own.
        ignored: [D] bool, whether it lies in a crowd, where it is neither right nor wrong.
        found_by: [G] the score of the detection that has the object, or NaN; a crowd has none.
    """

    right: np.ndarray
    ignored: np.ndarray
    found_by: np.ndarray


@dataclass(frozen=True, eq=False)
class CocoFigures:
    """Holds the figures of a data set, from 0 to 1; NONE where there is no object that they could be of.

    Attributes:
        stats: the twelve figures, in the order of NAMES.
        precision: [T, R, C, 1 + SIZES] the precision at each overlap, recall, class, and of all sizes and each size.
        recall: [T, C, 1 + SIZES] the recall of all detections.
        matches: see Matches; objects and detections are in the order in which they were given.
    """

    stats: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    matches: Matches

    @property
    def class_ap(self) -> np.ndarray:
        """The average precision [C, 1 + SIZES] of each class, of all sizes and of each."""
        return mean_of_known(self.precision, (0, 1))

    @property
    def class_ar(self) -> np.ndarray:
        """The average recall [C, 1 + SIZES] of each class, of all sizes and of each."""
        return mean_of_known(self.recall, (0,))

    def class_ap_at(self, overlap: float) -> np.ndarray:
        """Return the average precision [C] of each class where an IoU of `overlap`, one of OVERLAPS, is enough."""
        place = int(np.abs(OVERLAPS - overlap).argmin())
        return mean_of_known(self.precision[place, :, :, 0], (0,))


def mean_of_known(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the mean over axes of what is not NONE; NONE where nothing is left."""
    known = values > NONE
    counts = known.sum(axis=axes)
    return np.where(counts > 0, np.where(known, values, 0).sum(axis=axes) / np.maximum(counts, 1), NONE)


def evaluate_coco(
    truth: dict,
    results: list[dict],
    kind: str = BOXES,
    image_ids: list[int] | None = None,
    max_detections: tuple[int, ...] = MAX_DETECTIONS,
) -> CocoFigures:
    """Compare results with the truth as pycocotools does, which prints nothing.

    Args:
        truth: a COCO ground truth: images (id, height, width), categories (id), and annotations (image_id, category_id,
            bbox, area, iscrowd; for masks, segmentation).
        results: COCO results: image_id, category_id, bbox (x, y, width, height), score and, for masks, segmentation.
        kind: BOXES or MASKS.
        image_ids: the images that count; None for all.
        max_detections: three numbers, one of them 100: of so many detections of an image and class are the figures.
    """
    with redirect_stdout(io.StringIO()):
        # pycocotools takes an id of 0 for no match, and files need not have ids that differ.
        objects = [annotation | {"id": number} for number, annotation in enumerate(truth["annotations"], 1)]
        detections = [
            result | {"id": number, "iscrowd": 0, "area": _area(result, kind)}
            for number, result in enumerate(results, 1)
        ]
        evaluation = COCOeval(_indexed(truth, objects), _indexed(truth, detections), kind)
        evaluation.params.maxDets = list(max_detections)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        # pycocotools sorts classes by their ids; here they are in the order of the truth.
        ids = [category["id"] for category in truth["categories"]]
        order = np.argsort(np.argsort(ids))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return CocoFigures(
        np.asarray(evaluation.stats, np.float64),
        evaluation.eval["precision"][..., -1][:, :, order],
        evaluation.eval["recall"][..., -1][:, order],
        _matches(evaluation, objects, detections),
    )


def _area(result: dict, kind: str) -> float:
    """Return the area of a detection in pixels: of its box, or of its mask."""
    if kind == MASKS:
        return float(coco_masks.area(result["segmentation"]))
    return result["bbox"][2] * result["bbox"][3]


def _indexed(truth: dict, annotations: list[dict]) -> COCO:
    """Return the annotations of images as pycocotools has them."""
    indexed = COCO()
    indexed.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    indexed.createIndex()
    return indexed


def _matches(evaluation: COCOeval, objects: list[dict], detections: list[dict]) -> Matches:
    """Read which detections and objects belong to each other at the least overlap, of all sizes."""
    right, ignored = np.zeros(len(detections), bool), np.zeros(len(detections), bool)
    found_by = np.full(len(objects), np.nan)
    images, areas = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    for number, entry in enumerate(evaluation.evalImgs):  # class by class, size by size, image by image
        if entry is None or number // images % areas:
            continue
        own, theirs = np.array(entry["dtIds"], np.int64) - 1, np.array(entry["gtIds"], np.int64) - 1
        passes = entry["dtIgnore"][0].astype(bool)
        right[own] = (entry["dtMatches"][0] > 0) & ~passes
        ignored[own] = passes
        for place, by, is_ignored in zip(theirs, entry["gtMatches"][0], entry["gtIgnore"], strict=True):
            if by and not is_ignored:
                found_by[place] = detections[int(by) - 1]["score"]
    return Matches(right, ignored, found_by)
