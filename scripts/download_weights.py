"""Download published weights by name: python scripts/download_weights.py twins_svt_small.in1k"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.download import main

if __name__ == "__main__":
    sys.exit(run(main, "download_weights.py"))
