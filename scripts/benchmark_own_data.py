"""Run this project's training pipeline, for benchmark_data.py, which starts this as a process of its own."""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ.setdefault("GLOG_v", "4")  # before MindSpore is imported

from focal_twins.config.classification import ClassificationAugment, ClassificationData
from focal_twins.data.image_folder import ImageFolder
from focal_twins.data.pipeline import TrainBatches, UnreadableImages, configure_reading
from focal_twins.data.transforms import TrainTransform
from focal_twins.measuring.turns import serve
from focal_twins.tasks.classification.samples import LabelledTrainSamples


def prepare(recipe: dict) -> dict:
    """Build the pipeline that train.py uses; return functions that read it once ("epoch") or several times ("epochs").

    They return the number of images.
    """
    data = ClassificationData(workers=recipe["workers"])
    augment = ClassificationAugment(
        auto_augment=recipe["policy"],
        erasing=recipe["erasing"],
        mixup=recipe["mixup"],
        cutmix=recipe["cutmix"],
        label_smoothing=recipe["smoothing"],
    )
    configure_reading(data)
    folder = Path(recipe["folder"])
    images, transform = ImageFolder.open(folder), TrainTransform((recipe["size"], recipe["size"]), augment, 0)
    batches = TrainBatches(
        images,
        LabelledTrainSamples(images, transform, data.mean, data.std, UnreadableImages(folder / "unreadable.txt")),
        seed=0,
        batch_size=recipe["batch_size"],
        epochs=recipe["epochs"] + 1,
        workers=recipe["workers"],
    )

    def epoch() -> int:
        return sum(len(images) for images, _ in batches)

    return {"epoch": epoch, "epochs": lambda: sum(epoch() for _ in range(recipe["epochs"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, type=json.loads, metavar="JSON")
    options = parser.parse_args()
    serve(lambda: prepare(options.recipe))


if __name__ == "__main__":
    main()
