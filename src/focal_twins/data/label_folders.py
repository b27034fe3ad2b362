"""Opens a folder of images and a folder of label images of the same names, as in ADE20K's and Cityscapes' layout."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import AS_STORED, Reading, UnreadableImage
from focal_twins.data.image_files import LeftOut, list_images, read_file, reason_of
from focal_twins.data.label_images import LABEL_EXTENSIONS, LabelFault, LabelRules, read_class_names, read_label
from focal_twins.data.numbered_images import NumberedImages
from focal_twins.files.names import SHOWN, escape_name, some_names
from focal_twins.phrases import counted

SPOT_CHECKS = 8  # label images that are read when a data set is opened, because most faults are in all of them


class LabelledFolders(NumberedImages):
    """Serves images that have a label image of their size each.

    Samples are in the order of their names. A worker reads both files itself, by the sample's index.

    Attributes:
        path, label_path: the folders of the images and of the label images.
        rules: what pixel values of the label images stand for.
    """

    def __init__(
        self,
        path: Path,
        label_path: Path,
        files: list[tuple[str, str]],
        rules: LabelRules,
        classes: tuple[str, ...],
        notices: tuple[str, ...] = (),
        reading: Reading = AS_STORED,
    ):
        self.path, self.label_path, self.files = path, label_path, files
        self.rules, self.classes, self.notices, self.reading = rules, classes, notices, reading
        self.size = len(files)

    @classmethod
    def of(cls, config, split: str) -> "LabelledFolders":
        """Open the data set that a configuration names for a split, "train" or "val"; see `open`."""
        data, num_classes = config.data, config.model.resolved()["num_classes"]
        root, name = Path(data.path), getattr(data, split)
        found = cls.open(
            root / data.images / name,
            root / data.labels / name,
            LabelRules(num_classes, data.ignore_index, data.reduce_zero_label),
            read_class_names(data.classes, num_classes),
            (data.image_suffix, data.label_suffix),
            Reading.from_dict(data.model_dump()),
        )
        found.names_classes = data.classes is not None
        return found

    @classmethod
    def open(
        cls,
        path: Path,
        label_path: Path,
        rules: LabelRules,
        classes: tuple[str, ...],
        suffixes: tuple[str, str] = ("", ""),
        reading: Reading = AS_STORED,
    ) -> "LabelledFolders":
        """Find the label image of each image, and look at a few of them.

        Args:
            suffixes: what image names and label names have behind their common part. Other files are passed over.
            reading: says how image files become pixels.

        Raises:
            DataError: a folder is missing or holds nothing, an image or a label image has no partner, or one of those
                looked at is faulty.
        """
        odd_images, odd_labels = LeftOut(), LeftOut()
        images = _by_stem(path, suffixes[0], "images", odd_images)
        labels = _by_stem(label_path, suffixes[1], "label images", odd_labels)
        bare, orphans = sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())
        if bare or orphans:
            faults = []
            if bare:
                faults.append(f"{_have(bare, 'image')} no label image in {label_path} ({_some(bare, images)})")
            if orphans:
                faults.append(f"{_have(orphans, 'label image')} no image in {path} ({_some(orphans, labels)})")
            raise DataError(
                f"data folder {path}: {', and '.join(faults)}; a pair has the same name but for the extension, "
                "data.image_suffix and data.label_suffix: add or take away what has no partner"
            )
        files = [(images[stem], labels[stem]) for stem in sorted(images, key=os.fsencode)]
        odd = ((path, odd_images), (label_path, odd_labels))
        notices = tuple(f"data folder {folder}: left out {left_out}" for folder, left_out in odd if left_out.counts)
        found = cls(path, label_path, files, rules, classes, notices, reading)
        found.check_some()
        return found

    def check_some(self) -> None:
        """Read a few samples, spread over all, and check that their labels can be used.

        Raises:
            DataError: a label is faulty, or none of these has a pixel of a class.
        """
        labelled = []
        for index in np.unique(np.linspace(0, self.size - 1, SPOT_CHECKS, dtype=int)):
            try:
                _, label = self.pair(index, 3)
            except UnreadableImage:  # the pipeline names these, as they come
                continue
            labelled.append(bool((label != self.rules.ignore_index).any()))
        if labelled and not any(labelled):
            raise DataError(
                f"data folder {self.label_path}: all pixels of the {len(labelled)} label images looked at are to be "
                "ignored; check data.ignore_index and data.reduce_zero_label"
            )

    @cached_property
    def names(self):
        return [image for image, _ in self.files]

    def label_name(self, index: int) -> str:
        """Return the file name of a sample's label image, relative to the folder of label images."""
        return self.files[index][1]

    def label_content(self, index: int) -> np.ndarray:
        """Return the file content [n] uint8 of a sample's label image.

        Raises:
            OSError: the file cannot be read.
        """
        return read_file(self.label_path / self.files[index][1])

    def label(self, index: int) -> np.ndarray:
        """Return the label [H, W] of a sample; see read_label.

        Raises:
            UnreadableImage: the file is damaged or cannot be opened.
            DataError: its values are no classes.
        """
        path = self.label_path / self.label_name(index)
        try:
            return read_label(self.label_content(index), self.rules)
        except LabelFault as fault:
            raise DataError(f"label image {path}: {fault}") from fault
        except (UnreadableImage, OSError) as error:
            raise UnreadableImage(f"its label image {path}: {reason_of(error)}") from error

    def pair(self, index: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels [H, W, channels] uint8 and label [H, W] of a sample.

        Raises:
            UnreadableImage: one of the two files is damaged or cannot be opened.
            DataError: the label's values are no classes, or it has not the image's size.
        """
        pixels, label = self.pixels(index, channels), self.label(index)
        self._check_size(index, pixels.shape[:2], label.shape)
        return pixels, label

    def _check_size(self, index: int, size: tuple[int, ...], label_size: tuple[int, ...]) -> None:
        if label_size != size:
            raise DataError(
                f"label image {self.label_path / self.label_name(index)}: is {label_size[1]} x {label_size[0]} pixels, "
                f"its image {self.path / self.name(index)} {size[1]} x {size[0]}; a label needs its image's size"
            )


def _by_stem(folder: Path, suffix: str, kind: str, left_out: LeftOut) -> dict[str, str]:
    """Find the images of a folder and the folders below it.

    Args:
        left_out: gets what is passed over.

    Returns:
        Paths from the folder, by their common part: the path without suffix and extension.

    Raises:
        DataError: there is no such folder, or no such file, or there are two files of one common part.
    """
    key = "data.images" if kind == "images" else "data.labels"
    if not folder.is_dir():
        raise DataError(f"data folder {folder}: no such folder; set data.path and {key} to where the {kind} are")
    try:
        names = list_images(folder, left_out)
    except OSError as error:
        raise DataError(f"data folder {folder}: cannot be listed ({error.strerror})") from error
    found: dict[str, str] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if kind == "label images" and not name.lower().endswith(LABEL_EXTENSIONS):
            left_out.add("of a format without exact values", name)
        elif not stem.endswith(suffix):
            left_out.add(f"whose name does not end with {suffix}", name)
        else:
            stem = stem[: len(stem) - len(suffix)]
            if stem in found:
                raise DataError(
                    f"data folder {folder}: {escape_name(found[stem])} and {escape_name(name)} would have the same "
                    "partner; keep one of them"
                )
            found[stem] = name
    if not found:
        others = f"; it holds {left_out}" if left_out.counts else ""
        formats = f" ({', '.join(LABEL_EXTENSIONS)})" if kind == "label images" else ""
        raise DataError(f"data folder {folder}: holds no {kind}{formats}{others}; set data.path or {key}")
    return found


def _have(stems: list[str], kind: str) -> str:
    return f"{counted(len(stems), kind)} {'has' if len(stems) == 1 else 'have'}"


def _some(stems: list[str], names: dict[str, str]) -> str:
    return some_names([names[stem] for stem in stems[: SHOWN + 1]])
