"""Predicts the classes of image files, and prints them in several forms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.image_files import reason_of
from focal_twins.data.image_source import ImageSource, names_of
from focal_twins.data.read_ahead import read_ahead
from focal_twins.data.text_files import read_lines
from focal_twins.data.transforms import Preprocessing
from focal_twins.errors import UserError
from focal_twins.files.names import escape_name
from focal_twins.phrases import counted
from focal_twins.tasks.prediction_printers import CsvPrinter, JsonPrinter, Printer
from focal_twins.tasks.task import Predictor


@dataclass(frozen=True)
class Classifier:
    """Turns images into logits, whatever kind of file the model came from.

    Attributes:
        logits: computes logits [B, classes] of images [B, C, H, W] float32.
        batch_size: number of images that `logits` takes, or None for any.
        classes: names of the classes by output, or None.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    preprocessing: Preprocessing
    batch_size: int | None
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Prediction:
    """Holds a classifier's answer for one image.

    Attributes:
        probabilities: [classes] float64, or None for an unreadable image.
        problem: the reason why the image is unreadable.
    """

    image: str
    probabilities: np.ndarray | None
    problem: str | None = None

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return (output, probability) of the most probable classes, most probable first; equals keep their order.

        Raises:
            ValueError: the image was unreadable.
        """
        if self.probabilities is None:
            raise ValueError(f"{self.image}: nothing was predicted of what could not be read")
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(index), float(self.probabilities[index])) for index in order]


class ClassPredictor(Predictor):
    """Predicts and prints the most probable classes of images.

    Args:
        top: number of classes to print.
        names_file: file of the class names, for messages; None where the model has them.
    """

    flags = ("top",)
    images_per_call = 32

    def __init__(self, classifier: Classifier, top: int, names_file: str | None = None):
        self.classifier, self.top, self.names_file = classifier, top, names_file

    def predict(self, images, batch_size, workers):
        for prediction in predict(self.classifier, images, batch_size, workers):
            self._check_names(prediction)
            yield prediction

    def writer(self, form, stream):
        return WRITERS[form](stream, self.top, self.classifier.classes)

    def _check_names(self, prediction: Prediction) -> None:
        names, probabilities = self.classifier.classes, prediction.probabilities
        if names is not None and probabilities is not None and len(names) != len(probabilities):
            raise UserError(
                f"--classes {self.names_file}: has {counted(len(names), 'name')}, the model "
                f"{counted(len(probabilities), 'class')}"
            )


def read_names(path: str) -> list[str]:
    """Return the lines of a file of class names.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    return read_lines(path, f"--classes {path}")


def predict(classifier: Classifier, images: list, batch_size: int, workers: int) -> Iterator[Prediction]:
    """Yield a prediction for every image, in order. The next batch is read while one is classified.

    Args:
        images: see ImageSource.
        batch_size: images per call of a model that takes any number; a short batch is filled up, so that the graph's
            shape stays the same.
        workers: number of threads that read and decode.
    """
    size = classifier.batch_size or min(batch_size, len(images))
    names = names_of(images)
    for part, loaded in read_ahead(partial(_read_pixels, classifier.preprocessing), images, size, workers):
        yield from _classify_batch(classifier, names[part], loaded, size)


def _read_pixels(preprocessing: Preprocessing, source: ImageSource) -> np.ndarray | str:
    """Return the pixels [H, W, C] of an image, or the reason why it cannot be read."""
    try:
        return preprocessing.transform(preprocessing.read(source))
    except (UnreadableImage, OSError) as error:
        return reason_of(error)


def _classify_batch(
    classifier: Classifier, names: list[str], loaded: list[np.ndarray | str], size: int
) -> Iterator[Prediction]:
    """Yield the predictions of a batch, in one call of the model."""
    blank = classifier.preprocessing.blank()
    pixels = [entry if isinstance(entry, np.ndarray) else blank for entry in loaded]
    if all(isinstance(entry, str) for entry in loaded):
        logits = [None] * len(names)
    else:
        pixels += [blank] * (size - len(pixels))
        logits = classifier.logits(classifier.preprocessing.normalise(np.stack(pixels)))
    for name, entry, row in zip(names, loaded, logits, strict=False):
        if isinstance(entry, str):
            yield Prediction(name, None, entry)
        else:
            yield Prediction(name, softmax(row))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities [classes] float64 of one image's logits."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


class TextWriter(Printer):
    """Writes a line per image: its name, then classes and their probabilities. Names are written by `escape_name`.

    Args:
        top: number of classes to write.
        names: names of the classes by output, or None.
    """

    def __init__(self, stream, top: int, names: tuple[str, ...] | None):
        super().__init__(stream)
        self.top, self.names = top, names

    def best(self, prediction: Prediction) -> list[tuple[int, str | None, float]]:
        """Return (output, name, probability) of the most probable classes."""
        return [(index, self.names[index] if self.names else None, p) for index, p in prediction.top(self.top)]

    def print(self, prediction, paths):
        classes = [
            f"{f'class {index}' if name is None else escape_name(name)} {p:.2%}"
            for index, name, p in self.best(prediction)
        ]
        self.stream.write(f"{escape_name(prediction.image)}: {', '.join(classes)}\n")


class CsvWriter(CsvPrinter, TextWriter):
    """Writes a row per image and class, the most probable first. Names are written by `escape_name`."""

    head = ("image", "rank", "index", "class", "probability")

    def rows_of(self, prediction):
        for rank, (index, name, probability) in enumerate(self.best(prediction), 1):
            yield [escape_name(prediction.image), rank, index, escape_name(name or ""), f"{probability:.6g}"]


class JsonWriter(JsonPrinter, TextWriter):
    """Writes a list with an object per image, each on a line of its own."""

    def records_of(self, prediction, paths):
        classes = [{"index": i, "class": name, "probability": p} for i, name, p in self.best(prediction)]
        yield {"image": prediction.image, "predictions": classes}


WRITERS = {"text": TextWriter, "csv": CsvWriter, "json": JsonWriter}
