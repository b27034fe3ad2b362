"""Defines what every data set gives the pipeline, whatever its samples are labelled with."""

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np

from focal_twins.errors import UserError
from focal_twins.phrases import counted


class DataError(UserError):
    """Says that a data set cannot be used; the message names the folder and the remedy."""


class Dataset(ABC):
    """Holds samples in a fixed order, each with the content of an image file.

    Attributes:
        path: the folder or file that messages name.
        classes: names of the classes by label.
        size: number of samples.
        columns: names of the values that the reader gives for each sample.
        fixed_order: the reader takes samplers of one fixed order only, so that every epoch needs a reader of its own.
        names_classes: the names are the data's own; False where they are numbers for want of names.
        is_held_back: the samples are a share of the training set's that is kept for validation.
        notices: lines about what is odd here, such as files that were left out; whoever opens it prints them.
    """

    path: Path
    classes: tuple[str, ...]
    size: int
    columns: tuple[str, ...]
    fixed_order = False
    names_classes = True
    is_held_back = False
    notices: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What a line about a run says of it."""
        return counted(len(self.classes), "class")

    @cached_property
    def listing(self) -> str:
        """Which samples there are, as "format:checksum": equal where two processes or sessions found the same names."""
        checksum = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()
        return f"{type(self).__name__}:{checksum[:16]}"

    @abstractmethod
    def reader(self, sampler):
        """Make a MindSpore dataset of the columns, in the order of a MindSpore sampler."""

    @cached_property
    @abstractmethod
    def names(self) -> list[str]:
        """The file names of all samples, relative to the path."""

    def name(self, index: int) -> str:
        """Return the file name of one sample, without making a list of all where that can be avoided."""
        return self.names[index]

    @abstractmethod
    def content(self, index: int) -> np.ndarray:
        """Return the file content [n] uint8 of one sample.

        Raises:
            OSError: the file cannot be read.
        """


class NumberedSamples:
    """Gives MindSpore's reading thread random access to the number of a sample, and its values in further columns."""

    def __init__(self, size: int, *columns: np.ndarray):
        self.size, self.columns = size, columns

    def __getitem__(self, index):
        return np.int64(index), *(column[index] for column in self.columns)

    def __len__(self):
        return self.size
