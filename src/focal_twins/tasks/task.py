"""Defines a task: everything that training, evaluation, export and reports know of a kind of target.

A task answers a few questions; one loop asks them. Nothing here or above names a class, a logit, a label or a box.

    data set -> samples (workers) -> batches (a thread) -> loss cell -> update
    data set -> samples -> batches -> Evaluator.add -> Result -> metrics.jsonl, evaluation.json -> report
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from mindspore import Tensor, nn

from focal_twins.config.load import Config
from focal_twins.data.dataset import DataError, Dataset
from focal_twins.data.pipeline import EvalSamples, TrainSamples, UnreadableImages
from focal_twins.distributed.ranks import Dist
from focal_twins.pages.page import Section
from focal_twins.tasks.export_difference import Difference, Outputs, worst_difference
from focal_twins.tasks.losses import Losses

Answer = TypeVar("Answer", np.ndarray, Outputs)


@dataclass(frozen=True)
class Figure:
    """Describes a number that an evaluation gives.

    Attributes:
        key: its name in files.
        title, unit: its name and unit for people.
        format: format in which it is printed.
    """

    key: str
    title: str
    unit: str = ""
    format: str = ".4f"

    def format_value(self, value: float) -> str:
        """Return a value with its unit: 98.61%."""
        return f"{value:{self.format}}{self.unit}"


@dataclass(frozen=True)
class TensorSpec:
    """Names an input or output of an exported model and gives its shape, in which None stands for the batch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Signature:
    """Lists the inputs and outputs of an exported model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Result(ABC):
    """Holds the outcome of an evaluation. Its text is one line for the log."""

    @property
    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The task's figures by key."""

    @abstractmethod
    def content(self) -> dict:
        """Return the content of evaluation.json, but for large arrays."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that belong into evaluation.json or, where they are large, beside it."""
        return {}

    def pictures(self) -> dict[str, bytes]:
        """Return files of small pictures by name, which belong beside evaluation.json."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Return the content of further files that belong beside evaluation.json, by the ends of their names."""
        return {}

    def remarks(self) -> list[str]:
        """Return lines for the terminal that explain the figures."""
        return []


class Evaluator(ABC):
    """Runs a network on evaluation batches and sums up its answers over all ranks.

    Attributes:
        notice: a line to print before an evaluation that is not simply of the model's classes.
    """

    notice: str | None = None

    def answering(self, network: nn.Cell, call: Callable[..., Tensor]) -> Callable:
        """Return what computes a network's outputs of inputs, for `add`. Inputs of several sizes need several networks.

        Args:
            call: calls a cell with its inputs. All ranks must call the same cells in the same order by it.
        """
        return partial(call, network)

    def answering_file(self, answer: Callable[[np.ndarray], np.ndarray]) -> Callable:
        """Return what computes the outputs of inputs, for `add`, where an exported file does so.

        Args:
            answer: computes the file's outputs [n, ...] of any number of inputs [n, ...].
        """
        return lambda images: Tensor(answer(images.asnumpy()))

    @abstractmethod
    def add(self, network: Callable, batch: tuple[np.ndarray, ...]) -> None:
        """Run the network on a batch and count its answers.

        Args:
            network: what `answering` or `answering_file` returned.
        """

    @abstractmethod
    def result(self) -> Result:
        """Return the outcome over all ranks' batches, and start anew. All ranks call this together."""


@dataclass(frozen=True)
class PredictionOptions:
    """Says what a user wants of predictions: the flags of the command predict; None is the task's default.

    Attributes:
        top: classes, or objects, to print of an image.
        threshold: the least score of an object.
        classes: a file with names of the classes.
        output: the folder for pictures. overlay: their format. opacity: of their colours, 0 to 1.
    """

    top: int | None = None
    threshold: float | None = None
    classes: str | None = None
    output: str | None = None
    overlay: str | None = None
    opacity: float | None = None


class Predictor(ABC):
    """Predicts for image files, and writes the predictions.

    Attributes:
        flags: the flags of scripts/predict.py that only some tasks have, of those that this one has.
        images_per_call: number of images per call of a model that takes any number, where the user does not say it.
    """

    flags: ClassVar[tuple[str, ...]] = ()
    images_per_call: ClassVar[int] = 1

    @abstractmethod
    def predict(self, images: list, batch_size: int, workers: int) -> Iterator:
        """Yield a prediction for each image, in order: objects with `image`, and `problem` where it has one.

        Args:
            images: files, or what else data/image_source.py reads.
            batch_size: images per call of a model that takes any number.
            workers: number of threads that read and decode.
        """

    @abstractmethod
    def writer(self, form: str, stream):
        """Return a context manager whose `write` takes a prediction, prints it to a stream and writes its files.

        Args:
            form: name of the form in which predictions are printed: text, csv or json.
        """


class Task(ABC):
    """Answers all questions about one kind of target, for one configuration.

    Attributes:
        name: the task's name, the value of `task:` in a configuration.
        figures: the figures of an evaluation; the first chooses the best checkpoint, higher is better.
        outputs: names of what an exported model can give; the first is what it gives where nobody chooses.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    figures: ClassVar[tuple[Figure, ...]]

    def __init__(self, config: Config):
        self.config = config

    @abstractmethod
    def check(self) -> None:
        """Check that training can do all that the configuration asks for.

        Raises:
            UserError: it cannot; the message names the key.
        """

    @abstractmethod
    def open(self, split: str, classes: tuple[str, ...] | None = None) -> Dataset:
        """Open the data set that the configuration names for a split: "train" or "val".

        Args:
            classes: names of the classes, for formats that do not say them.

        Raises:
            DataError: there is no such data set, or it cannot be used.
        """

    @abstractmethod
    def check_data(self, train: Dataset, val: Dataset) -> None:
        """Check that the data sets of a run fit each other and the model.

        Raises:
            DataError: they do not fit.
        """

    @abstractmethod
    def losses(self, network: nn.Cell, model: nn.Cell, data: Dataset, dist: Dist) -> Losses:
        """Return the cell that computes the parts of the loss from a training batch and the step's noise.

        Args:
            network: the model in the run's precision, which may hide its attributes; the loss calls it.
            model: describes itself.
            data: the training data set.
        """

    def batch_caveat(self, model: nn.Cell, ranks: int) -> str | None:
        """Return a line on what the batches of training are too small for; None where there is nothing."""
        return None

    @abstractmethod
    def noise(self, model: nn.Cell, generator: np.random.Generator, batch: tuple[np.ndarray, ...]) -> tuple:
        """Draw the random numbers of a training step; return them as the last arguments of the loss cell."""

    @abstractmethod
    def train_samples(self, model: nn.Cell, data: Dataset, unreadable: UnreadableImages, epochs: int) -> TrainSamples:
        """Return the object that turns samples of a data set into training batches, for a run of some epochs."""

    @abstractmethod
    def eval_samples(self, model: nn.Cell, data: Dataset, unreadable: UnreadableImages) -> EvalSamples:
        """Return the object that turns samples of a data set into evaluation batches of a model."""

    @property
    def repeats(self) -> int:
        """The number of times in a row that a sample comes in an epoch (repeated augmentation)."""
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
        """Return an evaluator of networks on a data set.

        Args:
            classes: names of the model's classes, where they are known.
            label: name of the model in messages.

        Raises:
            DataError: the data set's classes do not fit the model's.
        """

    def exported(self, model: nn.Cell, output: str) -> nn.Cell:
        """Return the cell that an exported file has: the model and what turns its outputs into what was chosen.

        Args:
            output: one of `outputs`.
        """
        return model

    def for_one_size(self, config: Config) -> Config:
        """Return the configuration by which an exported file is evaluated, whose inputs have one size."""
        return config

    def difference(self, model: nn.Cell, output: str, pairs: list[tuple[Outputs, Outputs]]) -> Difference:
        """Compare outputs of an exported file with the checkpoint's.

        Args:
            output: one of `outputs`.
            pairs: (the file's, the checkpoint's) outputs of batches, in the order of the signature.
        """
        return worst_difference(pairs)

    @abstractmethod
    def signature(self, model: nn.Cell, batch_size: int | None, output: str) -> Signature:
        """Return the inputs and outputs of the exported model; a batch size of None stands for any."""

    @abstractmethod
    def sample_inputs(self, model: nn.Cell, count: int) -> tuple[np.ndarray, str]:
        """Return inputs [count, ...] to verify an exported model with, and a few words that describe them."""

    def images_or_noise(
        self,
        readable: Callable[[Any], Iterable[np.ndarray]],
        inputs_of: Callable[[list[np.ndarray]], np.ndarray],
        shape: tuple[int, ...],
        count: int,
    ) -> tuple[np.ndarray, str]:
        """Return what `sample_inputs` does, of the first readable validation images; without any, of noise.

        Args:
            readable: lists the pixels [H, W, C] of a data set's readable images.
            inputs_of: turns the pixels of images into inputs [B, C, H, W].
            shape: [C, H, W] of an input.
        """
        try:
            images = self.open("val")
        except DataError:
            images = None
        pixels = list(islice(readable(images), count)) if images is not None else []
        if not pixels:
            noise = np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)
            return noise, "random input (no validation images here)"
        return inputs_of([pixels[index % len(pixels)] for index in range(count)]), "validation images"

    def answer(self, model: nn.Cell) -> Callable[[np.ndarray], np.ndarray]:
        """Return what computes, for a predictor, the outputs of inputs as an exported model gives them."""
        return on_arrays(model)

    @abstractmethod
    def preprocessing(self, model: nn.Cell, output: str | None) -> dict:
        """Describe in words and numbers how an image becomes the input of a model.

        Args:
            output: what an exported file gives, one of `outputs`, whose inputs have the model's own size; None for the
                model itself, which `answer` may call with others.
        """

    @classmethod
    @abstractmethod
    def predictor(
        cls,
        answer: Callable[[np.ndarray], np.ndarray],
        preprocessing: dict,
        batch_size: int | None,
        classes: tuple[str, ...] | None,
        options: PredictionOptions,
    ) -> Predictor:
        """Return a predictor for image files.

        Args:
            answer, preprocessing, batch_size, classes: see inference/trained.py, OpenedModel.

        Raises:
            UserError: the options do not fit the model.
        """

    @classmethod
    def shown_figures(cls, config: dict) -> tuple[Figure, ...]:
        """Return the figures that tell something of a run with this configuration (by section); files have all."""
        return cls.figures

    # --- reports: they are made of files, whose configuration may be of an earlier version ---------------------------

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
            config: the run's configuration by section.
            data: folder that holds the evaluation images, if they are not where the configuration says.
            roots: folders that a relative path in the configuration may begin from.
        """


def call_cell(cell: nn.Cell, *inputs) -> Tensor:
    """Return a cell's output."""
    return cell(*inputs)


def evaluate(
    network: nn.Cell,
    batches: Iterable[tuple[np.ndarray, ...]],
    evaluator: Evaluator,
    call: Callable[..., Tensor] = call_cell,
) -> Result:
    """Evaluate a network over one pass of evaluation batches. It is in evaluation mode meanwhile.

    Args:
        call: what calls a cell with its inputs (CompileCache.call).
    """
    answer = evaluator.answering(network, call)
    was_training = network.training
    network.set_train(False)
    for batch in batches:
        evaluator.add(answer, batch)
    network.set_train(was_training)
    return evaluator.result()


def on_arrays(network: Callable) -> Callable[[np.ndarray], Any]:
    """Return a network as a function of NumPy arrays; several outputs come as a tuple."""

    def answer(images: np.ndarray):
        outputs = network(Tensor(images))
        return tuple(output.asnumpy() for output in outputs) if isinstance(outputs, tuple) else outputs.asnumpy()

    return answer


def as_tuple(outputs: np.ndarray | Outputs) -> Outputs:
    """Return one output or several as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def outputs_in_batches(answer: Callable[[np.ndarray], Answer], images: np.ndarray, batch_size: int) -> Answer:
    """Return a model's output [n, ...], or several, for any number of images, batch_size of them at a time.

    The last batch is filled up with zeros, so that a network keeps its one graph.
    """
    parts: list[Answer] = []
    for first in range(0, len(images), batch_size):
        batch: np.ndarray = images[first : first + batch_size]
        short = batch_size - len(batch)
        if short:
            batch = np.concatenate([batch, np.zeros((short, *batch.shape[1:]), batch.dtype)])
        outputs = answer(batch)
        if isinstance(outputs, tuple):
            parts.append(tuple(output[: batch_size - short] for output in outputs))
        else:
            parts.append(outputs[: batch_size - short])
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))
    return np.concatenate(parts)
