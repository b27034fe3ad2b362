"""Models as files that run without this code."""

import os
import tempfile
from itertools import chain, islice, zip_longest
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config import Config
from src.data.image_set import DataError, ImageSet, open_images
from src.data.transforms import EvalTransform, UnreadableImage, decode, normalise
from src.distributed import Dist
from src.errors import UserError
from src.evaluation import load_for_inference, run_checkpoint

SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air"}


def export_checkpoint(
    config: Config,
    dist: Dist,
    checkpoint: str | None,
    weights: str = "auto",
    file_format: str = "MINDIR",
    output: str | None = None,
    batch_size: int = 1,
) -> Path:
    """Export a checkpoint's model for inputs [batch_size, C, H, W] float32 and verify the file.

    A MINDIR is loaded back and its logits compared with the checkpoint's, on validation images where there are any.

    Raises:
        UserError: no checkpoint, a format that this machine cannot write, a file that cannot be written, or an exported
            model that disagrees with the checkpoint.
    """
    if file_format == "ONNX":
        raise UserError("--format ONNX: not there yet; MINDIR is")
    if file_format == "AIR" and dist.device_target != "Ascend":
        raise UserError("--format AIR: MindSpore writes AIR on Ascend only; run there, or use --format MINDIR")
    if batch_size < 1:
        raise UserError(f"--batch_size: must be at least 1, got {batch_size}")
    path = run_checkpoint(config, checkpoint)
    model, used, _ = load_for_inference(config, path, weights, dist.device_target)
    target = Path(output) if output else config.output / f"{config.name}{SUFFIXES[file_format]}"
    if target.suffix != SUFFIXES[file_format]:
        target = target.with_name(target.name + SUFFIXES[file_format])

    images, source = sample_images(config, model, batch_size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            written = Path(scratch) / target.name
            ms.export(model, Tensor(images), file_name=str(written), file_format=file_format)
            difference = verify_mindir(written, model, images) if file_format == "MINDIR" else None
            os.replace(written, target)
    except OSError as error:
        raise UserError(f"export {target}: cannot be written ({error})") from error
    print(f"exported {path} ({used} weights) to {target}: input {list(images.shape)} float32")
    if difference is not None:
        print(f"verified on {source}: largest logit difference {difference:.1e} of the largest logit", flush=True)
    return target


def sample_images(config: Config, model: nn.Cell, count: int) -> tuple[np.ndarray, str]:
    """Preprocessed images [count, C, H, W] and what they are: the first readable of the validation set, else noise."""
    try:
        found = open_images(config.data.path, config.data.val)
    except DataError:
        found = None
    channels = len(config.data.mean)
    images = list(islice(_readable(found, channels), count)) if found is not None else []
    if not images:
        shape = (count, model.in_chans, *model.img_size)
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return noise, "random input (no validation images here)"
    transform = EvalTransform(model.img_size, config.eval.crop_ratio, config.augment.interpolation)
    pixels = np.stack([transform(images[index % len(images)]) for index in range(count)])
    return normalise(pixels, config.data.mean, config.data.std), "validation images"


def _readable(found: ImageSet, channels: int):
    """The images of a set that can be read: the first of every class, then the second of every class, and so on."""
    by_class = [np.flatnonzero(found.labels == label) for label in range(len(found.classes))]
    for index in chain.from_iterable(zip_longest(*by_class)):
        try:
            if index is not None:
                yield decode(found.content(index), channels)
        except (UnreadableImage, OSError):
            continue


def verify_mindir(path: Path, model: nn.Cell, images: np.ndarray, tolerance: float = 1e-4) -> float:
    """Largest difference between the logits of a MINDIR file and its model's, relative to the largest logit.

    Raises:
        UserError: beyond `tolerance`.
    """
    expected = model(Tensor(images)).asnumpy()
    logits = nn.GraphCell(ms.load(str(path)))(Tensor(images)).asnumpy()
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise UserError(
            f"export {path}: its logits differ from the checkpoint's by {difference:.1e} of the largest logit"
        )
    return difference
