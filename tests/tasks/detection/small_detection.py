"""The smallest runs of detection: networks of two blocks on images whose coloured rectangles are the objects."""

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import yaml
from mindspore import Tensor
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import start
from focal_twins.models import create_model
from focal_twins.tasks.detection.loss import DetectionLosses
from focal_twins.training.trainer import Trainer
from tests.training.plain_step import plain_step

CLASSES = ("red", "green")
COLOURS = np.array([[220, 40, 40], [40, 220, 40]])
SIZES = ((48, 80), (80, 48), (60, 90))  # (height, width), in turn

CONFIG: dict[str, Any] = {
    "name": "small",
    "task": "detection",
    "backbone": {
        "name": "twins", "img_size": [64, 96], "embed_dims": [8, 16], "num_heads": [1, 2], "mlp_ratios": [2.0, 2.0],
        "depths": [1, 1], "sr_ratios": [2, 1], "drop_path_rate": 0.1,
    },
    "model": {
        "name": "retinanet", "num_classes": len(CLASSES), "neck_channels": 8, "channels": 8, "stacked_convs": 1,
        "start_level": 0, "num_outs": 3, "candidates_per_level": 50,
    },
    "data": {
        "train_images": "train", "train_annotations": "train.json", "val_images": "val", "val_annotations": "val.json",
        "canvases": [[64, 96], [96, 64]], "workers": 1, "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2],
    },
    "augment": {"short_sides": [48, 56, 64], "long_side": 96, "crop": False},
    "optimizer": {"base_lr": 0.003, "lr_batch_size": None, "clip_norm": 5.0, "weight_decay": 0.01},
    "schedule": {"name": "poly", "warmup_epochs": 0.0, "min_lr": 0.0},
    "ema": {"decay": 0.5},
    "train": {"epochs": 2, "batch_size": 2, "log_interval": 1, "save_minutes": None},
    "eval": {"short_side": 64, "long_side": 96, "score_threshold": 0.001},
    "runtime": {"mode": "pynative"},
}  # fmt: skip

# Of the same size: what a two-stage network needs in place of RetinaNet's arguments.
MASK_RCNN: dict[str, Any] = {
    "name": "mask_rcnn", "num_classes": len(CLASSES), "channels": 8, "hidden": 16, "anchor_samples": 32,
    "proposals": 40, "proposals_per_level": 40, "samples": 16, "max_boxes": 4, "masks": True,
}  # fmt: skip

# Sparse R-CNN and RepPoints v2 as small, but for the number of classes.
SETS_AND_POINTS: dict[str, dict[str, Any]] = {
    "sparse_rcnn": {
        "channels": 16, "proposals": 12, "stages": 2, "num_heads": 2, "hidden": 24, "dynamic_channels": 4,
        "max_boxes": 4,
    },
    "reppoints_v2": {"channels": 32, "corner_channels": 32, "levels": 3, "max_boxes": 4, "candidates_per_level": 5000},
}  # fmt: skip


def make_split(root: Path, split: str, count: int) -> None:
    """Write images with two rectangles each, and their COCO JSON; the ids of categories have a gap."""
    images, annotations = [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng([number, len(split)])
        height, width = SIZES[number % len(SIZES)]
        pixels = generator.integers(80, 120, (height, width, 3))
        for _ in range(2):
            label = int(generator.integers(len(CLASSES)))
            w, h = (int(side) for side in generator.integers(16, 24, 2))
            x, y = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
            pixels[y : y + h, x : x + w] = COLOURS[label]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 3 + 4 * label, "iscrowd": 0,
                    "bbox": [x, y, w, h], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )  # fmt: skip
        name = f"image{number:02}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(root / split / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    categories = [{"id": 3 + 4 * label, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


def make_data(root: Path) -> Path:
    """Write 12 training images and 5 validation images."""
    make_split(root, "train", 12)
    make_split(root, "val", 5)
    return root


def write_config(folder: Path, data: Path, model: dict | None = None) -> Path:
    """Write the configuration of a run, whose results go below the same folder.

    Args:
        model: the section model; None for RetinaNet.
    """
    path = folder / "small.yaml"
    path.write_text(
        yaml.safe_dump({**CONFIG, "data": CONFIG["data"] | {"path": str(data)}, "model": model or CONFIG["model"]})
    )
    return path


def build(path: Path, name: str, *overrides: str) -> Trainer:
    """Build a run of a configuration file, in a folder of that name beside it."""
    config = load_config(path, [f"runtime.output={path.parent / name}", *overrides])
    return Trainer(config, start(config))


# --- updates without files, over one rank or several -----------------------------------------------------------------

IMAGES, UPDATES = 4, 2


def build_step(ranks=1, reducer_of=lambda parameters: None, accumulation_steps=1, section=None):
    """The network and its training step, by plain gradient descent."""
    ms.set_seed(3)
    backbone = create_model(features_only=True, **CONFIG["backbone"] | {"drop_path_rate": 0.0})
    model = create_model(backbone=backbone, **section or CONFIG["model"])
    losses = DetectionLosses({model.img_size: model}, {model.img_size: model})
    reducer = reducer_of(model.trainable_params())
    step = plain_step(losses, model, 64.0, reducer=reducer, ranks=ranks, accumulation_steps=accumulation_steps)
    return model, step


def batch_of(update, model):
    """Images, extents and targets of an update; the images have 0 to 3 objects."""
    generator = np.random.default_rng(update)
    maker, arrays = model.target_maker(), []
    for number in range(IMAGES):
        corners = generator.uniform(0, 40, (number, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(10, 22, (number, 2))], 1).astype(np.float32)
        labels = generator.integers(0, len(CLASSES), number).astype(np.int32)
        masks = np.ones((number, 64, 90), np.uint8) if maker.needs_masks else None
        extent = (64, 90)
        targets = maker(model.img_size, extent, boxes, labels, np.random.default_rng([update, number]), masks)
        arrays.append((np.array(extent, np.int32), *targets))
    images = generator.standard_normal((IMAGES, 3, *model.img_size)).astype(np.float32)
    return images, *(np.stack(column) for column in zip(*arrays, strict=True))


def outcome_of_run(rank=0, ranks=1, reducer_of=lambda parameters: None, accumulation_steps=1, section=None):
    """All parameters after the updates, and the loss of each update."""
    model, step = build_step(ranks, reducer_of, accumulation_steps, section)
    losses = []
    scalars = Tensor(0.01, ms.float32), Tensor(0.0, ms.float32)
    for update in range(UPDATES):
        own = [array[rank::ranks] for array in batch_of(update, model)]
        parts = [[Tensor(array[part::accumulation_steps]) for array in own] for part in range(accumulation_steps)]
        if step.counts_first:
            for part in parts:
                step.count(*part, None)
        for number, part in enumerate(parts, 1):
            outcome = step(scalars[0], number == accumulation_steps, scalars[1], *part, None)
        losses.append(outcome.asnumpy()[0])
    return {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}, losses
