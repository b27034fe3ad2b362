"""Says how far the outputs of an exported file are from those of the model that it was made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-4  # largest difference of numbers, relative to the largest value
EQUAL_SHARE = 0.999  # least share of equal labels; those of nearly equal logits may differ
Outputs = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Difference:
    """Holds a measure of how far outputs are apart.

    Attributes:
        key, value: its name and value in the description of a file.
        is_small: whether the file can be trusted.
        text: the same for people.
    """

    key: str
    value: float
    is_small: bool
    text: str

    def __str__(self):
        return self.text


def worst_difference(pairs: Sequence[tuple[Outputs, Outputs]]) -> Difference:
    """Compare (the file's, the model's) outputs of batches.

    Returns:
        The difference of the first output that is too far away; where none is, that of the first output.
    """
    differences = [difference_of(outputs) for outputs in zip(*(zip(*pair, strict=True) for pair in pairs), strict=True)]
    return next((difference for difference in differences if not difference.is_small), differences[0])


def difference_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Difference:
    """Compare (the file's, the model's) output of batches.

    The measure is the largest difference or, of whole numbers, which are classes, how many are equal.
    """
    if np.issubdtype(pairs[0][1].dtype, np.integer):
        equal = sum(int((own == expected).sum()) for own, expected in pairs)
        share = equal / sum(expected.size for _, expected in pairs)
        return Difference("equal_share", share, share >= EQUAL_SHARE, f"{share:.4%} of the labels are equal")
    largest = max(np.abs(expected).max() for _, expected in pairs)
    value = float(max(np.abs(own - expected).max() for own, expected in pairs) / largest)
    text = f"largest difference {value:.1e} of the largest value"
    return Difference("relative_difference", value, value <= TOLERANCE, text)
