"""A figure that stands in several documents is the same in all of them."""

import re

import pytest

from tests.documents import cells_of, text_of

PLACES = {  # each figure with the documents that state it, and with how they do; translations: test_documentation.py
    "quickstart: seconds of training": [
        ("README.md", r"28 epochs in (\d+) s, compilation included"),
        ("configs/quickstart/focalv2_digits.yaml", r"in (\d+) s on two quiet cores"),
    ],
    "quickstart: top-1 of the best averaged weights": [
        ("README.md", r"ema weights top-1 ([\d.]+%)"),
        ("README.md", r"\| ([\d.]+%) top-1 \|"),
        ("configs/quickstart/focalv2_digits.yaml", r"Expect ([\d.]+%) top-1"),
    ],
    "fine-tuning: top-1": [
        ("docs/tutorial.md", r"5/5 raw top-1 ([\d.]+%)"),
        ("docs/tutorial.md", r"best raw top-1 ([\d.]+%)"),
        ("docs/training.md", r"five epochs it classifies ([\d.]+%)"),
        ("configs/finetune/focalv2_digits5_64.yaml", r"Expect ([\d.]+%) top-1"),
    ],
    "fine-tuning: seconds": [
        ("docs/tutorial.md", r"the same training takes (\d+) s"),
        ("docs/training.md", r"That takes (\d+) s on two quiet cores"),
        ("configs/finetune/focalv2_digits5_64.yaml", r"in (\d+) s on two quiet CPU cores"),
    ],
    "segmentation: mIoU": [
        ("README.md", r"\| ([\d.]+%) mIoU \|"),
        ("docs/segmentation.md", r"averaged weights have ([\d.]+%) mIoU"),
        ("configs/quickstart/upernet_digits.yaml", r"([\d.]+%) mIoU on held-out scans"),
    ],
    "detection: box AP": [
        ("README.md", r"\| ([\d.]+%) box AP \|"),
        ("docs/detection.md", r"averaged weights have ([\d.]+%) box AP"),
        ("configs/quickstart/retinanet_digits.yaml", r"([\d.]+%) box AP"),
    ],
    "detection: AP50": [
        ("docs/detection.md", r"and ([\d.]+%) AP50 on held-out scans"),
        ("configs/quickstart/retinanet_digits.yaml", r"([\d.]+%) AP50"),
    ],
    "detection: minutes": [
        ("docs/detection.md", r"The run takes ([\d.]+) minutes on one core"),
        ("configs/quickstart/retinanet_digits.yaml", r"([\d.]+) minutes on one core"),
    ],
    "images a second that a core prepares": [
        ("docs/data.md", r"One core prepares about ([\d,]+) images a second"),
        ("docs/data.md", r"needs R / ([\d,]+) cores"),
        ("docs/distributed.md", r"about ([\d,]+) images a second for each core"),
    ],
    "images a second that train on a CPU": [
        ("docs/performance.md", r"\| focalv2_tiny_useconv\w* \| training \| ([\d.]+) \| [\d.]+ \| \*\*"),
        ("docs/tutorial.md", r"this network at ([\d.]+) images a second"),
    ],
    "keys of a query": [
        ("docs/models.md", r"each query sees (\d+) keys"),
        ("docs/questions.md", r"attends to (\d+) keys"),
        ("docs/questions.md", r"there (\d+) keys, while"),
    ],
}
RANGES = {  # what is said of the table of docs/performance.md: the models, the steps and the column of the ratios
    r"Focal Transformer runs at": ("focal", "inference", 4),
    r"Focal Transformer runs at .{,90}? and at": ("focal", "training", 4),
    r"Twins runs at": ("twins", "inference", 4),
    r"Twins runs at .{,90}? and at": ("twins", "training", 4),
    r"training step takes": ("", "training", 9),
}


@pytest.mark.parametrize("figure", PLACES)
def test_figure_is_the_same_everywhere(figure):
    found = {}
    for document, pattern in PLACES[figure]:
        matches = re.findall(pattern, " ".join(text_of(document).split()))
        assert matches, f"{document} does not state {figure} as {pattern}"
        found.setdefault(document, set()).update(matches)
    assert len(set.union(*found.values())) == 1, f"{figure}: {found}"


@pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
def test_ranges_of_speed_and_memory_are_those_of_the_table(document):
    """The smallest and the largest ratio to the originals."""
    table = text_of("docs/performance.md").split("## Against the original code")[1].split("\n#")[0]
    cells = [[cell.strip("* ") for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    rows = [row for row in cells if len(row) == 10 and row[1] in ("inference", "training")]
    for said, (family, step, column) in RANGES.items():
        ratios = [float(row[column]) for row in rows if row[0].startswith(family) and row[1].endswith(step)]
        least, most = re.search(said + r" ([\d.]+) to ([\d.]+) times", " ".join(text_of(document).split())).groups()
        assert (float(least), float(most)) == (min(ratios), max(ratios)), f"{document}: {said}"


def test_quickstarts_of_detection_have_the_figures_of_their_configurations():
    rows = [row for row in cells_of("docs/detection.md") if row[0].endswith("_digits`")]
    assert len(rows) >= 4
    for name, _, box_ap, box_ap50, *_ in rows:
        header = text_of(f"configs/quickstart/{name.strip('`')}.yaml")
        stated = re.search(r"epochs: ([\d.]+%) box AP, ([\d.]+%) (?:box )?AP50", header)
        assert stated is not None, f"the header of {name} does not state its figures"
        assert stated.groups() == (box_ap, box_ap50), name
