"""Images per second of the training pipeline and of each of its stages: python scripts/benchmark_data.py

Photographs of 500x375 pixels, made from scikit-learn's two sample images, go through the ImageNet recipe to batches.
--timm PYTHON measures timm's pipeline of the same recipe next to it, by an interpreter that has timm, PyTorch and
scikit-learn: the two take turns, and the ratio is that of their medians.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZE = 224
POLICY = "rand-m9-mstd0.5-inc1"
ERASING, MIXUP, CUTMIX, SMOOTHING = 0.25, 0.8, 1.0, 0.1
CLASSES = 4


def make_photographs(folder: Path, count: int) -> None:
    """Random crops of the two photographs as JPEG files of 500x375, in class folders."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        image = photographs[number % 2]
        width = int(generator.integers(400, image.width + 1))
        height = width * 3 // 4
        left = int(generator.integers(0, image.width - width + 1))
        top = int(generator.integers(0, max(image.height - height, 0) + 1))
        path = folder / f"class{number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = image.crop((left, top, left + width, min(top + height, image.height)))
        crop.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def rate(epoch, epochs: int) -> float:
    """Images per second of a loader: `epoch` iterates over one epoch and yields batch sizes; the first is warm-up."""
    sum(epoch())
    start = time.perf_counter()
    images = sum(sum(epoch()) for _ in range(epochs))
    return images / (time.perf_counter() - start)


def timm_rate(folder: Path, options) -> float:
    """timm's own loader at its fastest: pixels are mixed while collated, normalised and erased in batches."""
    import torch
    from timm.data import FastCollateMixup, ImageDataset, create_loader

    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        options.batch_size,
        is_training=True,
        re_prob=ERASING,
        re_mode="pixel",
        auto_augment=POLICY,
        interpolation="bicubic",
        num_workers=options.workers,
        collate_fn=FastCollateMixup(MIXUP, CUTMIX, label_smoothing=SMOOTHING, num_classes=CLASSES),
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    return rate(lambda: (len(images) for images, _ in loader), options.epochs)


def own_rate(folder: Path, options) -> float:
    """This project's pipeline, as train.py uses it."""
    from src.data.image_folder import ImageFolder
    from src.data.pipeline import TrainBatches, UnreadableImages, configure_reading
    from src.schema import DataConfig

    data = DataConfig(workers=options.workers)
    configure_reading(data)
    batches = TrainBatches(
        ImageFolder.open(folder),
        train_transform(),
        data,
        batch_size=options.batch_size,
        epochs=options.epochs + 1,
        unreadable=UnreadableImages(folder / "unreadable.txt"),
        workers=options.workers,
    )
    return rate(lambda: (len(images) for images, _ in batches), options.epochs)


def train_transform():
    from src.data.transforms import TrainTransform
    from src.schema import AugmentConfig

    augment = AugmentConfig(auto_augment=POLICY, erasing=ERASING, mixup=MIXUP, cutmix=CUTMIX, label_smoothing=SMOOTHING)
    return TrainTransform((SIZE, SIZE), augment, 0)


def time_stages(folder: Path, options) -> dict[str, float]:
    """Microseconds per image of each stage, one after the other on one core."""
    import numpy as np
    from mindspore.dataset import vision
    from PIL import Image

    from src.data.mixup import draw_mixing, mix_images
    from src.data.random_erasing import draw_rectangles, erase
    from src.data.transforms import decode, normalise, random_resized_crop_box, resize
    from src.random_streams import Stream, generator

    transform = train_transform()
    augment = transform.augment
    files = sorted(folder.rglob("*.jpg"))[: options.batch_size * 2]
    seconds = {}

    def stage(name, function, items):
        start = time.perf_counter()
        results = [function(item) for item in items]
        seconds[name] = (time.perf_counter() - start) / len(items) * 1e6
        return results

    contents = stage("read", lambda file: np.fromfile(file, np.uint8), files)
    stage("decode, by Pillow", lambda c: np.asarray(Image.open(io.BytesIO(c.tobytes())).convert("RGB")), contents)
    stage("decode, by MindSpore", vision.Decode(), contents)
    images = stage("decode (simplejpeg)", lambda c: decode(c, 3), contents)
    keyed = list(enumerate(images))
    generators = stage("generator", lambda key: generator(0, Stream.AUGMENTATION, 0, key[0]), keyed)

    def crop(key):
        height, width = images[key].shape[:2]
        box = random_resized_crop_box(generators[key], width, height, augment.scale, augment.ratio)
        return resize(images[key][box[1] : box[3], box[0] : box[2]], (SIZE, SIZE), transform.resampling[0])

    crops = stage("crop and resize", crop, range(len(images)))
    flipped = stage("flip", vision.HorizontalFlip(), crops)
    augmented = stage("policy", lambda key: transform.policy(flipped[key], generators[key]), range(len(images)))
    stacked = np.stack(augmented)
    start = time.perf_counter()
    batch = normalise(stacked, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    seconds["normalise"] = (time.perf_counter() - start) / len(batch) * 1e6

    def erase_one(key):
        choices = generator(0, Stream.ERASING, 0, key)
        erase(batch[key], draw_rectangles(choices, SIZE, SIZE, ERASING, (1, 1)), "pixel", choices)

    stage("erase", erase_one, range(len(batch)))
    start = time.perf_counter()
    mix_images(batch, draw_mixing(np.random.default_rng(0), augment, len(batch), SIZE, SIZE))
    seconds["mix"] = (time.perf_counter() - start) / len(batch) * 1e6
    return seconds


PIPELINES = {"own": own_rate, "timm": timm_rate}


def measured(pipeline: str, interpreter: str, folder: Path, options) -> float:
    """A pipeline's rate in a process of its own."""
    command = [interpreter, __file__, "--pipeline", pipeline, "--folder", folder, "--workers", options.workers]
    command += ["--batch-size", options.batch_size, "--epochs", options.epochs]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"benchmark_data.py: error: the {pipeline} pipeline failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024, help="photographs made (default: 1024)")
    parser.add_argument("--epochs", type=int, default=4, help="passes over them that are timed (default: 4)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timm", metavar="PYTHON", help="an interpreter that has timm, to measure its pipeline by")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--pipeline", choices=PIPELINES, help=argparse.SUPPRESS)  # what the processes are started with
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("GLOG_v", "4")
    if options.pipeline:
        print(PIPELINES[options.pipeline](options.folder, options))
        return
    if options.images < options.batch_size:
        parser.error(f"--images {options.images}: must fill a batch of {options.batch_size}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_photographs(folder, options.images)
        repeated = [time_stages(folder, options) for _ in range(options.repeats)]
        stages = {name: statistics.median(times[name] for times in repeated) for name in repeated[0]}
        for name, microseconds in stages.items():
            print(f"{name:22s} {microseconds:7.0f} us  {1e6 / microseconds:9.0f} img/s on one core")
        pipelines = {"own": sys.executable} | ({"timm": options.timm} if options.timm else {})
        rates: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(options.repeats):
            for name, interpreter in pipelines.items():
                rates[name].append(measured(name, interpreter, folder, options))
    for name, values in rates.items():
        print(
            f"{name + ' pipeline':22s} {statistics.median(values):7.0f} img/s with {options.workers} workers "
            f"({min(values):.0f} to {max(values):.0f} in {options.repeats} runs)"
        )
    figures = {"stages_us": stages, "pipelines_img_s": rates, "workers": options.workers}
    if options.timm:
        figures["ratio"] = statistics.median(rates["own"]) / statistics.median(rates["timm"])
        print(f"{'ratio':22s} {figures['ratio']:7.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
