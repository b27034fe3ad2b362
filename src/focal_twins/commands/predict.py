"""Predict for images: %(prog)s --checkpoint runs/NAME/checkpoints/best.ckpt IMAGE|FOLDER|- ...

A classifier prints the most probable classes of each image. A segmentor prints the shares of the classes, and with
--output FOLDER it writes label images, overlays and a legend. A detector prints the objects with a score of at least
--threshold, and with --output FOLDER it draws them.

A checkpoint contains the configuration of its model; weights without a configuration (.pth files of the original code)
need --config NAME. The JSON file beside an exported .mindir or .onnx file describes it. A folder stands for all images
in it and below, - for file names on the standard input, one a line or, as find -print0 writes them, with a zero byte
behind each.

Files that cannot be read are listed on the standard error stream and left out. The exit code is 0 if any could be read.
"""

import os
import sys

from focal_twins.cli import WEIGHTS, Parser
from focal_twins.errors import UserError
from focal_twins.phrases import counted

FORMATS = ("text", "csv", "json")
TASK_FLAGS = ("top", "threshold", "output", "overlay", "opacity")  # flags that only some tasks have


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|-")
    parser.add_argument(
        "--checkpoint",
        "--model",
        required=True,
        metavar="FILE|NAME",
        help=".ckpt, .pth, .safetensors, .mindir or .onnx, or the name of published weights",
    )
    parser.add_argument("--config", metavar="NAME", help="of weights that come without a configuration")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="configuration values")
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: EMA weights if the file has them")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line, for files without them")
    parser.add_argument(
        "--top",
        type=int,
        metavar="K",
        help="classes (5; all in csv and json of a segmentor) or objects (all) to print",
    )
    parser.add_argument("--threshold", type=float, metavar="SCORE", help="detection: least score of an object (0.3)")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--output", metavar="FOLDER", help="segmentation, detection: write pictures there")
    parser.add_argument("--overlay", choices=("jpeg", "png", "none"), help="kind of the pictures with overlays (jpeg)")
    parser.add_argument("--opacity", type=float, metavar="SHARE", help="segmentation: of the overlays' colours (0.5)")
    parser.add_argument("--batch_size", type=int, help="images per call of the model (classification 32, else 1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that read and decode")
    parser.add_argument("--device_target", choices=("auto", "CPU", "Ascend"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = parser.parse_intermixed_args(arguments)
    for flag in ("top", "batch_size", "workers"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            raise UserError(f"--{flag}: must be at least 1, got {getattr(options, flag)}")

    images = image_files(options.images)
    try:
        predict(options, images)
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def predict(options, images: list[str]) -> None:
    """Print a model's predictions for image files.

    Raises:
        UserError: no such model, another number of class names than the model has, or no readable image.
    """
    from tqdm import tqdm

    from focal_twins.files.names import escape_name
    from focal_twins.inference.trained import open_model
    from focal_twins.tasks.task import PredictionOptions

    model = open_model(
        options.checkpoint, options.config, options.set, options.weights, device_target=options.device_target
    )
    asked = PredictionOptions(**{flag: getattr(options, flag) for flag in ("classes", *TASK_FLAGS)})
    predictor = model.task.predictor(model.answer, model.preprocessing, model.batch_size, model.classes, asked)
    for flag in TASK_FLAGS:
        if getattr(options, flag) is not None and flag not in predictor.flags:
            raise UserError(f"--{flag}: is nothing that the prediction of {model.task.name} has; leave it out")
    batch_size = options.batch_size or predictor.images_per_call
    unreadable = 0
    with (
        predictor.writer(options.format, sys.stdout) as writer,
        tqdm(total=len(images), unit="img", disable=None) as progress,
    ):
        for prediction in predictor.predict(images, batch_size, options.workers):
            if prediction.problem is not None:
                unreadable += 1
                line = f"unreadable image {escape_name(prediction.image)} ({prediction.problem})"
                progress.write(line, file=sys.stderr)
            else:
                with progress.external_write_mode(sys.stdout):
                    writer.write(prediction)
            progress.update()
    if unreadable:
        print(f"{unreadable} of {counted(len(images), 'image')} could not be read", file=sys.stderr, flush=True)
    if unreadable == len(images):
        raise UserError("none of the images could be read")


def image_files(names: list[str]) -> list[str]:
    """List the files that arguments stand for, in order; the files of a folder are sorted.

    Raises:
        UserError: there are none.
    """
    from focal_twins.data.image_files import LeftOut, list_images

    files = []
    for name in names:
        if name == "-":
            files += _listed_files(sys.stdin.buffer.read())
        elif os.path.isdir(name):
            left_out = LeftOut()
            try:
                files += [os.path.join(name, image) for image in list_images(name, left_out)]
            except OSError as error:
                raise UserError(f"folder {name}: cannot be listed ({error.strerror})") from error
            if left_out.counts:
                print(f"folder {name}: left out {left_out}", file=sys.stderr, flush=True)
        else:
            files.append(name)
    if not files:
        raise UserError(f"no images in {', '.join(names)}")
    return files


def _listed_files(content: bytes) -> list[str]:
    """Return the file names of a list: one a line, or with a zero byte behind each, as find -print0 writes them."""
    names = content.split(b"\0") if b"\0" in content else [line.rstrip(b"\r") for line in content.split(b"\n")]
    return [os.fsdecode(name) for name in names if name.strip()]
