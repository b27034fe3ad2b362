"""Reports an evaluation of a segmentor: the content of its file, and a line about the worst classes."""

import math

import numpy as np

from focal_twins.config.load import Config
from focal_twins.data.dataset import Dataset
from focal_twins.phrases import counted
from focal_twins.tasks.segmentation.metrics import PixelCounts

WORST_CLASSES = 5  # number of classes that the output names
CONFUSED_PAIRS = 12  # number of pairs of classes in the file
WORST_IMAGES = 24  # number of images in the file


def report(
    counts: PixelCounts, image_counts: np.ndarray, image_iou: np.ndarray, config: Config, mode: str, data: Dataset
) -> dict:
    """Return the content of an evaluation's file, but for the arrays.

    Args:
        image_counts: [images, 2] the pixels of each image that count, and those that are right.
        image_iou: [images] the mean IoU of each image by itself.
        mode: how images went through the network, see SegmentationEval.
    """
    confusion = counts.confusion[:, :-1]
    classes = [
        {"name": name, "iou": _percent(iou), "acc": _percent(accuracy), "pixels": pixels, "predicted_pixels": predicted}
        for name, iou, accuracy, pixels, predicted in zip(
            data.classes,
            counts.iou.tolist(),
            counts.accuracy.tolist(),
            counts.labelled.tolist(),
            confusion.sum(axis=0).tolist(),
            strict=True,
        )
    ]
    return {
        "config": config.name,
        "data": str(data.path),
        "mode": mode,
        "resize": config.eval.resize,
        "scales": config.eval.scales,
        "flip": config.eval.flip,
        "count": int((image_counts[:, 0] > 0).sum()),
        "pixels": counts.pixels,
        "miou": 100 * counts.miou,
        "macc": 100 * counts.macc,
        "aacc": 100 * counts.aacc,
        "pixels_without_prediction": counts.without_prediction,
        "most_confused": most_confused(confusion, data.classes),
        "worst_images": worst_images(image_counts, image_iou, data),
        "classes": classes,
    }


def most_confused(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict]:
    """List the pairs of classes with the most pixels of the one taken for the other.

    Args:
        confusion: [labels, predictions] pixels.
    """
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
    return [
        {
            "label": names[label],
            "predicted": names[predicted],
            "pixels": int(errors[label, predicted]),
            "share": 100 * float(errors[label, predicted] / confusion[label].sum()),
        }
        for label, predicted in pairs
        if errors[label, predicted]
    ]


def worst_images(image_counts: np.ndarray, image_iou: np.ndarray, data: Dataset) -> list[dict]:
    """List the images with the lowest mean IoU, the lowest first; those without a pixel that counts are left out."""
    counted = np.flatnonzero(image_counts[:, 0])
    order = counted[np.argsort(image_iou[counted], kind="stable")][:WORST_IMAGES]
    return [
        {
            "index": int(index),
            "image": data.name(int(index)),
            "miou": 100 * float(image_iou[index]),
            "aacc": 100 * float(image_counts[index, 1] / image_counts[index, 0]),
            "pixels": int(image_counts[index, 0]),
        }
        for index in order
    ]


def worst_classes(counts: PixelCounts, names: tuple[str, ...]) -> str | None:
    """Return a line about the classes with the lowest IoU; None with two classes or fewer, or without mistakes."""
    iou = 100 * counts.iou
    worst = [index for index in np.argsort(iou, kind="stable") if iou[index] < 100][:WORST_CLASSES]
    if len(names) <= 2 or not worst:
        return None
    return "lowest IoU: " + ", ".join(
        f"{names[i]} ({iou[i]:.2f}%, {counted(counts.labelled[i], 'pixel')})" for i in worst
    )


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else 100 * share
