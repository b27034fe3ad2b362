"""Pack images into MindRecord files: python scripts/make_mindrecord.py data/imagenet train val --output data/packed"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.pack import main

if __name__ == "__main__":
    sys.exit(run(main, "make_mindrecord.py"))
