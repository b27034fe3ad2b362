"""Models as files that run without this code."""

import os
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config import Config
from src.data.image_folder import ImageFolder
from src.data.transforms import EvalTransform, decode
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
    model, used = load_for_inference(config, path, weights, dist.device_target)
    target = Path(output) if output else config.output / f"{config.name}{SUFFIXES[file_format]}"
    if target.suffix != SUFFIXES[file_format]:
        target = target.with_name(target.name + SUFFIXES[file_format])

    images, source = sample_images(config, model, batch_size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            ms.export(model, Tensor(images), file_name=f"{scratch}/{target.name}", file_format=file_format)
            os.replace(f"{scratch}/{target.name}", target)
    except OSError as error:
        raise UserError(f"export {target}: cannot be written ({error})") from error
    print(f"exported {path} ({used} weights) to {target}: input {list(images.shape)} float32")
    if file_format == "MINDIR":
        difference = verify_mindir(target, model, images)
        print(f"verified on {source}: largest logit difference {difference:.1e} of the largest logit", flush=True)
    return target


def sample_images(config: Config, model: nn.Cell, count: int) -> tuple[np.ndarray, str]:
    """Preprocessed images [count, C, H, W] and what they are: the first of the validation set, else noise."""
    path = Path(config.data.path) / config.data.val
    if not path.is_dir():
        shape = (count, model.in_chans, *model.img_size)
        return np.random.default_rng(0).standard_normal(
            shape, dtype=np.float32
        ), "random input (no validation images here)"
    folder = ImageFolder.open(path)
    transform = EvalTransform(model.img_size, config.eval.crop_ratio, config.augment.interpolation)
    mean, std = (np.asarray(values, np.float32) * 255 for values in (config.data.mean, config.data.std))
    files = [folder.files(index % len(folder.classes))[0] for index in range(count)]
    pixels = np.stack([transform(decode(np.fromfile(file, np.uint8), len(mean))) for file in files])
    return ((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32), "validation images"


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
