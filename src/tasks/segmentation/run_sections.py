"""Makes the section of report.html about a segmentor's classes."""

import html
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.pages.page import Column, Section, table
from src.tasks.evaluation_file import check_keys, read_array

# Keys that the section needs of evaluation.json, and of each of its classes.
NEEDED_KEYS = {"weights", "epoch", "count", "miou", "macc", "aacc", "classes", "confusion"}
CLASS_KEYS = {"name", "iou", "acc", "pixels"}
ARRAYS = {"confusion": np.int64, "image_counts": np.int64, "image_iou": np.float64}


def read_evaluation(path: Path, content: dict) -> dict:
    """Check the content of evaluation.json and read its arrays: see SegmentationResult.arrays.

    Raises:
        UserError: something is missing or damaged.
    """
    check_keys(content, NEEDED_KEYS | ARRAYS.keys(), str(path))
    for number, entry in enumerate(content["classes"], 1):
        check_keys(entry, CLASS_KEYS, f"{path}: entry {number} of classes")
    arrays = {key: read_array(path, content[key]).astype(dtype) for key, dtype in ARRAYS.items()}
    classes = len(content["classes"])
    if arrays["confusion"].shape != (classes, classes):
        raise UserError(f"{path}: its confusion matrix is not of its {classes} classes")
    return content | arrays


def sections(evaluation: dict | None, config: dict, data: Path | None, roots) -> list[Section]:
    """Return the section of a segmentor's classes; see Task.sections."""
    return [Section("Classes", class_table(evaluation))]


def class_table(evaluation: dict | None) -> str:
    """Show as HTML how well the best epoch's model knows each class."""
    if evaluation is None:
        return "<p>No whole epoch was evaluated yet.</p>"
    weights = {"raw": "Raw weights", "ema": "Averaged weights (EMA)"}[evaluation["weights"]]
    summary = (
        f"{weights} after epoch {evaluation['epoch']}: mIoU {evaluation['miou']:.2f}% over {evaluation['count']:,} "
        "images, from evaluation.json."
    )
    known = [entry for entry in evaluation["classes"] if entry["iou"] is not None]
    rows = [
        [entry["name"], entry["pixels"], entry["iou"], entry["acc"]]
        for entry in sorted(known, key=lambda entry: (entry["iou"], entry["name"]))
    ]
    columns: list[Column | str] = ["class", "pixels", Column("IoU, %", ".2f"), Column("accuracy, %", ".2f")]
    return f"<p>{html.escape(summary)}</p>{table(columns, rows, 'The lowest IoU first', 'classes')}"
