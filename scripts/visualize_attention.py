"""Draw what a layer attends to: python scripts/visualize_attention.py --checkpoint C IMAGE --output FOLDER"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.attention import main

if __name__ == "__main__":
    sys.exit(run(main, "visualize_attention.py"))
