"""Predict for images: python scripts/predict.py --checkpoint runs/NAME/checkpoints/best.ckpt IMAGE|FOLDER|- ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.predict import main

if __name__ == "__main__":
    sys.exit(run(main, "predict.py"))
