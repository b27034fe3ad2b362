"""The smallest run of segmentation: a network of two blocks on images whose colours tell the class."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import start
from focal_twins.training.trainer import Trainer

CLASSES = ("sky", "sea", "sand")
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
SIZES = ((32, 40), (36, 33), (48, 32))  # (height, width), in turn

CONFIG: dict[str, Any] = {
    "name": "small",
    "task": "segmentation",
    "backbone": {
        "name": "twins", "img_size": 32, "embed_dims": [8, 16], "num_heads": [1, 2], "mlp_ratios": [2.0, 2.0],
        "depths": [1, 1], "sr_ratios": [2, 1], "drop_path_rate": 0.1,
    },
    "model": {
        "name": "upernet", "num_classes": len(CLASSES), "channels": 8, "pool_scales": [1, 2], "auxiliary_channels": 8,
    },
    "data": {"classes": list(CLASSES), "workers": 1, "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]},
    "augment": {"resize": None, "ratio_range": [0.8, 1.25]},
    "optimizer": {"base_lr": 0.01, "lr_batch_size": None, "clip_norm": None, "weight_decay": 0.01},
    "schedule": {"name": "poly", "warmup_epochs": 0.0, "min_lr": 0.0},
    "ema": {"decay": 0.5},
    "train": {"epochs": 2, "batch_size": 4, "log_interval": 1, "save_minutes": None},
    "eval": {"resize": None},
    "runtime": {"mode": "pynative"},
}  # fmt: skip


def make_scenes(root: Path, split: str, count: int) -> None:
    """Write images of three by three patches, a colour for each class, and their labels; the first row is ignored."""
    for number in range(count):
        generator = np.random.default_rng([number, len(split)])
        height, width = SIZES[number % len(SIZES)]
        patches = generator.integers(0, len(CLASSES), (3, 3))
        label = patches[np.arange(height)[:, None] * 3 // height, np.arange(width) * 3 // width].astype(np.uint8)
        noise = generator.normal(0, 20, (height, width, 3))
        label[0] = 255
        pixels = np.clip(COLOURS[np.minimum(label, 2)] + noise, 0, 255).astype(np.uint8)
        for folder, array in (("images", pixels), ("annotations", label)):
            path = root / folder / split / f"scene{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def make_data(root: Path) -> Path:
    """Write 16 training scenes and 5 validation scenes."""
    make_scenes(root, "training", 16)
    make_scenes(root, "validation", 5)
    return root


def write_config(folder: Path, data: Path) -> Path:
    """Write the configuration of the run, whose results go below the same folder."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": CONFIG["data"] | {"path": str(data)}}))
    return path


def build(path: Path, name: str, *overrides: str) -> Trainer:
    """Build a run of a configuration file, in a folder of that name beside it."""
    config = load_config(path, [f"runtime.output={path.parent / name}", *overrides])
    return Trainer(config, start(config))
