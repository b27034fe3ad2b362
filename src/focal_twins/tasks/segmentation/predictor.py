"""Predicts the class of every pixel of image files."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.dense_transforms import resize_label
from focal_twins.data.image_files import reason_of
from focal_twins.data.image_source import ImageSource, names_of
from focal_twins.data.label_images import read_class_names
from focal_twins.data.read_ahead import read_ahead
from focal_twins.errors import UserError
from focal_twins.files.names import escape_name
from focal_twins.models.registry import ArgumentError
from focal_twins.tasks.prediction_files import places_of
from focal_twins.tasks.segmentation.full_size import full_size_labels
from focal_twins.tasks.segmentation.inference_rule import joined_labels, unfit_size
from focal_twins.tasks.segmentation.prediction_files import WRITERS, PredictionFiles
from focal_twins.tasks.segmentation.preparation import ImagePreparation
from focal_twins.tasks.task import PredictionOptions, Predictor, outputs_in_batches


@dataclass(frozen=True, eq=False)
class Prediction:
    """Holds a segmentor's answer for one image.

    Attributes:
        place: the image's path below the folder that all images have in common, without extension.
        pixels: [H, W, C] uint8 of the image.
        labels: [H, W] int32; one past the last class where there is no prediction.
        problem: the reason why the image is unreadable; then there are neither pixels nor labels.
    """

    image: str
    place: str
    pixels: np.ndarray | None = None
    labels: np.ndarray | None = None
    problem: str | None = None


class SegmentPredictor(Predictor):
    """Predicts labels at the image's own size, as an evaluation does, and writes them as pictures.

    Args:
        answer: computes logits [B, classes, h, w], or labels [B, H, W], of images; on canvases with their `part`, too.
        batch_size: number of images that `answer` takes, or None for any.
        classes: names of the classes, or None.
        options: the flags top, classes, output, overlay and opacity.
    """

    flags = ("top", "output", "overlay", "opacity")

    def __init__(
        self,
        answer: Callable[..., np.ndarray],
        preparation: ImagePreparation,
        batch_size: int | None,
        classes: tuple[str, ...] | None,
        options: PredictionOptions,
    ):
        self.answer, self.preparation, self.batch_size, self.options = answer, preparation, batch_size, options
        if options.classes:
            classes = read_class_names(options.classes, preparation.num_classes, "--classes")
        self.classes = classes or read_class_names(None, preparation.num_classes)
        if options.output is None and (options.overlay is not None or options.opacity is not None):
            raise UserError("--overlay and --opacity: need --output FOLDER, where the pictures go")
        if options.opacity is not None and not 0 <= options.opacity <= 1:
            raise UserError(f"--opacity: must be between 0 and 1, got {options.opacity}")

    def writer(self, form, stream):
        options = self.options
        files = None
        if options.output is not None:
            opacity = 0.5 if options.opacity is None else options.opacity
            files = PredictionFiles(Path(options.output), self.classes, options.overlay or "jpeg", opacity)
        return WRITERS[form](stream, self.classes, options.top, files)

    def predict(self, images, batch_size, workers):
        names = names_of(images)
        places = places_of(names)
        size = min(batch_size, len(images))
        for part, loaded in read_ahead(self._read, images, size, workers):
            labels = self._labels(loaded, names[part], batch_size)
            for number, (entry, name, place) in enumerate(zip(loaded, names[part], places[part], strict=True)):
                if isinstance(entry, str):
                    yield Prediction(name, place, problem=entry)
                else:
                    yield Prediction(name, place, entry[0], labels[number])

    def _read(self, source: ImageSource) -> tuple[np.ndarray, list[np.ndarray]] | str:
        """Return the pixels [H, W, C] of a file and the same at each scale, or the reason why it cannot be read."""
        try:
            pixels = self.preparation.read(source)
        except (UnreadableImage, OSError) as error:
            return reason_of(error)
        return pixels, self.preparation.scaled(pixels)

    def _labels(self, loaded: list, names: list[str], batch_size: int) -> dict[int, np.ndarray]:
        """Return the labels of images by their place in a list; images of one size go through the network together."""
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, entry in enumerate(loaded):
            if not isinstance(entry, str):
                by_size[entry[0].shape[:2]].append(number)
        found: dict[int, np.ndarray] = {}
        for size, numbers in by_size.items():
            scaled = [
                self.preparation.normalise([loaded[number][1][scale] for number in numbers])
                for scale in range(len(self.preparation.scales))
            ]
            try:
                found |= dict(zip(numbers, self._labels_of(scaled, size, batch_size), strict=True))
            except ArgumentError as error:
                problem = unfit_size(self.preparation.rule.mode, scaled[0], error)
                raise UserError(
                    f"image {escape_name(names[numbers[0]])}: eval.mode {problem} (--set eval.mode=slide)"
                ) from error
        return found

    def _labels_of(self, scaled: list[np.ndarray], size, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the labels [H, W] of images [B, C, h, w] of one size, given at each scale."""
        rule = self.preparation.rule
        batch_size = self.batch_size or batch_size
        if not self.preparation.gives_labels:
            yield from map(full_size_labels, rule.views(partial(self._maps, batch_size), scaled, size))
            return
        (images,) = scaled
        for image in images:
            parts = outputs_in_batches(self.answer, rule.crops(image), batch_size)
            yield resize_label(joined_labels(parts, image.shape[1:], rule.window, rule.stride), size)

    def _maps(self, batch_size: int, images: np.ndarray, part: tuple[int, int] | None = None) -> np.ndarray:
        """Return the logits [n, h, w, classes] float32 of images [n, C, H, W]; see Maps."""
        answer = self.answer if part is None else partial(self.answer, part=part)
        logits = outputs_in_batches(answer, images, batch_size)
        return np.ascontiguousarray(np.moveaxis(logits, 1, -1), np.float32)
