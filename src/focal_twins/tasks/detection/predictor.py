"""Predicts the objects in image files."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.image_files import reason_of
from focal_twins.data.image_source import ImageSource, names_of
from focal_twins.data.label_images import read_class_names
from focal_twins.data.read_ahead import read_ahead
from focal_twins.errors import UserError
from focal_twins.models.detectors.selection import Detections
from focal_twins.tasks.detection.drawing import SHOWN_SCORE
from focal_twins.tasks.detection.finding import Finder, at_image_size, file_finder, found_in_batches, taken
from focal_twins.tasks.detection.prediction_forms import WRITERS, DrawnPredictions
from focal_twins.tasks.detection.preparation import ImagePreparation
from focal_twins.tasks.prediction_files import places_of
from focal_twins.tasks.task import PredictionOptions, Predictor, outputs_in_batches


@dataclass(frozen=True, eq=False)
class Prediction:
    """Holds what a detector finds in one image.

    Attributes:
        place: the image's path below the folder that all images have in common, without extension.
        number: the image's place among all, from 1.
        pixels: [H, W, C] uint8 of the image.
        found: the detections, in pixels of the image.
        problem: the reason why the image is unreadable; then there is nothing else.
    """

    image: str
    place: str
    number: int
    pixels: np.ndarray | None = None
    found: Detections | None = None
    problem: str | None = None


class ObjectPredictor(Predictor):
    """Finds the objects in images, as an evaluation does, and draws them.

    Args:
        answer: finds objects in images on canvases (see Finder) or, of an exported file, computes its outputs.
        batch_size: number of images that an exported file takes, or None for any.
        classes: names of the classes, or None.
        options: the flags top, threshold, classes, output and overlay.
    """

    flags = ("top", "threshold", "output", "overlay")

    def __init__(
        self,
        answer: Callable,
        preparation: ImagePreparation,
        batch_size: int | None,
        classes: tuple[str, ...] | None,
        options: PredictionOptions,
    ):
        self.answer, self.preparation, self.batch_size, self.options = answer, preparation, batch_size, options
        rule = preparation.rule
        if options.classes:
            classes = read_class_names(options.classes, rule.num_classes, "--classes")
        self.classes = classes or read_class_names(None, rule.num_classes)
        self.threshold = SHOWN_SCORE if options.threshold is None else options.threshold
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold: must be between 0 and 1, got {self.threshold}")
        # A factor makes scores lower after the rule's threshold.
        if options.threshold is not None and self.threshold < rule.score_threshold and not rule.has_factor:
            raise UserError(
                f"--threshold {self.threshold:g}: the model gives no score below {rule.score_threshold:g}; set "
                "eval.score_threshold for lower ones"
            )
        if options.output is None and options.overlay is not None:
            raise UserError("--overlay: needs --output FOLDER, where the pictures go")

    def writer(self, form, stream):
        options, files = self.options, None
        if options.output is not None:
            files = DrawnPredictions(Path(options.output), self.classes, options.overlay or "jpeg")
        return WRITERS[form](stream, self.classes, files)

    def predict(self, images, batch_size, workers):
        names = names_of(images)
        places = places_of(names)
        for part, loaded in read_ahead(self._read, images, min(batch_size, len(images)), workers):
            found = self._found(loaded, batch_size)
            named = zip(loaded, names[part], places[part], strict=True)
            for place_in_part, (entry, name, place) in enumerate(named):
                number = part.start + place_in_part + 1
                if isinstance(entry, str):
                    yield Prediction(name, place, number, problem=entry)
                else:
                    yield Prediction(name, place, number, entry[0], found[place_in_part])

    def _read(self, source: ImageSource) -> tuple[np.ndarray, np.ndarray, tuple[int, int]] | str:
        """Return of a file the pixels [H, W, C], the resized ones and their canvas, or why it cannot be read."""
        try:
            pixels = self.preparation.read(source)
        except (UnreadableImage, OSError) as error:
            return reason_of(error)
        return pixels, *self.preparation.resized(pixels)

    def _found(self, loaded: list, batch_size: int) -> dict[int, Detections]:
        """Return the detections of images by their place in a list; images of one canvas go together."""
        by_canvas: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, entry in enumerate(loaded):
            if not isinstance(entry, str):
                by_canvas[entry[2]].append(number)
        shown: dict[int, Detections] = {}
        find, size = self._finder(batch_size), self.batch_size or batch_size
        for canvas, numbers in by_canvas.items():
            images, extents = self.preparation.inputs([loaded[number][1] for number in numbers], canvas)
            for number, extent, found in zip(
                numbers, extents.tolist(), found_in_batches(find, images, extents, size), strict=True
            ):
                pixels = loaded[number][0]
                shown[number] = self._shown(at_image_size(found, extent, pixels.shape[:2]))
        return shown

    def _finder(self, batch_size: int) -> Finder:
        """Return what finds objects in images on canvases."""
        output = self.preparation.output
        if output is None:
            return self.answer
        size = self.batch_size or batch_size
        return file_finder(lambda images: outputs_in_batches(self.answer, images, size), output, self.preparation.rule)

    def _shown(self, found: Detections) -> Detections:
        """Return the detections that are certain enough, as many as are asked for at most."""
        return taken(found, np.flatnonzero(found.scores >= self.threshold)[: self.options.top])
