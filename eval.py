"""Evaluate a checkpoint or an exported file: python eval.py --config X [--checkpoint C]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.eval import main

if __name__ == "__main__":
    sys.exit(run(main, "eval.py"))
