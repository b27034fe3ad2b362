"""Reads the labels of data sets whose folders are not simply the classes of the model.

A class map says which classes of the model the folders of a data set stand for: ImageNet-V2's folders are numbers, and
those of ImageNet-A and -R are 200 of the 1000. Valid labels (ImageNet-ReaL, arXiv 2006.07159) are several per image.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.text_files import read_text
from focal_twins.files.names import NameIndex
from focal_twins.phrases import counted

NUMBER = re.compile(r"_val_0*([1-9]\d*)")  # finds the number in ILSVRC2012_val_00000293.JPEG


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """Says which classes predictions are chosen among, and which of them each folder is.

    Attributes:
        names: names of these classes, in the order of the model's outputs.
        outputs: [classes] the model's outputs of these classes, ascending.
        labels: [folders] the place of each folder's class among them.
        restricts: whether the model has other classes too, whose logits are left out.
    """

    names: tuple[str, ...]
    outputs: np.ndarray
    labels: np.ndarray
    restricts: bool

    @classmethod
    def of(cls, output_by_folder: dict[str, int], folders: Sequence[str], names: Sequence[str], num_classes: int):
        """Make the space of a class map.

        Args:
            output_by_folder: the map, which has at least an entry for each of `folders`.
            names: names of the model's classes by output.
        """
        outputs = np.unique(list(output_by_folder.values()))
        labels = np.searchsorted(outputs, [output_by_folder[folder] for folder in folders])
        return cls(tuple(names[output] for output in outputs), outputs, labels, len(outputs) < num_classes)

    @classmethod
    def of_names(cls, folders: Sequence[str], names: Sequence[str]):
        """Make the space of folders that are called like some or all of the model's classes."""
        return cls.of({folder: names.index(folder) for folder in folders}, folders, names, len(names))

    def select(self, logits: np.ndarray) -> np.ndarray:
        """Select the logits [B, classes] of these classes from all logits [B, outputs] of a model."""
        return logits[:, self.outputs] if self.restricts else logits


def read_class_map(
    path: str | Path, folders: Sequence[str], num_classes: int, class_names: Sequence[str] | None
) -> LabelSpace:
    """Read the label space of a class-map file.

    The file is a JSON object {folder: class}, where a class is an index of the model's outputs or one of its class
    names, or a text of lines "folder index", where a folder's name may be written by `escape_name`. Predictions are
    chosen among the classes of the map, also those whose folder the data set lacks. Every class has one folder at most,
    because a prediction could not tell two apart.

    Args:
        folders: folders of the data set; the map must have an entry for each.
        class_names: class names by output, where the checkpoint knows them.

    Raises:
        DataError: no such file, or an invalid entry; the message names both.
    """
    label = f"class map {path}"
    text = read_text(path, label)
    entries = _parse_json(text, label) if text.lstrip()[:1] in ("{", "[") else _parse_lines(text, label)
    if not isinstance(entries, dict):
        raise DataError(f"{label}: must be an object {{folder: class}}, or lines of a folder and a class index")
    outputs: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for folder, value in entries.items():
        output = _entry_output(folder, value, num_classes, class_names, label)
        if output in folder_of:
            raise DataError(f"{label}: folders {folder_of[output]!r} and {folder!r} have the same class {value!r}")
        outputs[folder], folder_of[output] = output, folder
    index = NameIndex(folder_of.values())
    for folder in folders:
        found = index.find(folder)
        if found is None:
            raise DataError(f"{label}: has no entry for the folder {folder!r}")
        outputs[folder] = outputs[found]
    names = class_names or [folder_of.get(output, str(output)) for output in range(num_classes)]
    return LabelSpace.of(outputs, folders, names, num_classes)


def read_valid_labels(path: str | Path, images: Sequence[str], num_classes: int) -> list[frozenset[int]]:
    """Read the valid classes of each image, as outputs of the model; an image with none is not counted.

    Args:
        path: JSON. A list with, for each of ILSVRC2012_val_00000001.JPEG and following, the list of its classes
            (ImageNet-ReaL's real.json), or an object {file name: list of classes}; the name may be "folder/file".
        images: "folder/file" of each image of the data set.

    Raises:
        DataError: no such file, an image without an entry, or an invalid entry; the message names both.
    """
    label = f"valid labels {path}"
    content = _parse_json(read_text(path, label), label)
    if not isinstance(content, list | dict):
        raise DataError(f"{label}: must be a list of lists of classes, or an object {{file name: list of classes}}")
    if isinstance(content, list):
        entries = (_entry_by_number(content, image, label) for image in images)
    else:
        index = NameIndex(content)
        entries = (_entry_by_name(content, index, image, label) for image in images)
    return [_check_classes(classes, image, num_classes, label) for image, classes in zip(images, entries, strict=True)]


def _entry_by_number(content: list, image: str, label: str):
    number = NUMBER.search(image.rpartition("/")[2])
    if number is None:
        raise DataError(f"{label}: a list goes by the numbers of ILSVRC2012_val_00000001.JPEG; {image} has none")
    if int(number[1]) > len(content):
        raise DataError(f"{label}: has {counted(len(content), 'entry')}, too few for the image {image}")
    return content[int(number[1]) - 1]


def _entry_by_name(content: dict, index: NameIndex, image: str, label: str):
    for name in (image, image.rpartition("/")[2]):
        found = index.find(name)
        if found is not None:
            return content[found]
    raise DataError(f"{label}: has no entry for the image {image}")


def _check_classes(classes, image: str, num_classes: int, label: str) -> frozenset[int]:
    if not isinstance(classes, list) or not all(_is_output(item, num_classes) for item in classes):
        raise DataError(
            f"{label}: image {image}: must be a list of classes from 0 to {num_classes - 1}, got {classes!r}"
        )
    return frozenset(classes)


def _entry_output(folder: str, value, num_classes: int, class_names: Sequence[str] | None, label: str) -> int:
    """Return the model's output that an entry of a class map means."""
    if _is_output(value, num_classes):
        return value
    if isinstance(value, str) and class_names is None:
        raise DataError(
            f"{label}: folder {folder!r}: the checkpoint knows no class names such as {value!r}; give indices"
        )
    if class_names is not None and value in class_names:
        return class_names.index(value)
    expected = f"an index from 0 to {num_classes - 1}" + (" or a class of the checkpoint" if class_names else "")
    raise DataError(f"{label}: folder {folder!r}: {value!r} is not {expected}")


def _is_output(value, num_classes: int) -> bool:
    return type(value) is int and 0 <= value < num_classes  # True is an int, but no class


def _parse_json(text: str, label: str):
    """Parse JSON, in which no key may come twice."""

    def unique(pairs):
        result = {}
        for key, value in pairs:
            if key in result:
                raise DataError(f"{label}: {key!r} appears twice")
            result[key] = value
        return result

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ValueError as error:
        raise DataError(f"{label}: not valid JSON ({error})") from error


def _parse_lines(text: str, label: str) -> dict[str, int]:
    """Parse lines of a folder and an index into {folder: index}; a folder's name may have spaces."""
    entries: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.strip().rsplit(maxsplit=1)
        if not parts:
            continue
        folder, index = parts[0], parts[-1]
        if len(parts) < 2 or not index.isdecimal():
            raise DataError(f"{label}: line {number}: expected a folder and a class index, got {line.strip()!r}")
        if folder in entries:
            raise DataError(f"{label}: {folder!r} appears twice")
        entries[folder] = int(index)
    return entries
