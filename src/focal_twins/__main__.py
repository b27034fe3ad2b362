"""The program `focal-twins`, also `python -m focal_twins`: runs one of the commands."""

import sys
from importlib import import_module

from focal_twins import __version__
from focal_twins.cli import run
from focal_twins.config.suggestions import nearest
from focal_twins.errors import UserError

PROGRAM = "focal-twins"
COMMANDS = {  # name, which is the module's with hyphens, and purpose
    "train": "train a model",
    "eval": "evaluate a checkpoint or an exported file",
    "export": "export a checkpoint to MINDIR, ONNX or AIR",
    "predict": "predict for images",
    "quantize": "convert an exported ONNX file to float16 or 8-bit integers",
    "report": "make the report of a run",
    "compare": "compare runs",
    "convert": "convert weights from one file format to another",
    "download": "download published weights by name",
    "attention": "draw what a layer attends to in an image",
    "pack": "pack images into MindRecord files",
    "prepare-digits": "write handwritten digits as an image folder",
    "prepare-digit-scenes": "write scenes of digits for segmentation and detection",
}
USAGE = f"""usage: {PROGRAM} COMMAND ...

{chr(10).join(f"  {name:22}{purpose}" for name, purpose in COMMANDS.items())}

{PROGRAM} COMMAND --help lists the flags of a command; {PROGRAM} --version prints the version."""


def main() -> int:
    """Run the command that the command line names; return its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        # Parsers take their names from here, and runs record how they were called.
        sys.argv = [f"{PROGRAM} {name}", *sys.argv[2:]]
        return run(import_module(f"focal_twins.commands.{name.replace('-', '_')}").main, sys.argv[0])
    return run(_usage, PROGRAM)


def _usage(arguments: list[str]) -> None:
    """Print the usage or the version.

    Raises:
        UserError: there is no such command.
    """
    if arguments[:1] == ["--version"]:
        print(f"{PROGRAM} {__version__}")
    elif arguments[:1] in ([], ["--help"], ["-h"]):
        print(USAGE)
    else:
        raise UserError(f"unknown command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}")


if __name__ == "__main__":
    sys.exit(main())
