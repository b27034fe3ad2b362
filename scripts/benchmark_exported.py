"""Run an exported file here, for benchmark.py --exported, which starts this as a process of its own for each file."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ.setdefault("GLOG_v", "4")  # before MindSpore is imported

import numpy as np

from focal_twins.inference.exported import load_runner
from focal_twins.measuring.turns import serve


def prepare(options) -> dict:
    """Load the file; return the functions that benchmark.py calls, by name."""
    threads = len(os.sched_getaffinity(0))
    answer = load_runner(Path(options.file), threads)
    images = np.random.default_rng(0).standard_normal(options.images, dtype=np.float32)

    def step() -> None:
        answer(images)

    return {"step": step, "threads": lambda: threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", required=True)
    parser.add_argument("--images", required=True, type=int, nargs=4, help="batch size, channels, height, width")
    options = parser.parse_args()
    serve(lambda: prepare(options))


if __name__ == "__main__":
    main()
