"""Makes the sections of report.html about a segmentor's classes and mistakes."""

import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from focal_twins.data.decoding import Reading
from focal_twins.errors import UserError
from focal_twins.pages.legend import named
from focal_twins.pages.page import Column, Section, bar, table
from focal_twins.phrases import counted
from focal_twins.tasks.evaluation_file import (
    PICTURES,
    check_keys,
    classes_listed,
    evaluated_weights,
    read_array,
    read_pictures,
)
from focal_twins.tasks.report_images import image_finder
from focal_twins.tasks.segmentation.worst_pictures import worst_pictures

# Keys that the sections need of evaluation.json, and of the entries of its lists.
NEEDED_KEYS = {"weights", "epoch", "count", "miou", "macc", "aacc", "classes", "confusion", "most_confused"}
NEEDED_KEYS |= {"worst_images"}
CLASS_KEYS = {"name", "iou", "acc", "pixels"}
PAIR_KEYS = {"label", "predicted", "pixels", "share"}
IMAGE_KEYS = {"index", "image", "miou", "aacc", "pixels"}
ARRAYS = {"confusion": np.int64, "image_counts": np.int64, "image_iou": np.float64}


def read_evaluation(path: Path, content: dict) -> dict:
    """Check the content of evaluation.json and read its arrays and pictures: see SegmentationResult.

    Raises:
        UserError: something is missing or damaged. Pictures may be missing.
    """
    check_keys(content, NEEDED_KEYS | ARRAYS.keys(), str(path))
    for key, needed in (("classes", CLASS_KEYS), ("most_confused", PAIR_KEYS), ("worst_images", IMAGE_KEYS)):
        for number, entry in enumerate(content[key], 1):
            check_keys(entry, needed, f"{path}: entry {number} of {key}")
    arrays = {key: read_array(path, content[key]).astype(dtype) for key, dtype in ARRAYS.items()}
    classes = len(content["classes"])
    if arrays["confusion"].shape != (classes, classes):
        raise UserError(f"{path}: its confusion matrix is not of its {classes} classes")
    return content | arrays | {PICTURES: read_pictures(path, content)}


def sections(evaluation: dict | None, config: dict, data: Path | None, roots: Iterable[Path]) -> list[Section]:
    """Return the sections of a segmentor's classes and mistakes; see Task.sections.

    Raises:
        UserError: `data` holds none of the images.
    """
    if evaluation is None:
        return [Section("Classes", "<p>No whole epoch was evaluated yet.</p>")]
    given = config.get("data") or {}
    below = Path(str(given.get("images", "images"))) / str(given.get("val", "validation"))
    find = image_finder(str(given.get("path", "")), below, data, list(roots))
    return [
        Section("Classes", summary(evaluation) + class_table(evaluation)),
        Section("Most confused", confused_table(evaluation)),
        Section("Worst images", worst_pictures(evaluation, find, Reading.from_dict(given))),
    ]


def summary(evaluation: dict) -> str:
    """Say as HTML what was evaluated, and how well."""
    text = (
        f"{evaluated_weights(evaluation)}: mIoU {evaluation['miou']:.2f}%, mAcc {evaluation['macc']:.2f}%, "
        f"aAcc {evaluation['aacc']:.2f}% over {counted(evaluation['count'], 'image', ',')}, from evaluation.json."
    )
    absent = [entry["name"] for entry in evaluation["classes"] if entry["iou"] is None]
    nowhere = "neither in the labels nor in the predictions"
    text += classes_listed(absent, f"is {nowhere}", f"are {nowhere}")
    return f"<p>{html.escape(text)}</p>"


def class_table(evaluation: dict) -> str:
    """Show as HTML how well each class is known, the lowest IoU first."""
    rows = [
        [named(index, entry["name"]), bar(entry["iou"]), entry["iou"], entry["acc"], entry["pixels"]]
        for index, entry in sorted(
            ((index, entry) for index, entry in enumerate(evaluation["classes"]) if entry["iou"] is not None),
            key=lambda pair: (pair[1]["iou"], pair[0]),
        )
    ]
    columns: list[Column | str] = [
        "class",
        "",
        Column("IoU, %", ".2f"),
        Column("accuracy, %", ".2f"),
        Column("labelled pixels", ","),
    ]
    return table(columns, rows, "The lowest IoU first", "classes")


def confused_table(evaluation: dict) -> str:
    """Tabulate as HTML the pairs of classes of which the most pixels of the one are taken for the other."""
    if not evaluation["most_confused"]:
        return "<p>No pixel is taken for one of another class.</p>"
    number = {entry["name"]: index for index, entry in enumerate(evaluation["classes"])}
    rows = [
        [
            *(named(number.get(pair[key], 0), pair[key]) for key in ("label", "predicted")),
            pair["pixels"],
            bar(pair["share"]),
            pair["share"],
        ]
        for pair in evaluation["most_confused"]
    ]
    columns: list[Column | str] = [
        "class",
        "taken for",
        Column("pixels", ","),
        "",
        Column("share of the class, %", ".2f"),
    ]
    return table(columns, rows, "The most pixels first", "confused")
