"""Convert weights: python scripts/convert_weights.py --input x.pth --model NAME --output x.ckpt"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.convert import main

if __name__ == "__main__":
    sys.exit(run(main, "convert_weights.py"))
