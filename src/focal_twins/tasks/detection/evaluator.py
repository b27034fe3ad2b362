"""Evaluates a detector: collects what it finds in every image once, and compares it with the truth as COCO does."""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn

from focal_twins.config.load import Config
from focal_twins.data.coco import CocoImages
from focal_twins.distributed.ranks import Dist
from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.phrases import counted
from focal_twins.tasks.detection.coco_figures import BOXES, MASKS, evaluate_coco
from focal_twins.tasks.detection.evaluation_report import EvaluatedDetections, report, worst_classes
from focal_twins.tasks.detection.export_form import CANDIDATES
from focal_twins.tasks.detection.figures import BOX_FIGURES, MASK_FIGURES, percentages
from focal_twins.tasks.detection.finding import Finder, at_image_size, file_finder, found_in_batches
from focal_twins.tasks.detection.results import DetectionsOfImages, coco_results, results_file
from focal_twins.tasks.task import Evaluator, Result, call_cell


class DetectionResult(Result):
    """Holds the figures of a detector and, on the main rank, what they were computed from.

    Args:
        figures: by key, in percent; NaN where there is no object that they could be of.
        evaluated: None on ranks other than the main one, which have no content, arrays and files.
    """

    def __init__(self, figures: dict[str, float], images: int, evaluated: EvaluatedDetections | None):
        self._figures, self.images, self.evaluated = figures, images, evaluated

    @property
    def figures(self):
        return self._figures

    def __str__(self):
        shown = [BOX_FIGURES[0], BOX_FIGURES[1], BOX_FIGURES[2]]
        shown += [figure for figure in MASK_FIGURES[:2] if figure.key in self.figures]
        told = "  ".join(f"{figure.title} {figure.format_value(self.figures[figure.key])}" for figure in shown)
        return f"{told}  ({counted(self.images, 'image')})"

    def content(self):
        return report(self._whole, self.figures)

    def arrays(self):
        """Return the precision at each overlap and recall, and of each class at an IoU of 0.5; see report."""
        return self._whole.curves()

    def files(self):
        """Return the detections of all images in the form of COCO's results."""
        return {"results.json": results_file(self._whole.results)}

    def remarks(self):
        line = worst_classes(self._whole)
        return [] if line is None else [line]

    @property
    def _whole(self) -> EvaluatedDetections:
        if self.evaluated is None:
            raise ValueError("only the main rank knows what was found")
        return self.evaluated


class DetectionEvaluator(Evaluator):
    """Runs a detector on evaluation images and computes COCO's figures of what it finds, over batches and ranks.

    The detections of all images come to the main rank, which compares them with the truth; all ranks get the figures.

    Args:
        finder_of: makes of a network, and of what calls it, what finds objects; see Evaluator.answering.
        rule: by which detections are selected; the report names it.
        has_masks: detections have masks, and the truth too.
    """

    def __init__(
        self,
        data: CocoImages,
        config: Config,
        dist: Dist,
        finder_of: Callable[[nn.Cell, Callable[..., Tensor]], Finder],
        rule: SelectionRule,
        has_masks: bool = False,
    ):
        self.data, self.config, self.dist, self.finder_of = data, config, dist, finder_of
        self.rule, self.has_masks = rule, has_masks
        self._start()

    def _start(self) -> None:
        self.found = DetectionsOfImages(self.has_masks)
        self.counted = np.zeros(self.data.size, np.int64)

    def answering(self, network, call):
        if self.dist.size > 1:  # ranks may have images of different canvases: no call is common to all
            call = call_cell
        return self.finder_of(network, call)

    def answering_file(self, answer):
        """Return what finds objects by a file of candidates. It has no masks, so boxes alone are evaluated."""
        self.has_masks = False
        self._start()
        return file_finder(answer, CANDIDATES, self.rule)

    def add(self, network, batch):
        images, extents, weights, indices = batch
        if not weights.any():
            return
        found = found_in_batches(network, images, extents, self.config.eval.batch_size)
        for detections, extent, weight, index in zip(found, extents.tolist(), weights, indices.tolist(), strict=True):
            if not weight:
                continue
            size = self.data.image_size(index)
            self.found.add(index, at_image_size(detections, extent, size), size)
            self.counted[index] = 1

    def result(self):
        counted = np.flatnonzero(self.dist.sum_counts(self.counted))
        gathered = self.found.gather(self.dist)
        self._start()
        kinds = ("box", "mask") if self.has_masks else ("box",)
        keys = [figure.key for figure in BOX_FIGURES + (MASK_FIGURES if self.has_masks else ())]
        evaluated, values = None, np.zeros(len(keys))
        if gathered is not None:
            truth = self.data.ground_truth()
            results, ids = coco_results(*gathered, truth), [truth["images"][index]["id"] for index in counted]
            figures = {
                kind: evaluate_coco(truth, results, overlap, ids)
                for kind, overlap in zip(kinds, (BOXES, MASKS), strict=False)
            }
            evaluated = EvaluatedDetections(self.data, self.config, self.rule, truth, counted, results, figures)
            known = {key: value for kind in kinds for key, value in percentages(kind, figures[kind]).items()}
            values = np.array([known[key] for key in keys])
        shared = self.dist.from_main(values).tolist()
        return DetectionResult(dict(zip(keys, shared, strict=True)), len(counted), evaluated)
