"""Reports an evaluation of a classifier: the content of its file, and a line about the worst classes."""

import math

import numpy as np

from focal_twins.config.load import Config
from focal_twins.data.image_set import ImageSet
from focal_twins.tasks.classification.metrics import Metrics, Scoring

WORST_CLASSES = 5  # number of classes that the output names
SCORES = {"precision": "precision", "recall": "recall", "f1": "F1"}
CONFUSED_PAIRS = 12  # number of pairs of classes in the file
CONFUSED_IMAGES = 8  # number of images of each pair: the first in the order of files


def report(metrics: Metrics, scoring: Scoring, config: Config, images: ImageSet, img_size: tuple[int, int]) -> dict:
    """Return the content of an evaluation's file, but for the confusion matrix."""
    space = scoring.space
    scores = metrics.scores
    columns = {
        "index": space.outputs,
        "name": space.names,
        "count": metrics.per_class[0],
        "correct": metrics.per_class[1],
        "predicted": scores.predicted,
        "accuracy": scores.recall,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
    }
    classes = [dict(zip(columns, map(_plain, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    real = {"file": config.eval.real_labels, "count": metrics.real_count, "correct": metrics.real_correct}
    return {
        "config": config.name,
        "data": str(images.path),
        "img_size": list(img_size),
        "crop_ratio": config.eval.crop_ratio,
        "flip": scoring.flip,
        "class_map": config.eval.class_map,
        "restricted_to_classes": len(space.names) if space.restricts else None,
        "count": metrics.count,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "loss": metrics.loss if math.isfinite(metrics.loss) else None,  # JSON has no NaN
        "top1_correct": metrics.top1_correct,
        "top5_correct": metrics.top5_correct,
        "loss_sum": metrics.loss_sum if math.isfinite(metrics.loss_sum) else None,
        "without_prediction": int(metrics.confusion[:, -1].sum()),
        "real": None
        if metrics.real is None
        else real | {"accuracy": _percentage(metrics.real_correct, metrics.real_count)},
        "macro": scores.macro(),
        "most_confused": most_confused(metrics, scoring, images),
        "classes": classes,
    }


def most_confused(metrics: Metrics, scoring: Scoring, images: ImageSet) -> list[dict]:
    """List the pairs of classes with the most images of the one taken for the other, with the names of some images."""
    space = scoring.space
    errors = metrics.confusion[:, :-1].copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:CONFUSED_PAIRS]
    labels = space.labels[images.labels]  # [images]
    pairs = []
    for label, predicted in zip(*np.unravel_index(order, errors.shape), strict=True):
        if not errors[label, predicted]:
            break
        examples = np.flatnonzero((labels == label) & (metrics.predicted == predicted))[:CONFUSED_IMAGES]
        pairs.append(
            {
                "label": space.names[label],
                "predicted": space.names[predicted],
                "count": int(errors[label, predicted]),
                "images": [images.name(int(index)) for index in examples],
            }
        )
    return pairs


def _plain(value):
    """Return a value as JSON has it: a Python number or text, and None for NaN."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _percentage(correct: int | None, count: int | None) -> float | None:
    return 100 * correct / count if count and correct is not None else None


def macro_averages(metrics: Metrics) -> str | None:
    """Return a line with the macro averages of precision, recall and F1; None without images."""
    macro = metrics.scores.macro()
    if not macro["classes"]:
        return None
    values = ", ".join(f"{title} {macro[key]:.2f}%" for key, title in SCORES.items())
    return f"mean over {macro['classes']} classes: {values}"


def worst_classes(metrics: Metrics, names: tuple[str, ...]) -> str | None:
    """Return a line about the classes with the lowest accuracy; None with two classes or fewer, or without mistakes."""
    counts, correct = metrics.per_class
    accuracy = 100 * correct / np.maximum(counts, 1)
    worst = [index for index in np.argsort(accuracy, kind="stable") if correct[index] < counts[index]][:WORST_CLASSES]
    if len(names) <= 2 or not worst:
        return None
    return "worst classes: " + ", ".join(f"{names[i]} ({accuracy[i]:.2f}% of {counts[i]})" for i in worst)
