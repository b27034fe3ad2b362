"""Make the report of a run from its files, at any time: python scripts/report.py runs/NAME"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.report import main

if __name__ == "__main__":
    sys.exit(run(main, "report.py"))
