"""Keeps small maps of the images that a segmentor segments worst, so that a report can show them."""

import io
from dataclasses import dataclass

import numpy as np

from focal_twins.distributed.ranks import Dist
from focal_twins.pages.page import encode
from focal_twins.tasks.segmentation.label_pictures import index_image

KEPT = 12  # images
LONG_SIDE = 320  # pixels of a map, at most
NO_CLASS = -1  # pixels of no class, in the maps


@dataclass(frozen=True, eq=False)
class WorstImage:
    """Holds the label and the prediction [h, w] int32 of an image, reduced in size; NO_CLASS where there is no class.

    Attributes:
        index: place in the data set.
        iou: the image's mean IoU.
    """

    index: int
    iou: float
    label: np.ndarray
    predicted: np.ndarray


class WorstImages:
    """Keeps the images with the lowest mean IoU of those it is given; of equal ones, the first.

    Args:
        classes: number of classes.
        ignore_index: label of pixels that belong to no class.
    """

    def __init__(self, classes: int, ignore_index: int):
        self.classes, self.ignore_index = classes, ignore_index
        self.images: list[WorstImage] = []

    def add(self, index: int, iou: float, label: np.ndarray, predicted: np.ndarray) -> None:
        """Keep an image, if it is bad enough.

        Args:
            label: [H, W] with `ignore_index` where there is no class.
            predicted: [H, W] with a value beyond the classes where there is no prediction.
        """
        if len(self.images) == KEPT and (iou, index) > _rank(self.images[-1]):
            return
        label, predicted = reduced(label).astype(np.int32), reduced(predicted).astype(np.int32)
        label = np.where(label == self.ignore_index, NO_CLASS, label)
        predicted = np.where(predicted < self.classes, predicted, NO_CLASS)
        self._keep([*self.images, WorstImage(int(index), float(iou), label, predicted)])

    def _keep(self, images: list[WorstImage]) -> None:
        self.images = sorted(images, key=_rank)[:KEPT]

    def gather(self, dist: Dist) -> None:
        """Bring the worst images of all ranks to the main one. All ranks call this together."""
        if dist.size == 1:
            return
        file = io.BytesIO()
        np.savez(
            file,
            places=np.array([image.index for image in self.images], np.int64),
            iou=np.array([image.iou for image in self.images], np.float64),
            **{f"label{number}": image.label for number, image in enumerate(self.images)},
            **{f"predicted{number}": image.predicted for number, image in enumerate(self.images)},
        )
        gathered = dist.gather(np.frombuffer(file.getvalue(), np.uint8))
        images = []
        for content in gathered or []:
            part = np.load(io.BytesIO(content.tobytes()), allow_pickle=False)
            images += [
                WorstImage(int(index), float(iou), part[f"label{number}"], part[f"predicted{number}"])
                for number, (index, iou) in enumerate(zip(part["places"], part["iou"], strict=True))
            ]
        self._keep(images)

    def pictures(self) -> dict[str, bytes]:
        """Return the maps as index images with the palette: PNG files by the names that `picture_names` gives."""
        found = {}
        for image in self.images:
            for name, labels in zip(picture_names(image.index), (image.label, image.predicted), strict=True):
                found[name] = encode(index_image(labels, self.classes))
        return found


def _rank(image: WorstImage) -> tuple[float, int]:
    return image.iou, image.index


def picture_names(index: int) -> tuple[str, str]:
    """Return the names of the pictures of an image's label and of its prediction."""
    return f"{index:06}_label.png", f"{index:06}_prediction.png"


def reduced(labels: np.ndarray) -> np.ndarray:
    """Return labels [H, W] with at most LONG_SIDE pixels a side: of each part, the one in the middle."""
    longest = max(labels.shape)
    if longest <= LONG_SIDE:
        return labels
    rows, columns = (
        ((np.arange(wanted) + 0.5) * (side / wanted)).astype(int)
        for side in labels.shape
        for wanted in [max(side * LONG_SIDE // longest, 1)]
    )
    return labels[rows[:, None], columns]
