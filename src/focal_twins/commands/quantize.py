"""Convert an ONNX file to float16 or 8-bit integers: %(prog)s --model X.onnx --precision int8 --calibration FOLDER

It writes X_int8.onnx, or X_float16.onnx, with its description, and says how far its outputs are from those of X.onnx.
Accuracy is measured as that of any exported file, by the command eval with --checkpoint X_int8.onnx.
"""

from pathlib import Path

import numpy as np

from focal_twins.cli import Parser
from focal_twins.errors import UserError

IMAGES = 64


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="FILE.onnx", help="an exported file, its JSON beside it")
    parser.add_argument("--precision", required=True, choices=("float16", "int8"))
    parser.add_argument(
        "--calibration",
        required=True,
        metavar="FOLDER",
        help="images like those to come, such as training images, for the ranges of int8 and to compare both files",
    )
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help=f"so many of the folder ({IMAGES})")
    parser.add_argument(
        "--output", metavar="FILE.onnx", help="default: beside the model, by its name and the precision"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
    options = parser.parse_args(arguments)
    if options.images < 1:
        raise UserError(f"--images: must be at least 1, got {options.images}")

    from focal_twins.inference.quantize import convert

    path = Path(options.model)
    target = Path(options.output or path.with_name(f"{path.stem}_{options.precision}{path.suffix}"))
    images = spread_images(options.calibration, options.images)
    difference = convert(path, options.precision, images, target)
    sizes = " to ".join(f"{file.stat().st_size / 1e6:.1f} MB" for file in (path, target))
    print(f"{path} to {target}, {sizes}; of the outputs of both: {difference}", flush=True)


def spread_images(folder: str, most: int) -> list[str]:
    """Return image files of a folder and the folders below it, evenly spread over their sorted list.

    Raises:
        UserError: there are none.
    """
    from focal_twins.data.image_files import LeftOut, list_images

    try:
        names = list_images(folder, LeftOut())
    except OSError as error:
        raise UserError(f"--calibration {folder}: cannot be listed ({error.strerror})") from error
    if not names:
        raise UserError(f"--calibration {folder}: holds no images")
    chosen = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [str(Path(folder, names[number])) for number in chosen]
