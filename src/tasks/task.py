"""What a task is: everything that training, evaluation, export and reports know of a kind of target.

A task answers a few questions; one loop asks them. Nothing here or above names a class, a logit, a label or a box.

    data set -> samples (workers) -> batches (a thread) -> loss cell -> update
    data set -> samples -> batches -> Evaluator.add -> Result -> metrics.jsonl, evaluation.json -> report
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from mindspore import Tensor, nn

from src.config.load import Config
from src.data.dataset import Dataset
from src.data.pipeline import EvalSamples, TrainSamples, UnreadableImages
from src.distributed.ranks import Dist
from src.pages.page import Section
from src.tasks.losses import Losses


@dataclass(frozen=True)
class Figure:
    """A number that an evaluation gives.

    Attributes:
        key: its name in files.
        title, unit: for people.
        format: how it is printed.
    """

    key: str
    title: str
    unit: str = ""
    format: str = ".4f"

    def shown(self, value: float) -> str:
        """Return a value with its unit: 98.61%."""
        return f"{value:{self.format}}{self.unit}"


@dataclass(frozen=True)
class TensorSpec:
    """Name and shape of an input or output of an exported model; None is the batch."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an exported model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Result(ABC):
    """What an evaluation came to. Its text is one line for the log."""

    @property
    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The task's figures by key."""

    @abstractmethod
    def content(self) -> dict:
        """Return what evaluation.json says of it, but for large arrays."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that belong into evaluation.json or, where they are large, beside it."""
        return {}

    def remarks(self) -> list[str]:
        """Return lines for the terminal that explain the figures."""
        return []


class Evaluator(ABC):
    """Takes in evaluation batches and says what they come to over all ranks.

    Attributes:
        notice: a line to print before an evaluation that is not simply of the model's classes.
    """

    notice: str | None = None

    @abstractmethod
    def add(self, network: nn.Cell, batch: tuple[np.ndarray, ...]) -> None:
        """Run the network on a batch and count what it answers."""

    @abstractmethod
    def result(self) -> Result:
        """Return what all ranks' batches came to, and start anew. All ranks call this together."""


class Predictor(ABC):
    """Answers for image files, and writes the answers.

    Attributes:
        formats: names of the forms of output.
    """

    formats: tuple[str, ...]

    @abstractmethod
    def predict(self, images: list[str], batch_size: int, workers: int) -> Iterator:
        """Yield what is found in each image file, in order: objects with `image`, and `problem` where it has one.

        Args:
            batch_size: images per call of a model that takes any number.
            workers: threads that read and decode.
        """

    @abstractmethod
    def writer(self, form: str, stream):
        """Return a context manager whose `write` takes what `predict` yields and prints it to a stream."""


class Task(ABC):
    """A kind of target, as a configuration asks for it.

    Attributes:
        name: what `task:` in a configuration says.
        figures: of an evaluation; the first chooses the best checkpoint, higher is better.
    """

    name: ClassVar[str]
    figures: ClassVar[tuple[Figure, ...]]

    def __init__(self, config: Config):
        self.config = config

    @abstractmethod
    def check(self) -> None:
        """Refuse what a configuration asks of training and cannot have.

        Raises:
            UserError: names the key.
        """

    @abstractmethod
    def open(self, split: str, classes: tuple[str, ...] | None = None) -> Dataset:
        """Open the data set that the configuration names for a split: "train" or "val".

        Args:
            classes: names of the classes, for formats that do not say them.

        Raises:
            DataError: there is none, or it cannot be used.
        """

    @abstractmethod
    def check_data(self, train: Dataset, val: Dataset) -> None:
        """Hold the data sets of a run against each other and against the model.

        Raises:
            DataError: they do not fit.
        """

    @abstractmethod
    def losses(self, network: nn.Cell) -> Losses:
        """Return the cell that makes the parts of the loss of a training batch and the step's noise."""

    @abstractmethod
    def noise(self, model: nn.Cell, generator: np.random.Generator, batch: tuple[np.ndarray, ...]) -> tuple:
        """Draw what a training step needs beside its batch; returns the last arguments of the loss cell."""

    @abstractmethod
    def train_samples(self, model: nn.Cell, data: Dataset, unreadable: UnreadableImages, epochs: int) -> TrainSamples:
        """Return what turns the samples of a data set into training batches of a model, in a run of some epochs."""

    @abstractmethod
    def eval_samples(self, model: nn.Cell, data: Dataset, unreadable: UnreadableImages) -> EvalSamples:
        """Return what turns the samples of a data set into evaluation batches of a model."""

    @property
    def repeats(self) -> int:
        """How many times in a row a sample comes in an epoch (repeated augmentation)."""
        return 1

    @abstractmethod
    def evaluator(
        self,
        model: nn.Cell,
        data: Dataset,
        dist: Dist,
        classes: tuple[str, ...] | None = None,
        label: str = "the model",
    ) -> Evaluator:
        """Return what evaluates networks on a data set.

        Args:
            classes: names of the model's classes, where they are known.
            label: what messages call the model.

        Raises:
            DataError: the data set's classes do not fit the model's.
        """

    @abstractmethod
    def signature(self, model: nn.Cell, batch_size: int | None) -> Signature:
        """Return the inputs and outputs of the exported model; a batch size of None is any."""

    @abstractmethod
    def sample_inputs(self, model: nn.Cell, count: int) -> tuple[np.ndarray, str]:
        """Return inputs [count, ...] to verify an exported model with, and a few words on what they are."""

    @abstractmethod
    def preprocessing(self, model: nn.Cell) -> dict:
        """Return how an image becomes the input of the exported model, in words and numbers."""

    @classmethod
    @abstractmethod
    def predictor(
        cls,
        answer: Callable[[np.ndarray], np.ndarray],
        preprocessing: dict,
        batch_size: int | None,
        classes: tuple[str, ...] | None,
        options,
    ) -> Predictor:
        """Return what answers for image files.

        Args:
            answer, preprocessing, batch_size, classes: see inference/trained.py, OpenedModel.
            options: the parsed flags of scripts/predict.py.

        Raises:
            UserError: the options do not fit the model.
        """

    # --- reports: made of files, whose configuration may be of an earlier version ------------------------------------

    @classmethod
    @abstractmethod
    def read_evaluation(cls, path: Path, content: dict) -> dict:
        """Check the content of evaluation.json and complete it with the arrays beside it.

        Raises:
            UserError: something is missing or damaged.
        """

    @classmethod
    @abstractmethod
    def sections(cls, evaluation: dict | None, config: dict, data: Path | None, roots: Iterable[Path]) -> list[Section]:
        """Return the task's own sections of report.html.

        Args:
            evaluation: see `read_evaluation`; None where there is none yet.
            config: of the run, by section.
            data: folder that holds the evaluation images, if not where the configuration says.
            roots: folders that a relative path in the configuration may begin from.
        """


def evaluate(network: nn.Cell, batches: Iterable[tuple[np.ndarray, ...]], evaluator: Evaluator) -> Result:
    """Evaluate a network over one pass of evaluation batches; it is put into evaluation mode and back."""
    was_training = network.training
    network.set_train(False)
    for batch in batches:
        evaluator.add(network, batch)
    network.set_train(was_training)
    return evaluator.result()


def outputs_of_short_batch(network: nn.Cell, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return a network's outputs [n, ...] for n <= batch_size images, computed at one size for its graph to keep."""
    short = batch_size - len(images)
    if short:
        images = np.concatenate([images, np.zeros((short, *images.shape[1:]), images.dtype)])
    return network(Tensor(images)).asnumpy()[: batch_size - short]
