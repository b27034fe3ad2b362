"""Train a model: python train.py --config configs/quickstart/focalv2_digits.yaml [section.key=value ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.train import main

if __name__ == "__main__":
    sys.exit(run(main, "train.py"))
