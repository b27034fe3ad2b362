"""Published figures of dense networks: configurations, the package's list and the tables in docs/models.md agree.

The table of classifiers: test_documentation.py.
"""

import re

import pytest

from focal_twins.config.load import CONFIG_ROOT
from focal_twins.measuring.published import PUBLISHED_DETECTORS, PUBLISHED_SEGMENTORS
from tests.documents import text_of
from tests.published_rows import comment_of

FOLDERS = ("segmentation", "detection")
CONFIGURATIONS = {path.stem: path for folder in FOLDERS for path in sorted(CONFIG_ROOT.glob(f"{folder}/*.yaml"))}
LISTED = PUBLISHED_SEGMENTORS | PUBLISHED_DETECTORS
SECTION = re.search(r"^## Every published result\n(.*?)^## ", text_of("docs/models.md"), re.MULTILINE | re.DOTALL)[1]
ROWS = re.findall(
    r"^\| \[(\w+)\]\(\.\./configs/(\w+)/(\w+)\.yaml\) \| ([\d.]+ M) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$",
    SECTION,
    re.MULTILINE,
)


def published(comment: str) -> str:
    """The result that a configuration's comment states, in the words of the table."""
    if "no result was published" in comment:
        return "none: our own"
    in_the_paper = re.search(r"Published ([\w ]+?): see the paper", comment)
    return f"{in_the_paper[1]}: in the paper" if in_the_paper else re.search(r"Published (.+?) \(README", comment)[1]


def test_every_configuration_has_a_row():
    assert [row[0] for row in ROWS] == list(CONFIGURATIONS)
    assert all(CONFIGURATIONS[name].parent.name == folder and name == file for name, folder, file, *_ in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_rows_say_what_configurations_and_the_list_say(row):
    name, _, _, parameters, counted, size, result, _ = row
    comment = comment_of(CONFIGURATIONS[name])
    assert result == published(comment)
    assert f"{parameters} parameters" in comment
    assert re.fullmatch(r"[\d.]+ G", counted)
    if name not in LISTED:
        assert size == "-"
        return
    entry = LISTED[name]
    stated = [float(number) for number in re.fullmatch(r"([\d.]+) M, ([\d.]+) G", size).groups()]
    assert stated == [entry.parameters, entry.multiply_accumulates]
    keys = {"mIoU": "miou", "box AP": "box_ap", "mask AP": "mask_ap"}
    for title, value in re.findall(r"(mIoU|box AP|mask AP): ([\d.]+)%", result):
        assert getattr(entry, keys[title]) == float(value)


def test_every_listed_figure_has_a_configuration():
    assert set(LISTED) <= set(CONFIGURATIONS)
