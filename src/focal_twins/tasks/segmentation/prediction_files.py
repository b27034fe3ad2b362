"""Writes a segmentor's predictions: as pictures in a folder, and in several forms on a stream."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from focal_twins.files.atomic import write_text
from focal_twins.files.names import escape_name
from focal_twins.pages.legend import legend
from focal_twins.pages.page import Section, page
from focal_twins.pages.palette import hexadecimal
from focal_twins.phrases import counted
from focal_twins.tasks.prediction_files import overlay_ending, save_picture
from focal_twins.tasks.prediction_printers import CsvPrinter, JsonPrinter, Printer, json_list
from focal_twins.tasks.segmentation.label_pictures import index_image, overlay

SHOWN_CLASSES = 5  # of an image, in the text form, where the user does not say it


def shares(labels: np.ndarray, classes: Sequence[str], top: int | None = None) -> list[dict]:
    """Return the classes of an image with their pixels and share of all, the largest first; equals keep their order.

    Pixels without a prediction count as pixels of the image, but are of no class.

    Args:
        top: number of classes; None for all that the image has.
    """
    counts = np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [
        {
            "index": index,
            "class": classes[index],
            "color": hexadecimal(index),
            "pixels": int(counts[index]),
            "share": int(counts[index]) / labels.size,
        }
        for index in order[:top]
    ]


class PredictionFiles:
    """Writes the pictures of predictions into a folder, whose structure is that of the images.

    - labels/PLACE.png: numbers of classes, with the palette;
    - overlays/PLACE.jpg: the image with the classes painted over it;
    - shares.json: what `shares` gives of every image, and where its pictures are;
    - legend.html: the colours of the classes that occur.

    Args:
        overlay: "jpeg", "png" or "none".
        opacity: of the colours over the image, from 0 to 1.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], overlay: str, opacity: float):
        self.folder, self.classes, self.ending, self.opacity = folder, classes, overlay_ending(overlay), opacity
        self.records: list[dict] = []

    def add(self, prediction) -> dict:
        """Write a prediction's pictures; return their paths by kind.

        Raises:
            UserError: no room or no permission.
        """
        classes = len(self.classes)
        paths = {"labels": self.folder / "labels" / f"{prediction.place}.png"}
        save_picture(index_image(prediction.labels, classes), paths["labels"])
        if self.ending is not None:
            paths["overlay"] = self.folder / "overlays" / f"{prediction.place}{self.ending}"
            painted = overlay(prediction.pixels, prediction.labels, classes, self.opacity)
            save_picture(Image.fromarray(painted), paths["overlay"])
        self.records.append(record(prediction, self.classes, None) | _as_text(paths))
        return paths

    def finish(self) -> None:
        """Write what is about all predictions so far."""
        seen = sorted({entry["index"] for line in self.records for entry in line["classes"]})
        write_text(self.folder / "shares.json", json_list(self.records))
        title = "Colours of the classes"
        content = legend([(index, self.classes[index]) for index in seen])
        write_text(
            self.folder / "legend.html", page(title, counted(len(self.records), "image"), [Section("Classes", content)])
        )


def record(prediction, classes: tuple[str, ...], top: int | None) -> dict:
    """Return what the JSON forms say of a prediction."""
    height, width = prediction.labels.shape
    return {
        "image": prediction.image,
        "width": width,
        "height": height,
        "classes": shares(prediction.labels, classes, top),
    }


def _as_text(paths: dict[str, Path]) -> dict[str, str]:
    return {kind: str(path) for kind, path in paths.items()}


class TextWriter(Printer):
    """Writes a line per image: its name, then the classes with the largest shares. Names are written by `escape_name`.

    Args:
        top: number of classes; None for all of an image, and in the text form for a few.
        files: writes the pictures; None for none.
    """

    def __init__(self, stream, classes: tuple[str, ...], top: int | None, files: PredictionFiles | None):
        super().__init__(stream, files)
        self.classes, self.top = classes, top

    def print(self, prediction, paths):
        entries = shares(prediction.labels, self.classes, self.top or SHOWN_CLASSES)
        told = ", ".join(f"{escape_name(entry['class'])} {entry['share']:.2%}" for entry in entries)
        self.stream.write(f"{escape_name(prediction.image)}: {told or 'no prediction'}\n")


class CsvWriter(CsvPrinter, TextWriter):
    """Writes a row per image and class, the largest share first. Names are written by `escape_name`."""

    head = ("image", "rank", "index", "class", "pixels", "share")

    def rows_of(self, prediction):
        for rank, entry in enumerate(shares(prediction.labels, self.classes, self.top), 1):
            names = escape_name(prediction.image), escape_name(entry["class"])
            yield [names[0], rank, entry["index"], names[1], entry["pixels"], f"{entry['share']:.6g}"]


class JsonWriter(JsonPrinter, TextWriter):
    """Writes a list with an object per image, each on a line of its own."""

    def records_of(self, prediction, paths):
        yield record(prediction, self.classes, self.top) | _as_text(paths)


WRITERS = {"text": TextWriter, "csv": CsvWriter, "json": JsonWriter}
