"""Numbers in messages: one image, two images."""

import re

import pytest

from focal_twins.phrases import counted
from tests.conftest import PACKAGE, ROOT

NOUNS = "images|epochs|updates|samples|files|objects|pixels|names|entries|evaluations|folders|labels|categories|keys"
COUNTS_MANY = ("prepare_digits.py", "run_summary.py")  # 1,797 digits, and what was trained and evaluated on them


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, "image"), "1 image"),
        ((0, "image"), "0 images"),
        ((1797, "unreadable image", ","), "1,797 unreadable images"),
        ((2, "class"), "2 classes"),
        ((3, "box"), "3 boxes"),
        ((2, "batch"), "2 batches"),
        ((2, "category"), "2 categories"),
        ((2, "key"), "2 keys"),
        ((0.5, "epoch", "g"), "0.5 epochs"),
        ((1.0, "epoch", "g"), "1 epoch"),
    ],
)
def test_a_noun_follows_its_number(arguments, expected):
    assert counted(*arguments) == expected


def test_lines_that_end_with_a_count_use_it():
    """A number with a plural in brackets, or at the end of a text, can be 1."""
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        if path.name in COUNTS_MANY:
            continue
        found = re.findall(rf"""\{{[^{{}}]*\}} (?:{NOUNS})(?:\)|"$)""", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not found, f"{path}: {found}"
