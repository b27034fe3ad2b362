"""Write scikit-learn's handwritten digits as an image folder: python scripts/prepare_digits.py [--classes 0 1 2 3 4]

1,797 real 8x8 scans of 10 digits come with scikit-learn (UCI, "Optical Recognition of Handwritten Digits"),
so nothing is downloaded. They become PNG files <output>/{train,val}/<digit>/<number>.png, 80% and 20% of every digit.
With --classes, only these digits are written, split as with all ten. A folder that is already whole is left alone.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

VAL_FRACTION = 0.2
SPLIT_SEED = 0


def split_scans(targets: np.ndarray) -> tuple[list[int], list[int]]:
    """Split the scans' numbers into those to train with and those held out, in the same proportion for every digit.

    Args:
        targets: the digit of each scan, as scikit-learn lists them.
    """
    train, val = train_test_split(
        np.arange(len(targets)), test_size=VAL_FRACTION, stratify=targets, random_state=SPLIT_SEED
    )
    return train.tolist(), val.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", choices=range(10), metavar="DIGIT", help="default: all")
    parser.add_argument("--output", type=Path, help="default: data/digits, and for 5 classes data/digits5")
    options = parser.parse_args()
    classes = sorted(set(options.classes or range(10)))
    output = options.output or Path("data/digits" + (str(len(classes)) if options.classes else ""))

    digits = load_digits()
    train, val = ([i for i in part if digits.target[i] in classes] for part in split_scans(digits.target))
    images = {f"{digits.target[index]}/{index:04d}.png" for index in [*train, *val]}
    if {"/".join(path.parts[-2:]) for path in output.glob("*/*/*.png")} == images:
        print(f"{output}: {len(train)} training and {len(val)} validation images are there already")
        return
    if output.exists() and not {path.name for path in output.iterdir()} <= {"train", "val"}:
        parser.error(f"{output} holds something else; name another folder with --output")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, members in (("train", train), ("val", val)):
        for index in members:
            folder = partial / split / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            # Grey levels are 0 (empty) to 16 (ink).
            grey = np.clip(digits.images[index] * 16, 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / f"{index:04d}.png")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    print(f"{output}: wrote {len(train)} training and {len(val)} validation images of {len(classes)} classes")


if __name__ == "__main__":
    main()
