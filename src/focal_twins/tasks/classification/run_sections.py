"""Makes the section of report.html about a classifier's mistakes."""

import html
from pathlib import Path

import numpy as np

from focal_twins.data.decoding import Reading
from focal_twins.errors import UserError
from focal_twins.pages.page import Column, Section, details, table
from focal_twins.phrases import counted
from focal_twins.tasks.classification.confusion import confused_pairs, confusion_table, image_finder
from focal_twins.tasks.classification.metrics import class_scores
from focal_twins.tasks.evaluation_file import check_keys, evaluated_weights, read_array

# Keys that the section needs of evaluation.json, of each of its classes, and of each confused pair.
NEEDED_KEYS = {"weights", "epoch", "count", "top1", "top1_correct", "classes", "confusion", "most_confused"}
CLASS_KEYS = {"name", "count", "correct", "accuracy"}
PAIR_KEYS = {"label", "predicted", "count", "images"}


def read_evaluation(path: Path, content: dict) -> dict:
    """Check the content of evaluation.json and read its "confusion" as an array [labels, predictions].

    Raises:
        UserError: something is missing or damaged.
    """
    check_keys(content, NEEDED_KEYS, str(path))
    for key, needed in (("classes", CLASS_KEYS), ("most_confused", PAIR_KEYS)):
        for number, entry in enumerate(content[key], 1):
            check_keys(entry, needed, f"{path}: entry {number} of {key}")
    matrix, classes = read_array(path, content["confusion"]), len(content["classes"])
    if matrix.shape != (classes, classes):
        raise UserError(f"{path}: its confusion matrix is not of its {classes} classes")
    return content | {"confusion": matrix.astype(np.int64)}


def sections(evaluation: dict | None, config: dict, data: Path | None, roots) -> list[Section]:
    """Return the section of a classifier's mistakes; see Task.sections."""
    return [Section("Mistakes", mistakes(evaluation, config, data, list(roots)))]


def mistakes(evaluation: dict | None, config: dict, data: Path | None, roots: list[Path]) -> str:
    """Show as HTML which classes the best epoch's model takes for which."""
    if evaluation is None:
        return "<p>No whole epoch was evaluated yet.</p>"
    wrong = evaluation["count"] - evaluation["top1_correct"]
    summary = (
        f"{evaluated_weights(evaluation)}: {wrong:,} of "
        f"{counted(evaluation['count'], 'image', ',')} wrong (top-1 {evaluation['top1']:.2f}%), from evaluation.json."
    )
    classes = tuple(entry["name"] for entry in evaluation["classes"])
    given = config.get("data") or {}
    pairs = confused_pairs(evaluation, image_finder(given, data, roots, classes), Reading.from_dict(given))
    scores = scores_table(evaluation)
    return (
        f"<p>{html.escape(summary)}</p>{confusion_table(evaluation)}"
        + (f"<h3>Most confused</h3>{pairs}" if pairs else "")
        + details(f"Precision, recall and F1 of each of {len(classes):,} classes", scores)
    )


def scores_table(evaluation: dict) -> str:
    """Make an HTML table of each class's scores, the lowest F1 first, and of their macro averages.

    They are computed from the confusion matrix, which evaluations of earlier versions have, too.
    """
    entries = evaluation["classes"]
    scores = class_scores(evaluation["confusion"], np.array([entry["count"] for entry in entries]))
    order = sorted(range(len(entries)), key=lambda row: (np.nan_to_num(scores.f1[row]), entries[row]["name"]))

    def percents(*values: float | None) -> list[float | None]:
        return [None if value is None or np.isnan(value) else float(value) for value in values]

    rows = [
        [
            entries[row]["name"],
            entries[row]["count"],
            entries[row]["correct"],
            *percents(scores.precision[row], scores.recall[row], scores.f1[row]),
        ]
        for row in order
    ]
    macro = scores.macro()
    rows.append(["mean", None, None, *percents(macro["precision"], macro["recall"], macro["f1"])])
    columns = [Column(f"{name}, %", ".2f") for name in ("precision", "recall", "F1")]
    return table(["class", "images", "right", *columns], rows, "The lowest F1 first", "classes")
