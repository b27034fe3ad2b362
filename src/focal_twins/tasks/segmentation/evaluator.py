"""Evaluates a segmentor: counts its answers over every pixel of every image once."""

from functools import partial

import numpy as np
from mindspore import Tensor

from focal_twins.config.load import Config
from focal_twins.data.dataset import Dataset
from focal_twins.distributed.ranks import Dist
from focal_twins.models.registry import ArgumentError
from focal_twins.models.segmentors.segmentor import Segmentor
from focal_twins.phrases import counted
from focal_twins.tasks.segmentation.evaluation_report import report, worst_classes
from focal_twins.tasks.segmentation.full_size import full_size_labels
from focal_twins.tasks.segmentation.inference_rule import InferenceRule, unfit_size
from focal_twins.tasks.segmentation.metrics import PixelCounts, confusion_matrix
from focal_twins.tasks.segmentation.networks import NetworksBySize, kept_sizes
from focal_twins.tasks.segmentation.worst_images import WorstImages
from focal_twins.tasks.task import Evaluator, Result, call_cell, on_arrays, outputs_in_batches


class SegmentationResult(Result):
    """Holds the counts of a data set and reports them.

    Args:
        image_counts, image_iou: see evaluation_report.report.
        worst: maps of the worst images, on the main rank of all ranks.
    """

    def __init__(
        self,
        counts: PixelCounts,
        image_counts: np.ndarray,
        image_iou: np.ndarray,
        config: Config,
        mode: str,
        data: Dataset,
        worst: WorstImages,
    ):
        self.counts, self.image_counts, self.image_iou, self.worst = counts, image_counts, image_iou, worst
        self.config, self.mode, self.data = config, mode, data

    @property
    def figures(self):
        return {"miou": 100 * self.counts.miou, "macc": 100 * self.counts.macc, "aacc": 100 * self.counts.aacc}

    def __str__(self):
        figures = "  ".join(f"{name} {self.figures[name.lower()]:.2f}%" for name in ("mIoU", "mAcc", "aAcc"))
        return f"{figures}  ({counted(int((self.image_counts[:, 0] > 0).sum()), 'image')})"

    def content(self):
        return report(self.counts, self.image_counts, self.image_iou, self.config, self.mode, self.data)

    def arrays(self):
        """Return the confusion matrix [labels, predictions], and of each image [pixels, right pixels] and its mIoU."""
        return {
            "confusion": self.counts.confusion[:, :-1],
            "image_counts": self.image_counts,
            "image_iou": self.image_iou.astype(np.float64),
        }

    def pictures(self):
        return self.worst.pictures()

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
        self.rule = InferenceRule.of(config, model.img_size, mode)
        self.networks: NetworksBySize | None = None
        self._start()

    def _start(self) -> None:
        classes = self.model.num_classes
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        # Of images of other ranks, all is 0 here.
        self.image_counts = np.zeros((self.data.size, 2), np.int64)
        self.image_iou = np.zeros(self.data.size, np.float32)
        self.worst = WorstImages(classes, self.config.data.ignore_index)

    def answering(self, network, call):
        """Return the networks of all sizes. Those of the last evaluation are kept: their weights are this network's."""
        if (
            self.mode != "slide" and self.dist.size > 1
        ):  # ranks have images of different sizes: no call is common to all
            call = call_cell
        if self.networks is None or self.networks.network is not network:
            precision = self.config.precision(self.dist.device_target)
            self.networks = NetworksBySize(self.model, network, precision, kept_sizes(self.config.eval))
        self.networks.call = call
        return self.networks

    def answering_file(self, answer):
        """Return what maps images [B, C, H, W] to logits [B, h, w, classes] by a file that gives [B, classes, h, w]."""
        return lambda images: Tensor(np.ascontiguousarray(np.moveaxis(answer(images.asnumpy()), 1, -1)))

    def add(self, network, batch):
        *scaled, labels, weights, indices = batch
        ignore_index, classes = self.config.data.ignore_index, self.model.num_classes
        maps = partial(self._maps, network)
        views = self.rule.views(maps, scaled, labels.shape[1:]) if weights.any() else iter(())
        for of_image, label, weight, index in zip(views, labels, weights, indices, strict=False):
            if not weight:
                continue
            predicted = full_size_labels(of_image)
            confusion = confusion_matrix(label, predicted, classes, ignore_index)
            self.confusion += confusion
            counts = PixelCounts(confusion)
            self.image_counts[index] = counts.pixels, counts.correct.sum()
            self.image_iou[index] = counts.miou
            if counts.pixels:
                self.worst.add(index, self.image_iou[index], label, predicted)

    def _maps(self, network, images: np.ndarray, part: tuple[int, int] | None = None) -> np.ndarray:
        """Return the logits [n, h, w, classes] float32 of images [n, C, H, W]; see Maps."""
        answer = on_arrays(network if part is None else partial(network, part=part))
        try:
            return outputs_in_batches(answer, images, self.config.eval.batch_size).astype(np.float32)
        except ArgumentError as error:
            raise self.config.error("eval.mode", unfit_size(self.mode, images, error)) from error

    def result(self):
        totals = self.dist.sum_counts(np.concatenate([self.confusion.ravel(), self.image_counts.ravel()]))
        confusion, image_counts = np.split(totals, [self.confusion.size])
        image_iou = np.asarray(self.dist.sum(self.image_iou))
        counts = PixelCounts(confusion.reshape(self.confusion.shape))
        config, mode, data, worst = self.config, self.mode, self.data, self.worst
        worst.gather(self.dist)
        self._start()
        return SegmentationResult(counts, image_counts.reshape(-1, 2), image_iou, config, mode, data, worst)
