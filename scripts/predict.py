"""Classify images: python scripts/predict.py --checkpoint runs/NAME/checkpoints/best.ckpt IMAGE|FOLDER|- ...

The checkpoint says itself how its model is built and fed; weights without a configuration (.pth files of the original
code) need --config NAME. Exported .mindir and .onnx files are described by the JSON file beside them. A folder stands
for all images in it and below, - for file names on the standard input, one a line.

Files that cannot be read are listed on the standard error stream and left out. The exit code is 0 if any could be read.
"""

import csv
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.cli import WEIGHTS, Parser, run
from src.errors import UserError


def main(arguments: list[str]) -> None:
    parser = Parser(prog="predict.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|-")
    parser.add_argument(
        "--checkpoint", "--model", required=True, metavar="FILE", help=".ckpt, .pth, .safetensors, .mindir or .onnx"
    )
    parser.add_argument("--config", metavar="NAME", help="of weights that come without a configuration")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="configuration values")
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: EMA weights if the file has them")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line, for files without them")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to print (5)")
    parser.add_argument("--format", choices=WRITERS, default="text")
    parser.add_argument("--batch_size", type=int, default=32, help="images per call of the model (32)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that read and decode")
    parser.add_argument("--device_target", choices=("auto", "CPU", "Ascend"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = parser.parse_intermixed_args(arguments)
    for flag in ("top", "batch_size", "workers"):
        if getattr(options, flag) < 1:
            raise UserError(f"--{flag}: must be at least 1, got {getattr(options, flag)}")

    images = image_files(options.images)
    try:
        classify(options, images)
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def classify(options, images: list[str]) -> None:
    """Print predictions of image files.

    Raises:
        UserError: no such model, names that are not its classes', or no readable image.
    """
    from tqdm import tqdm

    from src.inference.exported import RUNNABLE
    from src.inference.trained import open_classifier, predict

    if Path(options.checkpoint).suffix.lower() in RUNNABLE:
        if options.config or options.set or options.weights != "auto":
            raise UserError(f"model {options.checkpoint}: has its configuration and weights fixed; leave out the flags")
        classifier = open_classifier(options.checkpoint)
    else:
        classifier = open_classifier(
            options.checkpoint,
            config_name=options.config,
            overrides=options.set,
            weights=options.weights,
            device_target=options.device_target,
        )
    names = class_names(options.classes) if options.classes else classifier.classes
    unreadable = 0
    with WRITERS[options.format](sys.stdout) as writer, tqdm(total=len(images), unit="img", disable=None) as progress:
        for prediction in predict(classifier, images, options.batch_size, options.workers):
            if prediction.probabilities is None:
                unreadable += 1
                progress.write(f"unreadable image {prediction.image} ({prediction.problem})", file=sys.stderr)
            else:
                best = prediction.top(options.top)
                if names is not None and len(names) != len(prediction.probabilities):
                    raise UserError(
                        f"--classes {options.classes}: has {len(names)} names, the model "
                        f"{len(prediction.probabilities)} classes"
                    )
                with progress.external_write_mode(sys.stdout):
                    writer.write(prediction.image, [(index, names[index] if names else None, p) for index, p in best])
            progress.update()
    if unreadable:
        print(f"{unreadable} of {len(images)} images could not be read", file=sys.stderr, flush=True)
    if unreadable == len(images):
        raise UserError("none of the images could be read")


def image_files(given: list[str]) -> list[str]:
    """The files that arguments stand for, in order; those of a folder sorted.

    Raises:
        UserError: there are none.
    """
    from src.data.image_set import is_image_name

    files = []
    for name in given:
        if name == "-":
            files += [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        elif os.path.isdir(name):
            for folder, below, entries in os.walk(name, followlinks=True):
                below[:] = sorted(entry for entry in below if entry[0] != ".")
                files += [os.path.join(folder, e) for e in sorted(entries) if e[0] != "." and is_image_name(e)]
        else:
            files.append(name)
    if not files:
        raise UserError(f"no images in {', '.join(given)}")
    return files


def class_names(path: str) -> list[str]:
    """Lines of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: cannot be read ({error})") from error


class TextWriter:
    """A line per image: its name, then classes and their probabilities."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.flush()

    def write(self, image: str, best: list[tuple[int, str | None, float]]) -> None:
        told = [f"{f'class {index}' if name is None else name} {p:.2%}" for index, name, p in best]
        self.stream.write(f"{image}: {', '.join(told)}\n")


class CsvWriter(TextWriter):
    """A row per image and class, the most probable first."""

    def __enter__(self):
        self.rows = csv.writer(self.stream, lineterminator="\n")
        self.rows.writerow(["image", "rank", "index", "class", "probability"])
        return self

    def write(self, image, best):
        for rank, (index, name, probability) in enumerate(best, 1):
            self.rows.writerow([image, rank, index, name or "", f"{probability:.6g}"])


class JsonWriter(TextWriter):
    """A list with an object per image, each on a line of its own."""

    def __enter__(self):
        self.between = "[\n"
        return self

    def write(self, image, best):
        told = [{"index": index, "class": name, "probability": probability} for index, name, probability in best]
        self.stream.write(self.between + json.dumps({"image": image, "predictions": told}, ensure_ascii=False))
        self.between = ",\n"

    def __exit__(self, *_):
        self.stream.write("[]\n" if self.between[0] == "[" else "\n]\n")
        super().__exit__()


WRITERS = {"text": TextWriter, "csv": CsvWriter, "json": JsonWriter}


if __name__ == "__main__":
    sys.exit(run(main, "predict.py"))
