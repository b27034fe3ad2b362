"""Models as files that run without this code."""

import json
import tempfile
from itertools import chain, islice, zip_longest
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config.load import Config
from src.data.image_set import DataError, ImageSet
from src.data.open_images import open_images
from src.data.transforms import Preprocessing, UnreadableImage
from src.distributed.ranks import Dist
from src.errors import UserError
from src.files.atomic import replace_synced, write_text
from src.files.file_digest import sha256
from src.files.weights import load_weights, official_names
from src.inference.evaluate import load_for_inference, run_checkpoint
from src.inference.exported import SUFFIXES, description_path, runner
from src.inference.onnx_files import INSTALL, check_onnx, make_expressible, missing_packages, write_onnx
from src.models.layers import GatheredAttention

NAMES = ("images", "logits")  # of input and output
ONNX_OPTIONS = {"conv_implementation": "conv2d", "gelu": "polynomial"}  # what MindSpore can write in that format
OPEN_BATCHES = (1, 3)  # that a file for any batch is verified with


def export_checkpoint(
    config: Config,
    dist: Dist,
    checkpoint: str | None,
    weights: str = "auto",
    file_format: str = "MINDIR",
    output: str | None = None,
    batch_size: int | None = 1,
) -> Path:
    """Export a checkpoint's model, float32, with its description beside it, and verify the file.

    What was written is loaded back and its logits compared with the checkpoint's, on validation images where there are
    any; a file that fails takes nobody's place. Position biases of the attentions are folded into constants.

    Args:
        batch_size: images per call of the exported model; None for any number.

    Raises:
        UserError: no checkpoint, a format that this machine cannot write, a file that cannot be written, or an exported
            model that disagrees with the checkpoint.
    """
    if file_format == "AIR" and dist.device_target != "Ascend":
        raise UserError("--format AIR: MindSpore writes AIR on Ascend only; run there, or use --format MINDIR or ONNX")
    if file_format == "AIR" and batch_size is None:
        raise UserError(
            "--dynamic-batch: AIR files have fixed shapes; give --batch_size, or use --format MINDIR or ONNX"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size: must be at least 1, got {batch_size}")
    path = run_checkpoint(config, checkpoint)
    model, used, classes = load_for_inference(config, path, weights, dist.device_target)
    target = Path(output) if output else config.output / f"{config.name}{SUFFIXES[file_format]}"
    if target.suffix != SUFFIXES[file_format]:
        target = target.with_name(target.name + SUFFIXES[file_format])

    preprocessing = Preprocessing.of(config, model.img_size)
    batches = OPEN_BATCHES if batch_size is None else (batch_size,)
    images, source = sample_images(config, model, max(batches))
    exported = exportable(config, model, dist.device_target, file_format)
    unverified = None
    if file_format == "AIR":
        unverified = "AIR files are run by CANN's own tools"
    elif file_format == "ONNX" and (missing := missing_packages()):
        unverified = f"{' and '.join(missing)} not installed: {INSTALL}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            written = Path(scratch) / target.name
            if file_format == "ONNX":
                write_onnx(exported, written, batch_size, NAMES)
            else:
                write_graph(exported, written, batch_size, file_format)
            difference = None if unverified else verify(written, model, images, batches)
            shape = (batch_size, model.in_chans, *model.img_size)
            described = {
                "format": file_format,
                "file": target.name,
                "sha256": sha256(written),
                "input": described_tensor(NAMES[0], shape),
                "output": described_tensor(NAMES[1], (batch_size, model.num_classes)),
                "preprocessing": preprocessing.to_dict(),
                "classes": classes,
                "checkpoint": {"file": str(path), "weights": used, "sha256": sha256(path)},
                "verified": None if unverified else {"images": source, "relative_difference": difference},
                "configuration": config.to_dict(),
            }
            replace_synced(written, target)
    except OSError as error:
        raise UserError(f"export {target}: cannot be written ({error})") from error
    write_text(description_path(target), json.dumps(described, indent=2, ensure_ascii=False) + "\n")

    shown = ", ".join("any" if side is None else str(side) for side in shape)
    size = target.stat().st_size / 1e6
    print(f"{path} ({used} weights) to {target} ({size:.1f} MB) and {description_path(target).name}", flush=True)
    print(f"input {NAMES[0]} [{shown}] float32, output {NAMES[1]}", flush=True)
    if unverified:
        print(f"written but not verified: {unverified}", flush=True)
    else:
        counts = " and ".join(map(str, batches))
        print(
            f"verified on {source}, {counts} at a time: largest logit difference {difference:.1e} of the largest logit",
            flush=True,
        )
    return target


def described_tensor(name: str, shape: tuple[int | None, ...]) -> dict:
    """Name, shape (None: any) and type of an input or output."""
    return {"name": name, "shape": list(shape), "dtype": "float32"}


def exportable(config: Config, model: nn.Cell, device_target: str, file_format: str) -> nn.Cell:
    """A fresh copy of a model, with its weights, in the form that a format asks for."""
    is_onnx = file_format == "ONNX"
    copy = config.build_model(device_target, **(ONNX_OPTIONS if is_onnx else {}))
    load_weights(copy, dict(official_names(model)), adapt=())
    copy.set_train(False)
    for _, cell in copy.cells_and_names():
        if isinstance(cell, GatheredAttention):
            cell.fold_position_bias()
    if is_onnx:
        make_expressible(copy)
    return copy


def write_graph(model: nn.Cell, path: Path, batch_size: int | None, file_format: str) -> None:
    """Write MindSpore's own formats, MINDIR and AIR, for batches of one size or (MINDIR) of any."""
    shape = [batch_size, model.in_chans, *model.img_size]
    images = Tensor(np.zeros(shape, np.float32)) if batch_size else Tensor(shape=shape, dtype=ms.float32)
    ms.export(model, images, file_name=str(path), file_format=file_format)


def sample_images(config: Config, model: nn.Cell, count: int) -> tuple[np.ndarray, str]:
    """Preprocessed images [count, C, H, W] and what they are: the first readable of the validation set, else noise."""
    preprocessing = Preprocessing.of(config, model.img_size)
    try:
        found = open_images(config.data.path, config.data.val)
    except DataError:
        found = None
    pixels = list(islice(_readable(found, preprocessing), count)) if found is not None else []
    if not pixels:
        shape = (count, model.in_chans, *model.img_size)
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return noise, "random input (no validation images here)"
    return preprocessing.normalise(
        np.stack([pixels[index % len(pixels)] for index in range(count)])
    ), "validation images"


def _readable(found: ImageSet, preprocessing: Preprocessing):
    """Pixels of the images that can be read: the first of every class, then the second of every class, and so on."""
    by_class = [np.flatnonzero(found.labels == label) for label in range(len(found.classes))]
    for index in chain.from_iterable(zip_longest(*by_class)):
        try:
            if index is not None:
                yield preprocessing.pixels(found.content(index))
        except (UnreadableImage, OSError):
            continue


def verify(path: Path, model: nn.Cell, images: np.ndarray, batches: tuple[int, ...], tolerance: float = 1e-4) -> float:
    """Largest difference between the logits of an exported file and its model's, relative to the largest logit.

    Args:
        batches: sizes of the batches to run the file with, of which `images` has as many as the largest.

    Raises:
        UserError: beyond `tolerance`, or no valid file.
    """
    if path.suffix == SUFFIXES["ONNX"]:
        check_onnx(path)
    expected = model(Tensor(images)).asnumpy()
    logits = runner(path)
    differences = [np.abs(logits(images[:size]) - expected[:size]).max() for size in batches]
    difference = float(max(differences) / np.abs(expected).max())
    if not difference <= tolerance:
        raise UserError(
            f"export {path}: its logits differ from the checkpoint's by {difference:.1e} of the largest logit"
        )
    return difference
