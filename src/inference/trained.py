"""Trained models to be used outside training: what a checkpoint alone, or an exported file, is enough for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from src.config.load import Config, load_config, parse_config
from src.data.transforms import Preprocessing, UnreadableImage
from src.distributed.ranks import start
from src.errors import UserError
from src.files.weights import read_checkpoint
from src.inference.evaluate import load_for_inference
from src.inference.exported import RUNNABLE, ExportedModel
from src.training.checkpoint import CONFIG


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's model in evaluation mode, float32, with what is known of it."""

    config: Config
    network: nn.Cell
    weights: str  # "raw" or "ema"
    classes: tuple[str, ...] | None  # names by output

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.of(self.config, self.network.img_size)


def open_checkpoint(
    checkpoint: str,
    config_name: str | None = None,
    overrides: Sequence[str] = (),
    weights: str = "auto",
    device_target: str | None = None,
) -> TrainedModel:
    """A model from a checkpoint, on this machine's device.

    Args:
        config_name: of the configuration; None for the one that training wrote into the checkpoint.
        overrides: "section.key=value".

    Raises:
        UserError: no such file, no configuration in it, or weights of another model.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    # Where the run was trained is no matter here.
    flags = {"runtime.device_target": device_target or "auto", "runtime.device_id": None}
    if config_name is not None:
        config = load_config(config_name, overrides, flags)
    elif CONFIG in content:
        config = parse_config(str(content[CONFIG]), path, overrides, flags)
    else:
        raise UserError(f"checkpoint {path}: holds weights without their configuration; name it with --config NAME")
    dist = start(config)
    network, used, classes = load_for_inference(config, path, weights, dist.device_target, content)
    return TrainedModel(config, network, used, classes)


@dataclass(frozen=True)
class Classifier:
    """Images to logits, whatever kind of file the model came from.

    Attributes:
        logits: of images [B, C, H, W] float32, [B, classes].
        batch_size: that `logits` takes, or None for any.
        classes: names by output, or None.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    preprocessing: Preprocessing
    batch_size: int | None
    classes: tuple[str, ...] | None


def open_classifier(path: str, **options) -> Classifier:
    """A classifier from a checkpoint, or from an exported file with its description beside it, by the suffix.

    Args:
        options: of open_checkpoint; exported files have no choice.

    Raises:
        UserError: see open_checkpoint and ExportedModel.
    """
    if Path(path).suffix.lower() in RUNNABLE:
        model = ExportedModel(Path(path))
        return Classifier(model.logits, model.preprocessing, model.batch_size, model.classes)
    model = open_checkpoint(path, **options)
    network = model.network
    return Classifier(lambda images: network(Tensor(images)).asnumpy(), model.preprocessing, None, model.classes)


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        probabilities: [classes] float64, or None for an unreadable image.
        problem: why it is unreadable.
    """

    image: str
    probabilities: np.ndarray | None
    problem: str | None = None

    def top(self, count: int) -> list[tuple[int, float]]:
        """(output, probability) of the most probable classes, the first of equals first.

        Raises:
            ValueError: the image was unreadable.
        """
        if self.probabilities is None:
            raise ValueError(f"{self.image}: nothing was predicted of what could not be read")
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(index), float(self.probabilities[index])) for index in order]


def predict(classifier: Classifier, images: list[str], batch_size: int, workers: int) -> Iterator[Prediction]:
    """A prediction for every image file, in order. The next batch is read while one is classified.

    Args:
        batch_size: of models that take any; a short batch is filled up, for a graph to keep its shape.
        workers: threads that read and decode.
    """
    size = classifier.batch_size or min(batch_size, len(images))
    with ThreadPoolExecutor(workers) as threads:

        def read_ahead(first: int) -> list:
            return [threads.submit(_read, classifier.preprocessing, name) for name in images[first : first + size]]

        ahead = read_ahead(0)
        for first in range(0, len(images), size):
            read, ahead = [future.result() for future in ahead], read_ahead(first + size)
            yield from _classified(classifier, images[first : first + size], read, size)


def _read(preprocessing: Preprocessing, name: str) -> np.ndarray | str:
    """Pixels [H, W, C] of a file, or why there are none."""
    try:
        return preprocessing.pixels(np.fromfile(name, np.uint8))
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _classified(
    classifier: Classifier, names: list[str], read: list[np.ndarray | str], size: int
) -> Iterator[Prediction]:
    """Predictions of a batch, in one call of the model."""
    blank = classifier.preprocessing.blank()
    pixels = [entry if isinstance(entry, np.ndarray) else blank for entry in read]
    if all(isinstance(entry, str) for entry in read):
        logits = [None] * len(names)
    else:
        pixels += [blank] * (size - len(pixels))
        logits = classifier.logits(classifier.preprocessing.normalise(np.stack(pixels)))
    for name, entry, row in zip(names, read, logits, strict=False):
        if isinstance(entry, str):
            yield Prediction(name, None, entry)
        else:
            yield Prediction(name, softmax(row))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [classes] float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()
