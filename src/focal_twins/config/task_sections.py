"""Lists the sections of a configuration that each task has of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from focal_twins.config.classification import (
    ClassificationAugment,
    ClassificationData,
    ClassificationEval,
    ClassificationLoss,
    check_classification,
)
from focal_twins.config.detection import DetectionAugment, DetectionData, DetectionEval, check_detection
from focal_twins.config.schema import COMMON_SECTIONS, Section
from focal_twins.config.segmentation import (
    SegmentationAugment,
    SegmentationData,
    SegmentationEval,
    SegmentationLoss,
    check_segmentation,
)

DEFAULT_TASK = "classification"  # the task of files that name none


@dataclass(frozen=True)
class TaskSections:
    """Lists the sections that a task adds to the common ones.

    Attributes:
        data, augment, eval: the schemas of these sections.
        check: takes a Config and refuses sections that do not fit each other.
        has_backbone: the model is built around a backbone, which has a section of its own.
        loss: the schema of the section loss; None where the task has no such section.
    """

    data: type[Section]
    augment: type[Section]
    eval: type[Section]
    check: Callable[[Any], None]
    has_backbone: bool = False
    loss: type[Section] | None = None

    def schemas(self) -> dict[str, type[Section]]:
        """Return the schemas of all sections but the networks', in the order in which they are written."""
        common = dict(COMMON_SECTIONS)
        runtime = common.pop("runtime")
        loss = {"loss": self.loss} if self.loss is not None else {}
        return {"data": self.data, "augment": self.augment, **loss, **common, "eval": self.eval, "runtime": runtime}


TASK_SECTIONS: dict[str, TaskSections] = {
    DEFAULT_TASK: TaskSections(
        ClassificationData,
        ClassificationAugment,
        ClassificationEval,
        check_classification,
        loss=ClassificationLoss,
    ),
    "segmentation": TaskSections(
        SegmentationData,
        SegmentationAugment,
        SegmentationEval,
        check_segmentation,
        has_backbone=True,
        loss=SegmentationLoss,
    ),
    "detection": TaskSections(DetectionData, DetectionAugment, DetectionEval, check_detection, has_backbone=True),
}
