"""Writes scikit-learn's handwritten digits as an image folder.

1,797 real 8x8 scans of 10 digits come with scikit-learn (UCI, "Optical Recognition of Handwritten Digits"), so nothing
is downloaded.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from focal_twins.errors import UserError

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


def write_digits(output: Path, classes: Sequence[int]) -> tuple[int, int, bool]:
    """Write PNG files <output>/{train,val}/<digit>/<number>.png, 80% and 20% of every digit.

    Every digit is split as with all ten. A folder that is already whole is left alone.

    Returns:
        The number of training and of validation images, and whether they were written now.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    digits = load_digits()
    train, val = ([i for i in part if digits.target[i] in classes] for part in split_scans(digits.target))
    images = {f"{digits.target[index]}/{index:04d}.png" for index in [*train, *val]}
    if {"/".join(path.parts[-2:]) for path in output.glob("*/*/*.png")} == images:
        return len(train), len(val), False
    if output.exists() and not {path.name for path in output.iterdir()} <= {"train", "val"}:
        raise UserError(f"{output} holds something else; name another folder with --output")
    partial = output.with_name(output.name + ".partial")
    try:
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
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    return len(train), len(val), True
