"""Export a checkpoint: python export.py --config X --checkpoint C --format MINDIR --output model.mindir"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.export import main

if __name__ == "__main__":
    sys.exit(run(main, "export.py"))
