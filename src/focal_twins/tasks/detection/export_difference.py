"""Compares what an exported detector gives with what its checkpoint does, whatever the order of nearly equal scores."""

import numpy as np

from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.tasks.detection.export_form import DETECTIONS
from focal_twins.tasks.export_difference import Difference, Outputs

BOXES, SCORES, LABELS, MASKS = 0.5, 1e-3, 0.5, 1e-2  # how far equal ones may be apart: pixels, and probabilities
FEW = 10  # rows, all of which have to be equal
ROWS_FOR_ANOTHER = 100  # of so many, or fewer, one may be another: where the best end, others score nearly the same


def difference_of_rows(pairs: list[tuple[Outputs, Outputs]], output: str, rule: SelectionRule) -> Difference:
    """Tell how many of the checkpoint's rows a file has as well: candidates, or detections with their masks.

    Rows without a score stand for nothing.

    Args:
        pairs: (the file's, the checkpoint's) outputs of batches.
        output: what these are, see export_form.py.
    """
    if output == DETECTIONS:
        scores, tolerances = slice(4, 5), np.array([BOXES] * 4 + [SCORES, LABELS])
    else:
        boxes = rule.box_columns
        scores = slice(boxes, boxes + rule.num_classes)
        tolerances = np.array([BOXES] * boxes + [SCORES] * (rule.columns - boxes))
    equal = total = 0
    for own, expected in pairs:
        wide = np.concatenate([tolerances, np.full(_joined(expected).shape[2] - len(tolerances), MASKS)])
        for own_rows, rows in zip(_joined(own) / wide, _joined(expected) / wide, strict=True):
            places = np.flatnonzero((rows[:, scores] > 0).any(axis=1))
            total += len(places)
            equal += sum(_has(own_rows, rows[place], place) for place in places)
    share = equal / total if total else 1.0
    text = f"{share:.2%} of {total} {output} are equal" if total else f"there are no {output} to compare"
    others = -(-total // ROWS_FOR_ANOTHER) if total >= FEW else 0
    return Difference("equal_share", share, total - equal <= others, text)


def _joined(outputs: Outputs) -> np.ndarray:
    """Return the outputs [B, n, ...] of the same rows as one [B, n, D]."""
    return np.concatenate([output.reshape(*output.shape[:2], -1) for output in outputs], axis=2)


def _has(rows: np.ndarray, wanted: np.ndarray, place: int) -> bool:
    """Tell whether a row [D] is among rows [n, D], in units of what may differ; it is nearly always at its place."""
    if (np.abs(rows[place] - wanted) <= 1).all():
        return True
    return bool((np.abs(rows - wanted) <= 1).all(axis=1).any())
