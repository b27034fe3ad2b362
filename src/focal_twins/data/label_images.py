"""Reads label images: pictures whose pixel values are classes."""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import BITS_PER_SAMPLE, UnreadableImage
from focal_twins.data.text_files import read_lines
from focal_twins.phrases import counted

LABEL_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff")
PNG_START = b"\x89PNG\r\n\x1a\n"
# Where a PNG file holds its bit depth and the kind of its pixels, of which 0 is grey.
PNG_DEPTH, PNG_KIND = 24, 25


class LabelFault(Exception):
    """Says what is wrong with a label image, and the remedy, without the file's name."""


@dataclass(frozen=True)
class LabelRules:
    """Says what the pixel values of label images stand for.

    Attributes:
        num_classes: classes are 0 .. num_classes - 1.
        ignore_index: the value of pixels that belong to no class, in files as in arrays.
        reduce_zero_label: in files 0 is such a pixel, too, and classes begin at 1.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False

    @property
    def dtype(self) -> type:
        """Type of labels: uint8 where it holds all values, else int32."""
        return np.uint8 if max(self.num_classes - 1, self.ignore_index) <= 255 else np.int32


def read_label(content: np.ndarray, rules: LabelRules) -> np.ndarray:
    """Turn the content [n] uint8 of a label image into classes [H, W], which have the type of the rules.

    Grey images of any depth and palette images count, of which the index is the class. Every value of the result is a
    class or ignore_index.

    Raises:
        UnreadableImage: damaged or not an image.
        LabelFault: an image in colours, or a value that is no class.
    """
    values = _values(content.tobytes())
    first, length = int(rules.reduce_zero_label), rules.num_classes
    table = np.zeros(
        1 << 16 if values.dtype != np.uint8 else max(256, first + length, rules.ignore_index + 1), np.int32
    )
    known = np.zeros(len(table), bool)
    table[first : first + length], known[first : first + length] = np.arange(length), True
    for value in {*range(first), rules.ignore_index}:
        table[value], known[value] = rules.ignore_index, True
    if not _looked_up(values, known.astype(np.uint8)).all():
        counts = np.bincount(values.ravel(), minlength=len(table)) * ~known
        wrong = np.flatnonzero(counts)
        others = f" (and {counted(len(wrong) - 1, 'other value')})" if len(wrong) > 1 else ""
        raise LabelFault(
            f"value {wrong[0]} in {counted(counts[wrong[0]], 'pixel')}{others} is none of the {length} classes, "
            f"{first} .. {first + length - 1}, and not data.ignore_index {rules.ignore_index}; "
            "set model.num_classes, data.ignore_index or data.reduce_zero_label to what the files hold"
        )
    return _looked_up(values, table.astype(rules.dtype))


def _looked_up(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look values up in a table; OpenCV is five times as fast as NumPy, and takes bytes only."""
    return cv2.LUT(values, table[:256]) if values.dtype == np.uint8 else table[values]


def _values(content: bytes) -> np.ndarray:
    """Return the pixel values [H, W] of a file, as they are stored: indices of a palette, levels of grey.

    Raises:
        UnreadableImage: damaged or not an image.
        LabelFault: an image in colours.
    """
    try:
        image = Image.open(io.BytesIO(content))
        values = np.asarray(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error
    if values.ndim != 2 or (image.mode not in ("1", "L", "P") and not image.mode.startswith("I")):
        raise LabelFault(
            f"is an image of mode {image.mode}, in which a pixel is no class; convert its colours to class numbers, "
            "and save them as a grey or palette PNG"
        )
    depth = _grey_bits(image, content)
    if image.mode == "L" and depth < 8:
        values = values // (255 // ((1 << depth) - 1))  # Pillow stretches two and four bits to 0 .. 255
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.min(initial=0) < 0 or values.max(initial=0) >= 1 << 16:
        raise LabelFault("holds values beyond 16 bits; save class numbers as a grey or palette PNG")
    return values


def _grey_bits(image: Image.Image, content: bytes) -> int:
    """Return the bits that a file has for a grey pixel, where its format may have fewer than eight; else eight."""
    if image.format == "TIFF":
        return image.tag_v2.get(BITS_PER_SAMPLE, (8,))[0]  # type: ignore[attr-defined]
    is_grey_png = content.startswith(PNG_START) and content[PNG_KIND] == 0
    return content[PNG_DEPTH] if is_grey_png else 8


def read_class_names(names: list[str] | str | None, num_classes: int, key: str = "data.classes") -> tuple[str, ...]:
    """Return the names of the classes.

    Args:
        names: the names, a file with a name on each line, or None for names made of numbers.
        key: what messages call them.

    Raises:
        DataError: the file cannot be read, or there are more or fewer names than classes.
    """
    if names is None:
        return tuple(f"class {number}" for number in range(num_classes))
    source = key
    if isinstance(names, str):
        source = f"{key}: {names}"
        names = [line.strip() for line in read_lines(names, source) if line.strip()]
    if len(names) != num_classes:
        raise DataError(
            f"{source}: names {counted(len(names), 'class')}, and the model has {num_classes} (model.num_classes)"
        )
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{source}: names {repeated[0]!r} twice; every class needs a name of its own")
    return tuple(names)
