"""Folders of runs written by hand, of any length and any number of classes, as training would have left them."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.tasks.classification.evaluation_report import report
from focal_twins.tasks.classification.label_maps import LabelSpace
from focal_twins.tasks.classification.metrics import Metrics, Scoring
from focal_twins.tasks.evaluation_file import write_evaluation


def lines_of(epochs: float, updates_per_epoch: int = 10, interval: int = 5) -> list[dict]:
    """The lines of metrics.jsonl: a loss that falls, with a value that is not finite, and accuracies that rise."""
    lines = []
    for update in range(1, round(epochs * updates_per_epoch) + 1):
        done = round(update / updates_per_epoch, 6)
        place = {"epoch": math.ceil(done), "update": update, "epochs_done": done, "seconds": 10 + 0.3 * update}
        loss = 0.7 + 2 * math.exp(-done / 3) + 0.1 * math.sin(update)
        if update % interval == 0:
            figures = {"loss": None if update == interval else loss, "grad_norm": 1 + math.sin(update) ** 2}
            figures |= {"lr": 1e-3 / (1 + done), "loss_scale": 1024.0 * 2 ** min(10, update // (4 * interval))}
            lines.append(place | figures | {"images_per_second": None if update == interval else 100 + update % 7})
        if update % updates_per_epoch == 0:
            for weights, ahead in (("raw", 0.0), ("ema", 0.25)):
                top1 = 100 - 80 * math.exp(-(done + ahead) / 4)
                accuracy = {"weights": weights, "top1": top1, "top5": (top1 + 100) / 2, "loss": loss - ahead}
                lines.append(place | accuracy)
    return lines


def write_run(folder: Path, lines: list[dict], config, summary: bool = True) -> Path:
    """A run's folder without checkpoints."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(config.to_yaml())
    session = {
        "started": "2026-01-02T03:04:05+00:00", "after_update": 0, "updates_per_epoch": 10, "global_batch": 32,
        "command": "python train.py --config <x>", "device": "CPU", "devices": 1, "processor": "P", "cores": 2,
        "system": "Linux", "python": "3.11.0", "packages": {"mindspore": "2.10.0"}, "git": None,
    }  # fmt: skip
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    if summary:
        content = {"updates": lines[-1]["update"], "skipped_updates": 1, "unreadable_images": []}
        (folder / "summary.json").write_text(json.dumps(content))
    return folder


def evaluate_run(folder: Path, images, predicted: np.ndarray, epoch: int = 1) -> dict:
    """evaluation.json of an ImageSet whose images were taken for the classes given [images]; returns it."""
    space = LabelSpace.of_names(images.classes, images.classes)
    confusion = np.zeros((len(images.classes), len(images.classes) + 1), int)
    np.add.at(confusion, (images.labels, predicted), 1)
    right = int((images.labels == predicted).sum())
    metrics = Metrics(images.size, right, right, 1.0, confusion, predicted)
    content = {"checkpoint": "best.ckpt", "weights": "ema", "epoch": epoch}
    config = load_config(folder / "config.yaml")
    content |= report(metrics, Scoring(space, images.size), config, images, (32, 32))
    write_evaluation(folder / "evaluation.json", content, {"confusion": confusion[:, :-1]})
    return content


def write_images(root: Path, classes: int, each: int, size: int = 60) -> Path:
    """root/val with images of one colour per class."""
    for label in range(classes):
        folder = root / "val" / f"class {label:04d}"
        folder.mkdir(parents=True)
        colour = tuple(int(level) for level in np.random.default_rng(label).integers(0, 256, 3))
        for number in range(each):
            Image.new("RGB", (size, size // 2), colour).save(folder / f"{number}.png")
    return root
