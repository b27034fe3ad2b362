"""Run timm's training pipeline, for benchmark_data.py, which starts this by an interpreter with PyTorch and timm."""

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for scripts.X
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch

from focal_twins.measuring.turns import serve
from scripts.benchmark_reference import import_timm


def prepare(recipe: dict) -> dict:
    """Build timm's loader; return functions that read it once ("epoch") or several times ("epochs").

    The loader is in its fastest form: it mixes pixels while it collates them, and normalises and erases in batches.
    """
    _timm, _library = import_timm()
    from timm.data import FastCollateMixup, ImageDataset, create_loader

    loader = create_loader(
        ImageDataset(recipe["folder"]),
        (3, recipe["size"], recipe["size"]),
        recipe["batch_size"],
        is_training=True,
        re_prob=recipe["erasing"],
        re_mode="pixel",
        auto_augment=recipe["policy"],
        interpolation="bicubic",
        num_workers=recipe["workers"],
        collate_fn=FastCollateMixup(
            recipe["mixup"], recipe["cutmix"], label_smoothing=recipe["smoothing"], num_classes=recipe["classes"]
        ),
        device=torch.device("cpu"),
        persistent_workers=True,
    )

    def epoch() -> int:
        return sum(len(images) for images, _ in loader)

    return {"epoch": epoch, "epochs": lambda: sum(epoch() for _ in range(recipe["epochs"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, type=json.loads, metavar="JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    serve(lambda: prepare(options.recipe))


if __name__ == "__main__":
    main()
