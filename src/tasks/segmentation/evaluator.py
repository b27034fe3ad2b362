"""Evaluates a segmentor: counts its answers over every pixel of every image once."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from src.config.load import Config
from src.data.dataset import Dataset
from src.distributed.ranks import Dist
from src.models.registry import ArgumentError
from src.models.segmentors.segmentor import Segmentor
from src.tasks.segmentation.evaluation_report import report, worst_classes
from src.tasks.segmentation.full_size import View, full_size_labels, sliding_view, whole_view, windows
from src.tasks.segmentation.metrics import PixelCounts, confusion_matrix
from src.tasks.segmentation.networks import NetworksBySize
from src.tasks.task import Evaluator, Result, call_cell, outputs_of_short_batch


class SegmentationResult(Result):
    """Holds the counts of a data set and reports them.

    Args:
        image_counts, image_iou: see evaluation_report.report.
    """

    def __init__(
        self,
        counts: PixelCounts,
        image_counts: np.ndarray,
        image_iou: np.ndarray,
        config: Config,
        mode: str,
        data: Dataset,
    ):
        self.counts, self.image_counts, self.image_iou = counts, image_counts, image_iou
        self.config, self.mode, self.data = config, mode, data

    @property
    def figures(self):
        return {"miou": 100 * self.counts.miou, "macc": 100 * self.counts.macc, "aacc": 100 * self.counts.aacc}

    def __str__(self):
        figures = "  ".join(f"{name} {self.figures[name.lower()]:.2f}%" for name in ("mIoU", "mAcc", "aAcc"))
        return f"{figures}  ({int((self.image_counts[:, 0] > 0).sum())} images)"

    def content(self):
        return report(self.counts, self.image_counts, self.image_iou, self.config, self.mode, self.data)

    def arrays(self):
        """Return the confusion matrix [labels, predictions], and of each image [pixels, right pixels] and its mIoU."""
        return {
            "confusion": self.counts.confusion[:, :-1],
            "image_counts": self.image_counts,
            "image_iou": self.image_iou.astype(np.float64),
        }

    def remarks(self):
        lines = []
        if worst := worst_classes(self.counts, self.data.classes):
            lines.append(worst)
        if missing := self.counts.without_prediction:
            lines.append(f"{missing} pixels have logits that are not finite: they count as wrong")
        return lines


class SegmentationEvaluator(Evaluator):
    """Runs a segmentor on evaluation images and counts pixels by label and prediction, over batches and ranks.

    Args:
        model: the network in float32, of which networks of other sizes are made.
        mode: how an image goes through the network: "whole", "canvas" or "slide", see SegmentationEval.
    """

    def __init__(self, model: Segmentor, data: Dataset, config: Config, mode: str, dist: Dist):
        self.model, self.data, self.config, self.mode, self.dist = model, data, config, mode, dist
        self.networks: NetworksBySize | None = None
        self._start()

    def _start(self) -> None:
        classes = self.model.num_classes
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        # Of images of other ranks, all is 0 here.
        self.image_counts = np.zeros((self.data.size, 2), np.int64)
        self.image_iou = np.zeros(self.data.size, np.float32)

    def answering(self, network, call):
        """Return the networks of all sizes. Those of the last evaluation are kept: their weights are this network's."""
        if (
            self.mode != "slide" and self.dist.size > 1
        ):  # ranks have images of different sizes: no call is common to all
            call = call_cell
        if self.networks is None or self.networks.network is not network:
            precision, kept = self.config.amp.level, self.config.eval.graphs
            self.networks = NetworksBySize(self.model, network, precision, kept)
        self.networks.call = call
        return self.networks

    def add(self, network, batch):
        *scaled, labels, weights, indices = batch
        ignore_index, classes = self.config.data.ignore_index, self.model.num_classes
        views = self._views(network, scaled, labels.shape[1:]) if weights.any() else iter(())
        for of_image, label, weight, index in zip(views, labels, weights, indices, strict=False):
            if not weight:
                continue
            confusion = confusion_matrix(label, full_size_labels(of_image), classes, ignore_index)
            self.confusion += confusion
            counts = PixelCounts(confusion)
            self.image_counts[index] = counts.pixels, counts.correct.sum()
            self.image_iou[index] = counts.miou

    def _views(self, network: Callable, scaled: list[np.ndarray], size: tuple[int, int]) -> Iterator[list[View]]:
        """Yield the views of each image of a batch: one for each scale and, where asked for, of its mirror image.

        Args:
            scaled: images [B, C, h, w] at each scale.
            size: (height, width) of the images at their own size.
        """
        view_of = {"whole": self._whole, "canvas": self._canvas, "slide": self._slide}[self.mode]
        views = []
        for images in scaled:
            views.append(view_of(network, images, size, False))
            if self.config.eval.flip:
                views.append(view_of(network, np.ascontiguousarray(images[..., ::-1]), size, True))
        return map(list, zip(*views, strict=True))

    def _whole(self, network, images, size, mirrored) -> list[View]:
        """Return a view of each image, which goes through a network of its size."""
        maps = self._maps(network, images)
        return [whole_view(logits, images.shape[2:], size, mirrored=mirrored) for logits in maps]

    def _canvas(self, network, images, size, mirrored) -> list[View]:
        """Return a view of each image, which is padded to a multiple of eval.canvas_step."""
        step, valid = self.config.eval.canvas_step, images.shape[2:]
        canvas = (-(-valid[0] // step) * step, -(-valid[1] // step) * step)
        maps = self._maps(partial(network, part=valid), _padded(images, canvas))
        return [whole_view(logits, canvas, size, valid, mirrored) for logits in maps]

    def _slide(self, network, images, size, mirrored) -> list[View]:
        """Return a view of each image, over which windows of the network's size slide."""
        (height, width), stride = self.model.img_size, self._stride
        valid = images.shape[2:]
        views = []
        for image in _padded(images, [max(pair) for pair in zip(valid, self.model.img_size, strict=True)]):
            crops = [image[:, y : y + height, x : x + width] for y, x in windows(valid, (height, width), stride)]
            maps = self._maps(network, np.stack(crops))
            views.append(sliding_view(maps, valid, size, (height, width), stride, mirrored))
        return views

    @property
    def _stride(self) -> tuple[int, int]:
        """Steps of sliding windows; by default two thirds of the window, as in mmsegmentation's configurations."""
        height, width = self.config.eval.stride or [max(2 * side // 3, 1) for side in self.model.img_size]
        return height, width

    def _maps(self, network, images: np.ndarray) -> list[np.ndarray]:
        """Return the logits [h, w, classes] of each image."""
        batch_size = self.config.eval.batch_size
        maps: list[np.ndarray] = []
        try:
            for first in range(0, len(images), batch_size):
                part = images[first : first + batch_size]
                maps.extend(outputs_of_short_batch(network, part, batch_size).astype(np.float32))
        except ArgumentError as error:
            height, width = images.shape[2:]
            raise self.config.error(
                "eval.mode",
                f"{self.mode}: the network cannot take an image of {width} x {height} pixels ({error.reason}); use "
                "slide, or canvas with an eval.canvas_step that it can take",
            ) from error
        return maps

    def result(self):
        totals = self.dist.sum_counts(np.concatenate([self.confusion.ravel(), self.image_counts.ravel()]))
        confusion, image_counts = np.split(totals, [self.confusion.size])
        image_iou = np.asarray(self.dist.sum(self.image_iou))
        counts = PixelCounts(confusion.reshape(self.confusion.shape))
        config, mode, data = self.config, self.mode, self.data
        self._start()
        return SegmentationResult(counts, image_counts.reshape(-1, 2), image_iou, config, mode, data)


def _padded(images: np.ndarray, size) -> np.ndarray:
    """Pad images [B, C, H, W] with zeros on the right and below to a size."""
    (height, width), (full_height, full_width) = images.shape[2:], size
    return np.pad(images, ((0, 0), (0, 0), (0, full_height - height), (0, full_width - width)))
