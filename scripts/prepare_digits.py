"""Write scikit-learn's handwritten digits as an image folder: python scripts/prepare_digits.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.prepare_digits import main

if __name__ == "__main__":
    sys.exit(run(main, "prepare_digits.py"))
