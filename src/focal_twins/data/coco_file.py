"""Reads a COCO JSON file into arrays, and refuses one that is faulty by a line that names the file and the fault.

The format: https://cocodataset.org/#format-data. Ids may have gaps and come in any order. `area` and `iscrowd` may be
missing: they are then the box's area, and 0. Numbers may be whole or not; they must be finite.
"""

import gc
import json
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.files.names import escape_name

LISTS = ("images", "annotations", "categories")
MISSING = object()


class PackedObjects:
    """Holds many small Python objects as bytes of one array, so that worker processes share their memory.

    As objects they would be copied to each worker as soon as it looks at them, because of their reference counts.
    """

    def __init__(self, objects: Iterable):
        parts = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in objects]
        self.ends = np.cumsum([0, *map(len, parts)])
        self.content = np.frombuffer(b"".join(parts), np.uint8)

    def __getitem__(self, index: int):
        return pickle.loads(self.content[self.ends[index] : self.ends[index + 1]].tobytes())


@dataclass(frozen=True)
class CocoFile:
    """Holds the content of a COCO JSON file. Images and categories are numbered in its order, from 0.

    Attributes:
        path: of the file.
        image_ids, names, sizes: of each image: its id, its file name, and [N, 2] (height, width).
        category_ids, category_names: of each category.
        annotation_ids: [M] int64. images, categories: [M] the numbers of each annotation's image and category.
        boxes: [M, 4] float64 (x, y, width, height) as they are given.
        areas: [M] float64. crowds: [M] bool.
        ignored: [M] bool: what carries "ignore", which some tools write for what is not to be trained on.
        segmented: [M] bool: what has a segmentation.
        segmentations: each annotation's segmentation as it is given, or None; None where they were not asked for.
    """

    path: Path
    image_ids: list[int]
    names: list[str]
    sizes: np.ndarray
    category_ids: list[int]
    category_names: list[str]
    annotation_ids: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    ignored: np.ndarray
    segmented: np.ndarray
    segmentations: PackedObjects | None


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause Python's search for cycles, which would go through the millions of objects of a large JSON many times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@collection_paused()
def read_coco(path: Path, with_segmentations: bool = False) -> CocoFile:
    """Read a COCO JSON file.

    Raises:
        DataError: it cannot be read, or is no COCO JSON, or has duplicate ids, annotations of unknown images or
            categories, or boxes and segmentations that are none.
    """
    content = _load(path)
    images, annotations, categories = (content[name] for name in LISTS)
    faults = _Faults(path)
    image_ids = faults.ids(images, "image")
    names = faults.texts(images, "image", "file_name")
    sizes = np.stack([faults.sides(images, side) for side in ("height", "width")], axis=1)
    category_ids = faults.ids(categories, "category")
    category_names = faults.texts(categories, "category", "name")
    annotation_ids = faults.ids(annotations, "annotation")
    image_numbers = faults.references(annotations, "image", image_ids)
    category_numbers = faults.references(annotations, "category", category_ids)
    boxes = faults.boxes(annotations, names, image_numbers)
    areas = faults.numbers(annotations, "area", boxes[:, 2] * boxes[:, 3])
    crowds, ignored, segmented = (
        np.array([bool(entry.get(key)) for entry in annotations], bool).reshape(-1)
        for key in ("iscrowd", "ignore", "segmentation")
    )
    segmentations = None
    if with_segmentations:
        given = [entry.get("segmentation") or None for entry in annotations]
        faults.check_segmentations(given, annotations, sizes[image_numbers])
        segmentations = PackedObjects(given)
    return CocoFile(
        path,
        image_ids,
        names,
        sizes,
        category_ids,
        category_names,
        np.array(annotation_ids, np.int64),
        image_numbers,
        category_numbers,
        boxes,
        areas,
        crowds,
        ignored,
        segmented,
        segmentations,
    )


def _load(path: Path) -> dict:
    """Return the JSON object of a file, whose three lists are lists of objects."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"COCO JSON {path}: cannot be read ({error.strerror}); set data.path, data.train_annotations and "
            "data.val_annotations"
        ) from error
    except (ValueError, RecursionError) as error:  # also of bytes that are no text
        raise DataError(f"COCO JSON {path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        results = "; results of a detector are no annotations" if isinstance(content, list) else ""
        raise DataError(f"COCO JSON {path}: holds no object with images, annotations and categories{results}")
    for name in LISTS:
        if name not in content:
            raise DataError(
                f"COCO JSON {path}: is no COCO file of objects: it has no list {name!r}, only "
                f"{', '.join(map(repr, list(content)[:5])) or 'nothing'}"
            )
        entries = content[name]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"COCO JSON {path}: {name!r} is no list of objects")
    for name in ("images", "categories"):
        if not content[name]:
            raise DataError(f"COCO JSON {path}: the list {name!r} is empty")
    return content


class _Faults:
    """Takes columns from lists of JSON objects, and names the first entry that has no such value."""

    def __init__(self, path: Path):
        self.path = path

    def error(self, fault: str) -> DataError:
        return DataError(f"COCO JSON {self.path}: {fault}")

    def of(self, kind: str, number: int, entry: dict, fault: str) -> DataError:
        """Return an error about one entry, the `number`-th of its list from 0."""
        known = f"with id {entry['id']!r}" if "id" in entry else f"number {number + 1} of the list"
        return self.error(f"the {kind} {known} {fault}")

    def column(self, entries: list[dict], kind: str, key: str, fits: Callable[[object], bool], what: str) -> list:
        """Return the values of a key.

        Raises:
            DataError: an entry has none, or one that does not fit.
        """
        values = [entry.get(key, MISSING) for entry in entries]
        for number, value in enumerate(values):
            if value is MISSING:
                raise self.of(kind, number, entries[number], f"has no {key!r}")
            if not fits(value):
                raise self.of(kind, number, entries[number], f"has {key!r} {_shown(value)}, which is no {what}")
        return values

    def ids(self, entries: list[dict], kind: str) -> list[int]:
        values = self.column(entries, kind, "id", _is_whole, "whole number")
        if len(set(values)) < len(values):
            raise self.error(f"{_plural(kind)} share the id {_first_repeated(values)}; every one needs its own")
        return values

    def texts(self, entries: list[dict], kind: str, key: str) -> list[str]:
        values = self.column(entries, kind, key, lambda value: isinstance(value, str) and bool(value), "name")
        if len(set(values)) < len(values):
            name = _first_repeated(values)
            raise self.error(f"{_plural(kind)} share the {key} {escape_name(name)!r}; every one needs its own")
        return values

    def sides(self, images: list[dict], key: str) -> np.ndarray:
        values = self.column(images, "image", key, _is_positive, "number of pixels")
        return np.array(values, np.int64)

    def references(self, annotations: list[dict], kind: str, ids: list[int]) -> np.ndarray:
        """Return the numbers [M] of the images or categories that annotations name by their ids."""
        key = f"{kind}_id"
        numbers = {value: number for number, value in enumerate(ids)}
        values = self.column(annotations, "annotation", key, _is_whole, "whole number")
        found = [numbers.get(value, -1) for value in values]
        if unknown := found.count(-1):
            first = found.index(-1)
            more = f"; nor for {unknown - 1} more" if unknown > 1 else ""
            fault = f"is of {key} {values[first]}, and there is no such {kind}{more}"
            raise self.of("annotation", first, annotations[first], fault)
        return np.array(found, np.int64)

    def boxes(self, annotations: list[dict], names: list[str], images: np.ndarray) -> np.ndarray:
        """Return the boxes [M, 4]."""
        values = self.column(
            annotations,
            "annotation",
            "bbox",
            lambda box: isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)),
            "list of four numbers",
        )
        for number, box in enumerate(values):
            if not all(map(_is_finite, box)):
                name = escape_name(names[images[number]])
                fault = f"(image {name}) has a bbox that is not finite: {_shown(box)}"
                raise self.of("annotation", number, annotations[number], fault)
        return np.array(values, np.float64).reshape(-1, 4)

    def numbers(self, annotations: list[dict], key: str, otherwise: np.ndarray) -> np.ndarray:
        """Return the numbers [M] of a key, and others where it is missing."""
        for number, entry in enumerate(annotations):
            value = entry.get(key, 0)
            if not _is_finite(value):
                raise self.of("annotation", number, entry, f"has {key!r} {_shown(value)}, which is no finite number")
        values = [entry.get(key, other) for entry, other in zip(annotations, otherwise, strict=True)]
        return np.array(values, np.float64)

    def check_segmentations(self, given: list, annotations: list[dict], sizes: np.ndarray) -> None:
        """Check that segmentations are polygons or run lengths of the image's size."""
        for number, (segmentation, size) in enumerate(zip(given, sizes, strict=True)):
            if segmentation is not None and (fault := _fault_of(segmentation, size)):
                raise self.of("annotation", number, annotations[number], f"has a segmentation {fault}")


def _fault_of(segmentation, size: np.ndarray) -> str | None:
    """Say what is wrong with a segmentation of an image of a size (height, width); None where nothing is."""
    if isinstance(segmentation, list):
        whole = all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(_is_finite, polygon))
            for polygon in segmentation
        )
        return None if whole else "with a polygon that is no list of three corners or more, of finite x and y in turn"
    if not (isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys()):
        return "that is neither polygons nor run lengths (size and counts)"
    if segmentation["size"] != size.tolist():
        return f"of size {segmentation['size']}, and its image is {size.tolist()} (height, width)"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = unpack_run_lengths(counts)
    if not (isinstance(counts, list) and all(_is_whole(count) and count >= 0 for count in counts)):
        return "whose counts are no run lengths, neither a list nor packed into a text"
    return None if sum(counts) == size.prod() else f"whose {sum(counts)} pixels are not those of its image"


def unpack_run_lengths(text: str) -> list[int] | None:
    """Return the run lengths that COCO's packed text stands for; None where it is none.

    A character holds five bits, the least first, and whether more follow; from the fourth length on, the difference to
    the length before the last is packed. pycocotools takes a text of too few pixels, and leaves the others unset.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return None if shift else lengths


def _is_whole(value) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_positive(value) -> bool:
    return _is_whole(value) and value > 0


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _is_finite(value) -> bool:
    """Tell whether float64 has a number; JSON has whole numbers beyond."""
    return _is_number(value) and abs(value) <= sys.float_info.max


def _first_repeated(values: list):
    return next(value for value, count in Counter(values).items() if count > 1)


def _plural(kind: str) -> str:
    return {"category": "categories"}.get(kind, f"{kind}s")


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
