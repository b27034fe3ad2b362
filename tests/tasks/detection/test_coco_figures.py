"""COCO's figures against those of pycocotools' own summary, and what it matched with what."""

import numpy as np
import pytest

from focal_twins.tasks.detection.coco_figures import BOXES, MASKS, evaluate_coco
from tests.reference import figures

TRACKED = (100, 300, 1000)  # numbers of detections that the originals evaluate with


@pytest.fixture(scope="module")
def stored():
    return figures("dense/coco_map")


@pytest.mark.parametrize("kind", [BOXES, MASKS])
def test_the_figures_are_the_originals(stored, kind, capsys):
    results = stored["results"]
    computed = evaluate_coco(stored["ground_truth"], results, kind, max_detections=TRACKED)
    np.testing.assert_allclose(computed.stats, stored["stats"][kind], atol=1e-6)
    np.testing.assert_allclose(computed.class_ap[:, 0], stored["stats"][f"{kind}_per_category"], atol=1e-6)
    assert capsys.readouterr().out == ""
    again = evaluate_coco(stored["ground_truth"], results, kind)  # nothing of the first is left in what was given
    np.testing.assert_allclose(again.stats[:6], stored["stats"][kind][:6], atol=1e-6)
    assert again.stats[6] < again.stats[7] <= again.stats[8]
