"""Measure images per second of segmentation's training pipeline: python scripts/benchmark_segmentation_data.py

JPEG images of 683 x 512 pixels, made from scikit-learn's two sample images, and label images of 150 classes go through
the recipe of ADE20K to crops of 512. Beside it goes what mmsegmentation does to the same images, written down here
with the operations of OpenCV and NumPy that it calls, in the same worker processes. The two take turns, each in a
process of its own.
"""

import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ.setdefault("GLOG_v", "4")  # before MindSpore is imported

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from focal_twins.cli import Parser, run
from focal_twins.config.segmentation import SegmentationAugment, SegmentationData
from focal_twins.data import dense_transforms as dense
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.data.label_images import LabelRules
from focal_twins.data.pipeline import BatchKey, TrainBatches, UnreadableImages, configure_reading
from focal_twins.errors import UserError
from focal_twins.measuring.machine import busy_note
from focal_twins.measuring.turns import Worker, serve, time_pipeline
from focal_twins.random_streams import Stream, generator
from focal_twins.tasks.segmentation.samples import SegmentationTrainSamples

CLASSES, CROP, SIZE = 150, (512, 512), (512, 683)
PIPELINES = ("own", "originals")


class OriginalOperations(SegmentationTrainSamples):
    """Makes the same batches by the operations that mmsegmentation 0.11 calls, one after the other in the worker."""

    def sample(self, columns, epoch, position):
        data, augment, index = self.data, self.augment, int(columns[0])
        image = cv2.imdecode(data.content(index), cv2.IMREAD_COLOR)
        label = np.array(Image.open(data.label_path / data.label_name(index))).astype(np.uint8)
        choices = generator(self.seed, Stream.AUGMENTATION, epoch, position)
        bounds = dense.scaled_bounds(augment.resize, label.shape, choices.uniform(*augment.ratio_range))
        size = dense.rescaled_size(label.shape, bounds)[::-1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        top, left = self.corner(choices, label)
        image = image[top : top + CROP[0], left : left + CROP[1]]
        label = label[top : top + CROP[0], left : left + CROP[1]]
        if choices.random() < augment.hflip:
            image, label = np.flip(image, axis=1), np.flip(label, axis=1).copy()
        drawn = dense.draw_distortion(choices, augment.brightness, augment.contrast, augment.saturation, augment.hue)
        image = self.normalised(self.distorted(np.ascontiguousarray(image), drawn))
        padded = np.zeros((*CROP, 3), np.float32)
        padded[: image.shape[0], : image.shape[1]] = image
        padded_label = np.full(CROP, 255, np.uint8)
        padded_label[: label.shape[0], : label.shape[1]] = label
        extent = np.array(label.shape, np.int32)
        return np.ascontiguousarray(padded.transpose(2, 0, 1)), padded_label.astype(np.int64), extent

    def corner(self, choices, label):
        """Draw crops, and count the classes of each by sorting its pixels."""
        limits = [max(have - want, 0) + 1 for have, want in zip(label.shape, CROP, strict=True)]
        top, left = map(int, choices.integers(0, limits))
        for _ in range(dense.CROP_ATTEMPTS):
            values, counts = np.unique(label[top : top + CROP[0], left : left + CROP[1]], return_counts=True)
            counts = counts[values != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < self.augment.cat_max_ratio:
                break
            top, left = map(int, choices.integers(0, limits))
        return top, left

    @staticmethod
    def linear(image, factor=1.0, addend=0.0):
        return np.clip(image.astype(np.float32) * factor + addend, 0, 255).astype(np.uint8)

    def distorted(self, image, drawn):
        if drawn.brightness is not None:
            image = self.linear(image, addend=drawn.brightness)
        if drawn.contrast is not None and not drawn.contrast_last:
            image = self.linear(image, drawn.contrast)
        if drawn.saturation is not None:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            image[:, :, 1] = self.linear(image[:, :, 1], drawn.saturation)
            image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
        if drawn.hue is not None:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            image[:, :, 0] = (image[:, :, 0].astype(int) + drawn.hue) % 180
            image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
        if drawn.contrast is not None and drawn.contrast_last:
            image = self.linear(image, drawn.contrast)
        return image

    def normalised(self, image):
        image = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2RGB)
        cv2.subtract(image, np.array([self.mean]) * 255, image)
        return cv2.multiply(image, 1 / (np.array([self.std]) * 255), image)

    def batch(self, arrays, key):
        return arrays[:2]


def make_images(folder: Path, count: int) -> None:
    """Write crops of the two photographs, and labels of blocks whose classes are as coarse as those of a scene."""
    choices = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        photograph = photographs[number % 2]
        height = int(choices.integers(300, photograph.shape[0] + 1))
        width = min(height * SIZE[1] // SIZE[0], photograph.shape[1])
        top = int(choices.integers(photograph.shape[0] - height + 1))
        left = int(choices.integers(photograph.shape[1] - width + 1))
        image = cv2.resize(photograph[top : top + height, left : left + width], SIZE[::-1])
        # Levels of a blurred photograph, so that borders are as crooked as those of things.
        levels = cv2.GaussianBlur(image, (31, 31), 0).astype(int) // 43
        label = (levels @ np.array([1, 6, 36]) * 7 % CLASSES).astype(np.uint8)
        for kind, array, ending in (("images", image, "jpg"), ("annotations", label, "png")):
            path = folder / kind / f"{number:05d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path, quality=90)


def prepare(options) -> dict:
    """Build a pipeline; return functions that read it once ("epoch"), several times ("epochs"), or without workers."""
    data = SegmentationData(workers=options.workers)
    configure_reading(data)
    folders = LabelledFolders.open(
        options.folder / "images", options.folder / "annotations", LabelRules(CLASSES), tuple(map(str, range(CLASSES)))
    )
    samples_of = {"own": SegmentationTrainSamples, "originals": OriginalOperations}[options.serve]
    samples = samples_of(
        folders,
        CROP,
        SegmentationAugment(),
        data.mean,
        data.std,
        0,
        UnreadableImages(options.folder / "unreadable.txt"),
    )
    batches = TrainBatches(
        folders, samples, seed=0, batch_size=options.batch_size, epochs=options.epochs + 1, workers=options.workers
    )

    def epoch() -> int:
        return sum(len(images) for images, _ in batches)

    def alone() -> float:
        """Return the median of the CPU microseconds that an image takes, without MindSpore's pipeline."""
        times = []
        for index in range(min(64, folders.size)):
            start = time.process_time()
            arrays = samples.sample((np.int64(index),), 0, index)
            samples.batch(tuple(array[None] for array in arrays), BatchKey(0, np.array([index]), 0, 0, 0))
            times.append(time.process_time() - start)
        return statistics.median(times) * 1e6

    return {"epoch": epoch, "epochs": lambda: sum(epoch() for _ in range(options.epochs)), "alone": alone}


def measure(name: str, folder: Path, options) -> dict:
    """Measure a pipeline over some epochs after one that does not count, in a process of its own."""
    command = [sys.executable, __file__, "--serve", name, "--folder", folder, "--workers", options.workers]
    command += ["--batch-size", options.batch_size, "--epochs", options.epochs]
    worker = Worker(f"the {name} pipeline", command, threads=1, all_processors=True)
    with closing(worker):
        alone = worker.call("alone")["result"]
        answer, others = time_pipeline(worker, options.workers)
    return {
        "rate": answer["result"] / answer["seconds"],
        "cpu": answer["cpu_seconds"] / answer["result"] * 1e6,
        "alone": alone,
        "others": others,
    }


def main(arguments: list[str]) -> None:
    options = Parser(prog="benchmark_segmentation_data.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--images", type=int, default=256, help="images made (default: 256)")
    options.add_argument("--epochs", type=int, default=3, help="passes over them that are timed (default: 3)")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options.add_argument(
        "--serve", choices=PIPELINES, help="be the process of a pipeline; this script starts it itself"
    )
    options.add_argument("--folder", type=Path, help="where the images are, with --serve")
    options = options.parse_args(arguments)
    if options.serve:
        serve(lambda: prepare(options))
        return
    if options.images < options.batch_size:
        raise UserError(f"--images: {options.images} do not fill a batch of {options.batch_size}")
    with tempfile.TemporaryDirectory() as scratch:
        make_images(Path(scratch), options.images)
        runs: dict[str, list[dict]] = {name: [] for name in PIPELINES}
        for _ in range(options.repeats):
            for name in PIPELINES:
                runs[name].append(measure(name, Path(scratch), options))
    medians = {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]} for name, results in runs.items()
    }
    for name, figures in medians.items():
        rates = [result["rate"] for result in runs[name]]
        print(
            f"{name:10s} {figures['rate']:6.0f} img/s with {options.workers} workers ({min(rates):.0f} to "
            f"{max(rates):.0f} in {options.repeats} runs), {figures['cpu']:.0f} us of CPU time each, "
            f"{figures['alone']:.0f} us without the pipeline"
        )
    own, originals = (medians[name] for name in PIPELINES)
    print(
        f"ratio      {own['rate'] / originals['rate']:6.2f}, of CPU time {originals['cpu'] / own['cpu']:.2f}, "
        f"without the pipeline {originals['alone'] / own['alone']:.2f}"
    )
    others = max(result["others"] for results in runs.values() for result in results)
    print(f"others took {others:.1%} of the cores at most{busy_note(others)}")


if __name__ == "__main__":
    sys.exit(run(main, "benchmark_segmentation_data.py"))
