"""Compares what an exported detector finds with what its checkpoint does, whatever the order of nearly equal scores."""

import numpy as np

from src.tasks.export_difference import Difference

BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE = 0.5, 1e-3, 1e-2  # pixels, and probabilities
EQUAL_SHARE = 0.99  # at the end of the best ones, others may follow that score nearly the same


def equal_rows(pairs: list[tuple[np.ndarray, np.ndarray]], box_columns: int) -> Difference:
    """Tell how many of the model's rows a file has as well: candidates, or detections with their masks.

    Args:
        pairs: (the file's, the model's) rows [B, n, D]: boxes, then scores, factors, labels and mask probabilities.
            Rows without a score stand for nothing.
        box_columns: number of columns of boxes.
    """
    equal = total = 0
    for own, expected in pairs:
        for own_rows, rows in zip(own, expected, strict=True):
            rows = rows[(rows[:, box_columns:] > 0).any(axis=1)]
            total += len(rows)
            equal += sum(_has(own_rows, row, number, box_columns) for number, row in enumerate(rows))
    share = equal / total if total else 1.0
    text = f"{share:.2%} of {total} rows are equal" if total else "there is nothing to find in them"
    return Difference("equal_share", share, share >= EQUAL_SHARE, text)


def _has(rows: np.ndarray, wanted: np.ndarray, place: int, box_columns: int) -> bool:
    """Tell whether a row is among others; it is nearly always at its own place."""
    if _are_equal(rows[place : place + 1], wanted, box_columns).any():
        return True
    return bool(_are_equal(rows, wanted, box_columns).any())


def _are_equal(rows: np.ndarray, wanted: np.ndarray, box_columns: int) -> np.ndarray:
    """Tell which of rows [n, D] equal one [D]."""
    apart = np.abs(rows - wanted)
    boxes, rest = apart[:, :box_columns].max(axis=1), apart[:, box_columns:].max(axis=1)
    return (boxes <= BOX_TOLERANCE) & (rest <= SCORE_TOLERANCE)
