"""Writes a detector's predictions: drawn over the images in a folder, and in several forms on a stream."""

from collections import Counter
from pathlib import Path

from PIL import Image

from focal_twins.files.atomic import TextFile
from focal_twins.files.names import escape_name
from focal_twins.models.detectors.selection import Detections
from focal_twins.pages.palette import palette
from focal_twins.tasks.detection.drawing import Outline, draw_outlines, drawn_name, enlargement
from focal_twins.tasks.detection.mask_pasting import packed_masks
from focal_twins.tasks.detection.results import SCORE_DIGITS, coco_boxes
from focal_twins.tasks.prediction_files import overlay_ending, save_picture
from focal_twins.tasks.prediction_printers import CsvPrinter, JsonList, JsonPrinter, Printer


def records(prediction, classes: tuple[str, ...]) -> list[dict]:
    """Return the detections of an image in the form of COCO's results, the best first, with names.

    Images are numbered as they were given, from 1, and categories as the model numbers its classes, from 0.
    """
    found: Detections = prediction.found
    size = prediction.pixels.shape[:2]
    entries = [
        {
            "image_id": prediction.number,
            "file_name": prediction.image,
            "category_id": label,
            "category": classes[label],
            "bbox": box,
            "score": round(score, SCORE_DIGITS),
        }
        for box, score, label in zip(coco_boxes(found.boxes), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if found.masks is not None and found.mask_boxes is not None:
        for entry, counts in zip(entries, packed_masks(found.masks, found.mask_boxes, size), strict=True):
            entry["segmentation"] = {"size": list(size), "counts": counts.decode("ascii")}
    return entries


class DrawnPredictions:
    """Draws predictions into a folder, whose structure is that of the images.

    - overlays/PLACE.jpg: the image with its objects, each in the colour of its class;
    - detections.json: what `records` gives of all images, written as they come.

    Args:
        overlay: "jpeg", "png" or "none".

    Raises:
        UserError: no room or no permission.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], overlay: str):
        self.folder, self.classes, self.ending = folder, classes, overlay_ending(overlay)
        self.file = TextFile(folder / "detections.json")
        self.records = JsonList(self.file)

    def add(self, prediction) -> dict:
        """Draw a prediction; return the picture's path by its kind. Raises as the constructor."""
        entries = records(prediction, self.classes)
        for entry in entries:
            self.records.write(entry)
        if self.ending is None:
            return {}
        path = self.folder / "overlays" / f"{prediction.place}{self.ending}"
        save_picture(Image.fromarray(drawn(prediction.pixels, entries)), path)
        return {"overlay": path}

    def finish(self) -> None:
        """End the list of detections: the file takes its name."""
        self.records.end()
        self.file.close()


def drawn(pixels, entries: list[dict]):
    """Draw the records of an image over its pixels [H, W, C], the best on top; small images are enlarged.

    Returns:
        [h, w, 3] uint8, a whole number of times the image's size.
    """
    size, factor = pixels.shape[:2], enlargement(pixels.shape[:2])
    outlines = []
    for entry in reversed(entries):
        x, y, width, height = entry["bbox"]
        label = entry["category_id"]
        red, green, blue = palette(label + 1)[label].tolist()
        outlines.append(
            Outline(
                (x, y, x + width, y + height),
                f"{drawn_name(entry['category'], label)} {entry['score']:.2f}",
                (red, green, blue),
                segmentation=entry.get("segmentation"),
            )
        )
    return draw_outlines(pixels.repeat(factor, 0).repeat(factor, 1), outlines, factor, size)


class TextWriter(Printer):
    """Writes a line per image: its name and how many objects of each class it has. Names go through `escape_name`.

    Args:
        files: draws the pictures; None for none.
    """

    def __init__(self, stream, classes: tuple[str, ...], files: DrawnPredictions | None):
        super().__init__(stream, files)
        self.classes = classes

    def print(self, prediction, paths):
        counts = Counter(prediction.found.labels.tolist())
        told = ", ".join(f"{count} {escape_name(self.classes[label])}" for label, count in counts.most_common())
        self.stream.write(f"{escape_name(prediction.image)}: {told or 'nothing'}\n")


class CsvWriter(CsvPrinter, TextWriter):
    """Writes a row per detection, the best of an image first. Names are written by `escape_name`."""

    head = ("image", "rank", "index", "class", "score", "x1", "y1", "x2", "y2")

    def rows_of(self, prediction):
        found = prediction.found
        for rank, (box, score, label) in enumerate(zip(found.boxes, found.scores, found.labels, strict=True), 1):
            name = escape_name(self.classes[label])
            yield [escape_name(prediction.image), rank, label, name, f"{score:.6g}", *(f"{v:.2f}" for v in box)]


class JsonWriter(JsonPrinter, TextWriter):
    """Writes a list with an object per detection, see `records`, each on a line of its own."""

    def records_of(self, prediction, paths):
        return records(prediction, self.classes)


WRITERS = {"text": TextWriter, "csv": CsvWriter, "json": JsonWriter}
