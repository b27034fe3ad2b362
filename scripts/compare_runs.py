"""Compare runs: python scripts/compare_runs.py runs/A runs/B ... [--output compare.html]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.compare import main

if __name__ == "__main__":
    sys.exit(run(main, "compare_runs.py"))
