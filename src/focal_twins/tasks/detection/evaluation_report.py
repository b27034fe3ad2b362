"""Reports an evaluation of a detector: the content of its file, and a line about the worst classes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from focal_twins.config.load import Config
from focal_twins.data.coco import CocoImages
from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.phrases import counted
from focal_twins.tasks.detection.coco_figures import NONE, SIZE_BOUNDS, SIZES, CocoFigures, mean_of_known
from focal_twins.tasks.detection.drawing import SHOWN_SCORE

WORST_CLASSES = 5  # number of classes that the output names
WORST_IMAGES = 12  # number of images in the file
PRECISION_DIGITS = 4


@dataclass(frozen=True, eq=False)
class EvaluatedDetections:
    """Holds what the report of an evaluation is made of.

    Attributes:
        truth: the COCO ground truth, whose images and categories are in the order of indices and labels.
        counted: indices of the images that were read.
        results: COCO results.
        figures: of "box" and, where there are masks, of "mask".
    """

    data: CocoImages
    config: Config
    rule: SelectionRule
    truth: dict
    counted: np.ndarray
    results: list[dict]
    figures: dict[str, CocoFigures]

    @cached_property
    def image_of(self) -> dict:
        """The index of each counted image by its id."""
        return {self.truth["images"][index]["id"]: int(index) for index in self.counted}

    @cached_property
    def label_of(self) -> dict:
        """The label of each category by its id."""
        return {category["id"]: label for label, category in enumerate(self.truth["categories"])}

    @cached_property
    def objects(self) -> "Objects":
        """The objects of the images that were read, without crowds."""
        box, annotations = self.figures["box"], self.truth["annotations"]
        places = [
            number
            for number, annotation in enumerate(annotations)
            if annotation["image_id"] in self.image_of and not annotation["iscrowd"]
        ]
        chosen = [annotations[place] for place in places]
        return Objects(
            np.array(places, np.int64),
            np.array([self.image_of[annotation["image_id"]] for annotation in chosen], np.int64),
            np.array([self.label_of[annotation["category_id"]] for annotation in chosen], np.int64),
            np.array([annotation["area"] for annotation in chosen], np.float64),
            box.matches.found_by[places] >= SHOWN_SCORE,
        )

    @cached_property
    def shown(self) -> "Shown":
        """The detections that are certain enough to be shown."""
        places = [number for number, result in enumerate(self.results) if result["score"] >= SHOWN_SCORE]
        chosen, matches = [self.results[place] for place in places], self.figures["box"].matches
        return Shown(
            np.array(places, np.int64),
            np.array([self.image_of[result["image_id"]] for result in chosen], np.int64),
            np.array([self.label_of[result["category_id"]] for result in chosen], np.int64),
            ~(matches.right | matches.ignored)[places],
        )

    def curves(self) -> dict[str, np.ndarray]:
        """Return precisions at the recalls 0, 0.01 .. 1: at each overlap, the mean of the classes, and by class at 0.5.

        They are [T, R] and [classes, R] from 0 to 1; NONE where there is no object.
        """
        found = {}
        for kind, figures in self.figures.items():
            everything = figures.precision[..., 0]
            found[f"{kind}_precision"] = np.round(mean_of_known(everything, (2,)), PRECISION_DIGITS)
            found[f"{kind}_class_precision"] = np.round(everything[0].T, PRECISION_DIGITS)
        return found


@dataclass(frozen=True, eq=False)
class Objects:
    """Holds the objects [n] to be found: place among the annotations, image, label, area, and whether found."""

    place: np.ndarray
    image: np.ndarray
    label: np.ndarray
    area: np.ndarray
    is_found: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """The number of each object's size among SIZES."""
        return np.searchsorted(SIZE_BOUNDS, self.area, side="right")


@dataclass(frozen=True, eq=False)
class Shown:
    """Holds the detections [n] that are shown: place among the results, image, label, and whether they are wrong."""

    place: np.ndarray
    image: np.ndarray
    label: np.ndarray
    is_wrong: np.ndarray


def report(evaluated: EvaluatedDetections, figures: dict[str, float]) -> dict:
    """Return the content of an evaluation's file, but for the arrays.

    Found and missed are objects, and invented are detections, at an IoU of 0.5, where detections with a score of at
    least SHOWN_SCORE count: a user's view at one threshold, beside COCO's figures over all.
    """
    config, rule = evaluated.config, evaluated.rule
    return {
        "config": config.name,
        "data": str(evaluated.data.path),
        "short_side": config.eval.short_side,
        "long_side": config.eval.long_side,
        "score_threshold": rule.score_threshold,
        "nms_iou": rule.nms_iou,
        "max_detections": rule.max_detections,
        "count": len(evaluated.counted),
        "objects": len(evaluated.objects.place),
        "detections": len(evaluated.results),
        **{key: None if np.isnan(value) else value for key, value in figures.items()},
        "shown_score": SHOWN_SCORE,
        "found": int(evaluated.objects.is_found.sum()),
        "invented": int(evaluated.shown.is_wrong.sum()),
        "sizes": sizes(evaluated),
        "classes": classes(evaluated),
        "worst_images": worst_images(evaluated),
    }


def sizes(evaluated: EvaluatedDetections) -> list[dict]:
    """List the objects of each size with their figures, in percent; None where there are none."""
    objects = evaluated.objects
    return [
        {
            "name": name,
            "objects": int((objects.size == number).sum()),
            "found": int(objects.is_found[objects.size == number].sum()),
            **{
                f"{kind}_{figure}": _percent(mean_of_known(values[:, number + 1], (0,)))
                for kind, figures in evaluated.figures.items()
                for figure, values in (("ap", figures.class_ap), ("ar", figures.class_ar))
            },
        }
        for number, name in enumerate(SIZES)
    ]


def classes(evaluated: EvaluatedDetections) -> list[dict]:
    """List the classes with their figures, in percent; None where there are none."""
    objects, shown = evaluated.objects, evaluated.shown
    columns = {
        f"{kind}_{name}": values
        for kind, figures in evaluated.figures.items()
        for name, values in {
            "ap": figures.class_ap[:, 0],
            "ap50": figures.class_ap_at(0.5),
            "ap75": figures.class_ap_at(0.75),
            **{f"ap_{size}": figures.class_ap[:, number] for number, size in enumerate(SIZES, 1)},
            "ar_100": figures.class_ar[:, 0],
        }.items()
    }
    return [
        {
            "name": name,
            "objects": int((objects.label == label).sum()),
            "found": int(objects.is_found[objects.label == label].sum()),
            "invented": int(shown.is_wrong[shown.label == label].sum()),
            **{key: _percent(values[label]) for key, values in columns.items()},
        }
        for label, name in enumerate(evaluated.data.classes)
    ]


def worst_images(evaluated: EvaluatedDetections) -> list[dict]:
    """List the images that a detector does worst on, with their objects and detections, the worst first.

    They are those with the lowest F1 score, 2 found / (2 found + missed + invented); of equal ones, those with the most
    mistakes.
    """
    count = evaluated.data.size
    objects, shown = evaluated.objects, evaluated.shown
    found = np.bincount(objects.image[objects.is_found], minlength=count)
    missed = np.bincount(objects.image[~objects.is_found], minlength=count)
    invented = np.bincount(shown.image[shown.is_wrong], minlength=count)
    mistakes = missed + invented
    f1 = 2 * found / np.maximum(2 * found + mistakes, 1)
    order = np.lexsort((np.arange(count), -mistakes, f1))
    worst = [int(index) for index in order if mistakes[index]][:WORST_IMAGES]
    return [
        {
            "index": index,
            "image": evaluated.data.name(index),
            "width": evaluated.truth["images"][index]["width"],
            "height": evaluated.truth["images"][index]["height"],
            "found": int(found[index]),
            "missed": int(missed[index]),
            "invented": int(invented[index]),
            "objects": _objects_of(evaluated, index),
            "detections": _detections_of(evaluated, index),
        }
        for index in worst
    ]


def _objects_of(evaluated: EvaluatedDetections, index: int) -> list[dict]:
    """List the objects of an image."""
    objects, annotations = evaluated.objects, evaluated.truth["annotations"]
    return [
        {"class": int(objects.label[number]), "found": bool(objects.is_found[number])}
        | _outline(annotations[objects.place[number]], evaluated)
        for number in np.flatnonzero(objects.image == index)
    ]


def _detections_of(evaluated: EvaluatedDetections, index: int) -> list[dict]:
    """List the detections of an image that are certain enough to be shown, the most certain first."""
    shown, results = evaluated.shown, evaluated.results
    chosen = [
        {
            "class": int(shown.label[number]),
            "score": results[shown.place[number]]["score"],
            "invented": bool(shown.is_wrong[number]),
        }
        | _outline(results[shown.place[number]], evaluated)
        for number in np.flatnonzero(shown.image == index)
    ]
    return sorted(chosen, key=lambda entry: -entry["score"])


def _outline(entry: dict, evaluated: EvaluatedDetections) -> dict:
    """Return what of an annotation or result says where it is: the box and, where masks are evaluated, the mask."""
    outline: dict = {"bbox": [round(float(value), 2) for value in entry["bbox"]]}
    if "mask" in evaluated.figures:
        outline["segmentation"] = entry["segmentation"]
    return outline


def worst_classes(evaluated: EvaluatedDetections) -> str | None:
    """Return a line about the classes with the lowest AP; None with two classes or fewer."""
    ap, names = 100 * evaluated.figures["box"].class_ap[:, 0], evaluated.data.classes
    worst = [label for label in np.argsort(ap, kind="stable") if 0 <= ap[label] < 100][:WORST_CLASSES]
    if len(names) <= 2 or not worst:
        return None
    counts = np.bincount(evaluated.objects.label, minlength=len(names))
    return "lowest box AP: " + ", ".join(f"{names[i]} ({ap[i]:.2f}%, {counted(counts[i], 'object')})" for i in worst)


def _percent(share: np.ndarray | float) -> float | None:
    return None if share == NONE else 100 * float(share)
