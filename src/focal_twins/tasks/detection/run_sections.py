"""Makes the sections of report.html about what a detector finds, misses and invents."""

import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from focal_twins.data.decoding import Reading
from focal_twins.errors import UserError
from focal_twins.pages.charts import Chart, Series, render
from focal_twins.pages.legend import named
from focal_twins.pages.page import Column, Section, bar, table
from focal_twins.phrases import counted
from focal_twins.tasks.detection.coco_figures import NONE, OVERLAPS, RECALLS
from focal_twins.tasks.detection.worst_pictures import worst_pictures
from focal_twins.tasks.evaluation_file import check_keys, classes_listed, evaluated_weights, read_array
from focal_twins.tasks.report_images import image_finder

# Keys that the sections need of evaluation.json, and of the entries of its lists.
NEEDED_KEYS = {"weights", "epoch", "count", "objects", "detections", "found", "invented", "shown_score"}
NEEDED_KEYS |= {"box_ap", "box_ap50", "box_ap75", "classes", "sizes", "worst_images"}
CLASS_KEYS = {"name", "objects", "found", "invented", "box_ap", "box_ap50", "box_ap75", "box_ar_100"}
SIZE_KEYS = {"name", "objects", "found", "box_ap", "box_ar"}
IMAGE_KEYS = {"image", "width", "height", "found", "missed", "invented", "objects", "detections"}
OBJECT_KEYS = {"class", "bbox", "found"}
DETECTION_KEYS = {"class", "bbox", "score", "invented"}
SIZE_NAMES = {
    "small": "small (under 32 x 32 pixels)",
    "medium": "medium (under 96 x 96)",
    "large": "large (96 x 96 and more)",
}
SHOWN_OVERLAPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)  # of the curves over all classes
CURVES = 8  # classes that have a curve of their own, at most
KINDS = {"box": "Boxes", "mask": "Masks"}


def kinds_of(content: dict) -> list[str]:
    """Return the kinds of outlines that an evaluation is of: "box" and, where the network has masks, "mask"."""
    return [kind for kind in KINDS if f"{kind}_ap" in content]


def read_evaluation(path: Path, content: dict) -> dict:
    """Check the content of evaluation.json and read its curves: see DetectionResult.

    Raises:
        UserError: something is missing or damaged.
    """
    check_keys(content, NEEDED_KEYS, str(path))
    arrays = [f"{kind}_{name}" for kind in kinds_of(content) for name in ("precision", "class_precision")]
    check_keys(content, set(arrays), str(path))
    for key, needed in (("classes", CLASS_KEYS), ("sizes", SIZE_KEYS), ("worst_images", IMAGE_KEYS)):
        for number, entry in enumerate(content[key], 1):
            check_keys(entry, needed, f"{path}: entry {number} of {key}")
    for number, image in enumerate(content["worst_images"], 1):
        for key, needed in (("objects", OBJECT_KEYS), ("detections", DETECTION_KEYS)):
            for entry in image[key]:
                check_keys(entry, needed, f"{path}: entry {number} of worst_images: one of its {key}")
    curves = {key: read_array(path, content[key]).astype(np.float64) for key in arrays}
    classes = len(content["classes"])
    for key, curve in curves.items():
        rows = classes if key.endswith("class_precision") else len(OVERLAPS)
        if curve.shape != (rows, len(RECALLS)):
            raise UserError(f"{path}: its {key} has {list(curve.shape)} values in place of [{rows}, {len(RECALLS)}]")
    return content | curves


def sections(evaluation: dict | None, config: dict, data: Path | None, roots: Iterable[Path]) -> list[Section]:
    """Return the sections of a detector's figures and mistakes; see Task.sections.

    Raises:
        UserError: there is no folder `data`.
    """
    if evaluation is None:
        return [Section("Classes", "<p>No whole epoch was evaluated yet.</p>")]
    given = config.get("data") or {}
    split = "train" if given.get("val_fraction") is not None else "val"
    below = Path(str(given.get(f"{split}_images", "")))
    find = image_finder(str(given.get("path", "")), below, data, list(roots))
    return [
        Section("Classes", summary(evaluation) + class_table(evaluation)),
        Section("Sizes", size_table(evaluation)),
        Section("Precision and recall", curves(evaluation)),
        Section("Worst images", worst_pictures(evaluation, find, Reading.from_dict(given))),
    ]


def summary(evaluation: dict) -> str:
    """Say as HTML what was evaluated, and how well."""
    figures = ", ".join(
        f"{kind} AP {evaluation[f'{kind}_ap']:.2f}%, AP50 {evaluation[f'{kind}_ap50']:.2f}%"
        for kind in kinds_of(evaluation)
    )
    text = (
        f"{evaluated_weights(evaluation)}: {figures} over {counted(evaluation['objects'], 'object', ',')} in "
        f"{counted(evaluation['count'], 'image', ',')}, from evaluation.json. With a score of at least "
        f"{evaluation['shown_score']:g} and at an IoU of 0.5, {evaluation['found']:,} of the objects are found, and "
        f"{evaluation['invented']:,} "
        "detections have no object of their own."
    )
    absent = [entry["name"] for entry in evaluation["classes"] if not entry["objects"]]
    text += classes_listed(absent, "has no object", "have no object")
    return f"<p>{html.escape(text)}</p>"


def class_table(evaluation: dict) -> str:
    """Show as HTML how well each class is found, the lowest AP first."""
    kinds = kinds_of(evaluation)
    present = [(label, entry) for label, entry in enumerate(evaluation["classes"]) if entry["objects"]]
    rows = [
        [
            named(label, entry["name"]),
            bar(entry["box_ap"]),
            *(entry[f"{kind}_{name}"] for kind in kinds for name in ("ap", "ap50", "ap75", "ar_100")),
            entry["objects"],
            entry["found"],
            entry["invented"],
        ]
        for label, entry in sorted(present, key=lambda pair: (pair[1]["box_ap"], pair[0]))
    ]
    columns: list[Column | str] = [
        "class",
        "",
        *(Column(f"{kind} {name}, %", ".2f") for kind in kinds for name in ("AP", "AP50", "AP75", "AR")),
        Column("objects", ","),
        Column("found", ","),
        Column("invented", ","),
    ]
    return table(columns, rows, "The lowest box AP first", "classes")


def size_table(evaluation: dict) -> str:
    """Show as HTML how well objects of each size are found."""
    kinds = kinds_of(evaluation)
    rows = [
        [
            SIZE_NAMES.get(entry["name"], entry["name"]),
            "" if entry["box_ap"] is None else bar(entry["box_ap"]),
            *(entry[f"{kind}_{name}"] for kind in kinds for name in ("ap", "ar")),
            entry["objects"],
            entry["found"],
        ]
        for entry in evaluation["sizes"]
    ]
    columns: list[Column | str] = [
        "size",
        "",
        *(Column(f"{kind} {name}, %", ".2f") for kind in kinds for name in ("AP", "AR")),
        Column("objects", ","),
        Column("found", ","),
    ]
    return table(columns, rows, "By the area that the annotations state", "sizes")


def curves(evaluation: dict) -> str:
    """Draw the precision against the recall: over all classes at several overlaps, and of classes at an IoU of 0.5."""
    charts = [chart for kind in kinds_of(evaluation) for chart in _charts(evaluation, kind)]
    drawn = "".join(map(render, charts))
    if not drawn:
        return "<p>There is no object to find.</p>"
    note = (
        "Of the detections down to some score, the precision is the share of right ones, and the recall the share of "
        "objects that they find. As COCO does, each point is the best precision at that recall or a higher one."
    )
    return f'<p class="quiet">{note}</p><div class="charts">{drawn}</div>'


def _charts(evaluation: dict, kind: str) -> list[Chart]:
    """Return the charts of a kind of outlines."""
    several = len(kinds_of(evaluation)) > 1
    title = f"{KINDS[kind]}: " if several else ""
    places = [int(np.abs(OVERLAPS - overlap).argmin()) for overlap in SHOWN_OVERLAPS]
    overall = [
        _curve(f"IoU {OVERLAPS[place]:.2f}", evaluation[f"{kind}_precision"][place], color)
        for color, place in enumerate(places)
    ]
    entries = evaluation["classes"]
    present = [label for label, entry in enumerate(entries) if entry["objects"]]
    lowest = sorted(present, key=lambda label: (entries[label][f"{kind}_ap50"], label))[:CURVES]
    by_class = [
        _curve(entries[label]["name"], evaluation[f"{kind}_class_precision"][label], color)
        for color, label in enumerate(lowest)
    ]
    which = "each class" if len(lowest) == len(present) else f"the {CURVES} classes with the lowest AP50"
    return [
        Chart(f"{title}all classes", "recall", "precision", overall, from_zero=True),
        Chart(f"{title}{which}, at an IoU of 0.5", "recall", "precision", by_class, from_zero=True),
    ]


def _curve(name: str, precision: np.ndarray, color: int) -> Series:
    values = [None if value == NONE else value for value in precision.tolist()]
    return Series(name, [round(float(recall), 2) for recall in RECALLS], values, color)
