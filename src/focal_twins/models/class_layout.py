"""Defines how the rows of a classifier's parameters belong to classes."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassLayout:
    """Says which rows of a classifier's parameters, [rows, ...], are whose.

    Attributes:
        blocks: parts that follow each other, each with all classes: one for each anchor of a place.
        per_class: rows of a class in each block: four where each class has its own box.
        others: rows at the end that belong to no class: the background's.
    """

    blocks: int = 1
    per_class: int = 1
    others: int = 0

    def split(self, parameter: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return views of the rows of classes, [blocks, classes, per_class, ...], and of the others, [others, ...].

        None means that the rows do not come out even.
        """
        count = len(parameter) - self.others
        if count < 0 or count % (self.blocks * self.per_class):
            return None
        rows = parameter[:count].reshape(self.blocks, -1, self.per_class, *parameter.shape[1:])
        return rows, parameter[count:]
