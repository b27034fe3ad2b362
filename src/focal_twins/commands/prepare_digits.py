"""Write scikit-learn's handwritten digits as an image folder: %(prog)s [--classes 0 1 2 3 4]

They become PNG files <output>/{train,val}/<digit>/<number>.png, 80% and 20% of every digit. Nothing is downloaded. With
--classes, only these digits are written, split as with all ten. A folder that is already whole is left alone.
"""

from pathlib import Path

from focal_twins.cli import Parser
from focal_twins.data.digits import write_digits


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--classes", type=int, nargs="+", choices=range(10), metavar="DIGIT", help="default: all")
    parser.add_argument("--output", type=Path, help="default: data/digits, and for 5 classes data/digits5")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)

    classes = sorted(set(options.classes or range(10)))
    output = options.output or Path("data/digits" + (str(len(classes)) if options.classes else ""))
    train, val, are_new = write_digits(output, classes)
    if are_new:
        print(f"{output}: wrote {train} training and {val} validation images of {len(classes)} classes")
    else:
        print(f"{output}: {train} training and {val} validation images are there already")
