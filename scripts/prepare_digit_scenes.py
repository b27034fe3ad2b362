"""Write scenes of handwritten digits for segmentation and detection: python scripts/prepare_digit_scenes.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.prepare_digit_scenes import main

if __name__ == "__main__":
    sys.exit(run(main, "prepare_digit_scenes.py"))
