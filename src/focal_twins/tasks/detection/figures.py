"""Names the figures by which detectors are judged: COCO's twelve, of boxes and of masks."""

from focal_twins.tasks.detection.coco_figures import NAMES, NONE, CocoFigures
from focal_twins.tasks.task import Figure

TITLES = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75",
    "ap_small": "AP, small", "ap_medium": "AP, medium", "ap_large": "AP, large",
    "ar_1": "AR, 1 detection", "ar_10": "AR, 10 detections", "ar_100": "AR, 100 detections",
    "ar_small": "AR, small", "ar_medium": "AR, medium", "ar_large": "AR, large",
}  # fmt: skip
DEFINED = ("ap", "ap50")  # 0, not NaN, for a data set without objects: they choose a checkpoint and head the report


def figures_of(kind: str) -> tuple[Figure, ...]:
    """Return the twelve figures of a kind of outline: "box" or "mask"."""
    return tuple(Figure(f"{kind}_{name}", f"{kind} {TITLES[name]}", "%", ".2f") for name in NAMES)


BOX_FIGURES, MASK_FIGURES = figures_of("box"), figures_of("mask")


def percentages(kind: str, figures: CocoFigures) -> dict[str, float]:
    """Return the twelve figures of "box" or "mask" by key, in percent; NaN where they are of no object."""
    found = {}
    for name, value in zip(NAMES, figures.stats.tolist(), strict=True):
        missing = 0.0 if name in DEFINED else float("nan")
        found[f"{kind}_{name}"] = missing if value == NONE else 100 * value
    return found
