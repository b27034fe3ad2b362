"""Measure images per second of the training pipeline and of each of its stages: python scripts/benchmark_data.py

Photographs of 500x375 pixels, made from scikit-learn's two sample images, go through the ImageNet recipe to batches.
--timm PYTHON measures timm's pipeline of the same recipe next to it, by an interpreter that has timm, PyTorch and a
Pillow below 12 (Pillow 12 refuses the arguments that timm's policy gives posterize). The two take turns, each in a
process of its own with as many threads and worker processes on the same processors, and the ratio is that of their
medians.
"""

import io
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError
from focal_twins.measuring.machine import QUIET, busy_note, idle_load
from focal_twins.measuring.turns import PROCESSORS, Worker, time_pipeline

SCRIPTS = Path(__file__).resolve().parent
SIZE = 224
POLICY = "rand-m9-mstd0.5-inc1"
ERASING, MIXUP, CUTMIX, SMOOTHING = 0.25, 0.8, 1.0, 0.1
CLASSES = 4


def make_photographs(folder: Path, count: int) -> None:
    """Write random crops of the two photographs as JPEG files of 500x375, in class folders."""
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


def train_transform():
    from focal_twins.config.classification import ClassificationAugment
    from focal_twins.data.transforms import TrainTransform

    augment = ClassificationAugment(
        auto_augment=POLICY, erasing=ERASING, mixup=MIXUP, cutmix=CUTMIX, label_smoothing=SMOOTHING
    )
    return TrainTransform((SIZE, SIZE), augment, 0)


def time_stages(folder: Path, options) -> dict[str, float]:
    """Measure the microseconds per image of each stage, one after the other on one core."""
    import numpy as np
    from mindspore.dataset import vision
    from PIL import Image

    from focal_twins.data.decoding import decode
    from focal_twins.data.mixup import draw_mixing, mix_images
    from focal_twins.data.random_erasing import draw_rectangles, erase
    from focal_twins.data.resizing import resize
    from focal_twins.data.transforms import normalise, random_resized_crop_box
    from focal_twins.random_streams import Stream, generator

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


PIPELINES = {"own": "benchmark_own_data.py", "timm": "benchmark_reference_data.py"}


def measure(pipeline: str, interpreter: str, folder: Path, options) -> dict:
    """Measure a pipeline's rate over some epochs after one that does not count, in a process of its own."""
    recipe = {
        "folder": str(folder),
        "size": SIZE,
        "policy": POLICY,
        "erasing": ERASING,
        "mixup": MIXUP,
        "cutmix": CUTMIX,
        "smoothing": SMOOTHING,
        "classes": CLASSES,
        "workers": options.workers,
        "batch_size": options.batch_size,
        "epochs": options.epochs,
    }
    command = [interpreter, SCRIPTS / PIPELINES[pipeline], "--recipe", json.dumps(recipe)]
    # The work is the worker processes'. More threads in the process that collects it slow timm's loader by a fifth.
    worker = Worker(f"the {pipeline} pipeline", command, threads=1, all_processors=True)
    with closing(worker):
        answer, others = time_pipeline(worker, options.workers)
    return {
        "images_per_second": answer["result"] / answer["seconds"],
        "cpu_us_per_image": answer["cpu_seconds"] / answer["result"] * 1e6,
        "processors": answer["processors"],
        "load_of_others": others,
    }


def main(arguments: list[str]) -> None:
    options = Parser(prog="benchmark_data.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--images", type=int, default=1024, help="photographs made (default: 1024)")
    options.add_argument("--epochs", type=int, default=4, help="passes over them that are timed (default: 4)")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--timm", metavar="PYTHON", help="an interpreter that has timm, to measure its pipeline by")
    options.add_argument(
        "--allow-load", action="store_true", help="compare even where others use the processors; the result says so"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_args(arguments)
    os.environ.setdefault("GLOG_v", "4")
    if options.images < options.batch_size:
        raise UserError(f"--images: {options.images} do not fill a batch of {options.batch_size}")
    if options.timm and options.workers < 2:
        raise UserError("--workers: must be at least 2 beside timm: MindSpore makes one a thread, timm a process")
    if options.timm and (others := idle_load()) > QUIET and not options.allow_load:
        raise UserError(
            f"other processes take {others:.0%} of the processors, so a comparison would not be fair: wait until they "
            "have ended, or add --allow-load"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_photographs(folder, options.images)
        repeated = [time_stages(folder, options) for _ in range(options.repeats)]
        stages = {name: statistics.median(times[name] for times in repeated) for name in repeated[0]}
        for name, microseconds in stages.items():
            print(f"{name:22s} {microseconds:7.0f} us  {1e6 / microseconds:9.0f} img/s on one core")
        pipelines = {"own": sys.executable} | ({"timm": options.timm} if options.timm else {})
        runs: dict[str, list[dict]] = {name: [] for name in pipelines}
        for _ in range(options.repeats):
            for name, interpreter in pipelines.items():
                runs[name].append(measure(name, interpreter, folder, options))
    rates = {name: [result["images_per_second"] for result in results] for name, results in runs.items()}
    costs = {name: statistics.median(r["cpu_us_per_image"] for r in results) for name, results in runs.items()}
    for name, values in rates.items():
        print(
            f"{name + ' pipeline':22s} {statistics.median(values):7.0f} img/s with {options.workers} workers "
            f"({min(values):.0f} to {max(values):.0f} in {options.repeats} runs), {costs[name]:.0f} us of CPU time each"
        )
    others = max(result["load_of_others"] for results in runs.values() for result in results)
    print(f"{'others took':22s} {others:7.1%} of the cores at most" + busy_note(others))
    figures = {
        "stages_us": stages,
        "pipelines_img_s": rates,
        "cpu_us_per_image": costs,
        "workers": options.workers,
        "processors": sorted(PROCESSORS),
        "load_of_others": others,
    }
    if options.timm:
        figures["ratio"] = statistics.median(rates["own"]) / statistics.median(rates["timm"])
        figures["cpu_ratio"] = costs["timm"] / costs["own"]
        print(f"{'ratio':22s} {figures['ratio']:7.2f}, of CPU time {figures['cpu_ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.exit(run(main, "benchmark_data.py"))
