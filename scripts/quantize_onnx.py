"""Convert an ONNX file: python scripts/quantize_onnx.py --model X.onnx --precision int8 --calibration FOLDER"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import run
from focal_twins.commands.quantize import main

if __name__ == "__main__":
    sys.exit(run(main, "quantize_onnx.py"))
