"""Turns maps of logits into labels at an image's own size, a tile at a time.

A network gives logits on a map of a quarter of the input's sides. The original resizes them to the input's size and
from there to the image's own; with sliding windows it adds up windows in between; with several scales and mirror images
it averages probabilities. All of that but the softmax is linear, and each resize is one matrix for the rows and one for
the columns: here the matrices are multiplied with each other first. So 150 classes at full size never exist at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from focal_twins.models.resize import bilinear_matrix

TILE_VALUES = 2**18  # logits of one tile: 1 MiB in float32, which stays in the cache
TILE_COLUMNS = 32  # narrow, so that a tile needs few columns of the map


@dataclass(frozen=True, eq=False)
class Piece:
    """Holds the logits of a part of an image, and how they spread over the whole image at its own size.

    Attributes:
        logits: [h, w, classes] float32.
        rows: [height, h] weights of the map's rows in each row of the image.
        columns: [width, w] weights of the map's columns in each column of the image.
    """

    logits: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return len(self.rows), len(self.columns)

    def tile(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Return the part of the image's logits [rows, columns, classes] that comes from this piece; None for none."""
        row_weights, row_band = _band(self.rows[rows])
        column_weights, column_band = _band(self.columns[columns])
        part = self.logits[row_band, column_band]
        if not part.size:
            return None
        h, w, classes = part.shape
        by_rows = (row_weights @ part.reshape(h, w * classes)).reshape(-1, w, classes)
        return column_weights @ by_rows  # [columns, w] @ [rows, w, classes]


def _band(weights: np.ndarray) -> tuple[np.ndarray, slice]:
    """Return the columns of a matrix from the first to the last that is not all zero, and where they are."""
    used = np.flatnonzero(weights.any(axis=0))
    band = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
    return weights[:, band], band


@dataclass(frozen=True)
class View:
    """Holds the pieces of one look at an image: their logits are added. It may be of the mirror image.

    Attributes:
        pieces: all of the same image size.
        mirrored: whether the network saw the image mirrored, and the labels must be mirrored back.
    """

    pieces: tuple[Piece, ...]
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.pieces[0].size

    def tile(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the logits [rows, columns, classes] of a part of the image."""
        if self.mirrored:
            width = self.size[1]
            columns = slice(width - columns.stop, width - columns.start)
        first, *others = [part for piece in self.pieces if (part := piece.tile(rows, columns)) is not None]
        logits = sum(others, start=first)
        return logits[:, ::-1] if self.mirrored else logits


def whole_view(
    logits: np.ndarray,
    input_size: tuple[int, int],
    image_size: tuple[int, int],
    valid_size: tuple[int, int] | None = None,
    mirrored: bool = False,
) -> View:
    """Return the view of an image that went through the network in one piece.

    Args:
        logits: [h, w, classes].
        input_size: (height, width) of the network's input.
        image_size: (height, width) of the image itself.
        valid_size: (height, width) of the part of the input that is the resized image, from the top left corner on; the
            rest is padding. None: all of it.
        mirrored: see View.
    """
    weights = []
    for side, (source, target) in enumerate(zip(input_size, image_size, strict=True)):
        valid = source if valid_size is None else valid_size[side]
        weights.append(bilinear_matrix(valid, target) @ bilinear_matrix(logits.shape[side], source)[:valid])
    return View((Piece(logits, *weights),), mirrored)


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return where the windows that slide over a side begin, in pixels.

    The last window ends with the side, so it may overlap more with the one before. A side shorter than the window has
    one window. These are the windows of mmsegmentation's slide_inference.
    """
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, side) - window, 0) for number in range(count)]


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the top left corners (y, x) of the windows that slide over an image, row by row."""
    for y in window_starts(size[0], window[0], stride[0]):
        for x in window_starts(size[1], window[1], stride[1]):
            yield y, x


def sliding_view(
    logits: Sequence[np.ndarray],
    input_size: tuple[int, int],
    image_size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    mirrored: bool = False,
) -> View:
    """Return the view of an image whose windows went through the network one by one.

    Logits are averaged where windows overlap. Where a window reaches beyond a short side, what is beyond is left out.

    Args:
        logits: [h, w, classes] of each window, in the order of `windows`.
        input_size: (height, width) of the resized image that the windows slide over.
        image_size: (height, width) of the image itself.
        mirrored: see View.
    """
    shape = logits[0].shape
    by_side = [
        _window_weights(input_size[side], image_size[side], window[side], stride[side], shape[side])
        for side in range(2)
    ]
    pairs = ((rows, columns) for rows in by_side[0] for columns in by_side[1])
    return View(tuple(Piece(part, *pair) for part, pair in zip(logits, pairs, strict=True)), mirrored)


def _window_weights(side: int, target: int, window: int, stride: int, map_side: int) -> list[np.ndarray]:
    """Return the weights [target, map_side] of each window's map in the image at its own size, along one side.

    The number of windows over a pixel is the product of those over its row and its column, so it divides by side.
    """
    starts = window_starts(side, window, stride)
    covering = np.zeros(side, np.float32)
    for start in starts:
        covering[start : start + window] += 1
    to_window, to_image = bilinear_matrix(map_side, window), bilinear_matrix(side, target)
    return [
        (to_image / covering)[:, start : start + window] @ to_window[: min(window, side - start)] for start in starts
    ]


def full_size_labels(views: Sequence[View]) -> np.ndarray:
    """Return the most likely class [height, width] of each pixel, int32; see `labels_of_scores`.

    The scores of one view are its logits; those of several are the mean of their probabilities, as the original does.
    """
    height, width = views[0].size
    classes = views[0].pieces[0].logits.shape[2]
    labels = np.empty((height, width), np.int32)
    tile_rows = max(TILE_VALUES // (TILE_COLUMNS * classes), 1)
    for top in range(0, height, tile_rows):
        rows = slice(top, min(top + tile_rows, height))
        for left in range(0, width, TILE_COLUMNS):
            columns = slice(left, min(left + TILE_COLUMNS, width))
            labels[rows, columns] = labels_of_scores(_scores(views, rows, columns))
    return labels


def _scores(views: Sequence[View], rows: slice, columns: slice) -> np.ndarray:
    """Return the scores [rows, columns, classes] of a part of the image."""
    if len(views) == 1:
        return views[0].tile(rows, columns)
    total = probabilities(views[0].tile(rows, columns))
    for view in views[1:]:
        total += probabilities(view.tile(rows, columns))
    return total / len(views)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, float32."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def labels_of_scores(scores: np.ndarray) -> np.ndarray:
    """Return the class with the highest score along the last axis: of several, the first.

    Where the scores are not finite it is one past the last class, which stands for no prediction.
    """
    labels = scores.argmax(axis=-1)
    highest = np.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]  # NaN, where there is one
    return np.where(np.isfinite(highest), labels, scores.shape[-1])
