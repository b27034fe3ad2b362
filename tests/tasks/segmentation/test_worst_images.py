"""The worst images of an evaluation: kept small, brought together from ranks, shown in the report."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.pages.palette import hexadecimal
from focal_twins.tasks.evaluation_file import write_evaluation
from focal_twins.tasks.segmentation.evaluation_report import report
from focal_twins.tasks.segmentation.metrics import PixelCounts, confusion_matrix
from focal_twins.tasks.segmentation.run_sections import read_evaluation, sections
from focal_twins.tasks.segmentation.worst_images import KEPT, LONG_SIDE, WorstImages, picture_names, reduced
from tests.label_files import save_png
from tests.report_pages import Page

CLASSES = ("sky", "a < b", "sand", "never")


def wrong_by(share, size=(30, 40)):
    """A label of two classes and one ignored row, and a prediction that takes a share of the columns for the third."""
    label = np.zeros(size, np.uint8)
    label[size[0] // 2 :], label[0] = 1, 255
    predicted = label.astype(np.int32)
    predicted[0] = 0
    predicted[:, : round(share * size[1])] = 2
    return label, predicted


class TwoRanks:
    """Stands for two ranks of which the other has sent some bytes."""

    size = 2

    def __init__(self, others):
        self.others = others

    def gather(self, array):
        return [array, *self.others]


def worst_of(indices):
    worst = WorstImages(4, 255)
    for index in indices:
        share = (index * 7 % 20) / 20
        worst.add(index, 1 - share, *wrong_by(share))
    return worst


def test_the_worst_of_all_ranks_are_kept():
    everything = worst_of(range(20))
    assert len(everything.images) == KEPT
    assert [image.iou for image in everything.images] == sorted(1 - number / 20 for number in range(20))[:KEPT]
    ranks = [worst_of(range(rank, 20, 2)) for rank in range(2)]
    sent = []
    ranks[1].gather(SimpleNamespace(size=2, gather=sent.append))  # not the main rank: nothing comes back
    assert ranks[1].images == []
    ranks[0].gather(TwoRanks(sent))
    assert [image.index for image in ranks[0].images] == [image.index for image in everything.images]
    assert ranks[0].pictures() == everything.pictures()
    everything.gather(Dist())
    assert len(everything.images) == KEPT


def test_pictures_are_small_and_hold_classes():
    label, predicted = wrong_by(0.5, (700, 1000))
    worst = WorstImages(4, 255)
    worst.add(3, 0.5, label, predicted)
    files = worst.pictures()
    assert tuple(files) == picture_names(3)
    label_map, predicted_map = (np.asarray(Image.open(io.BytesIO(files[name]))) for name in picture_names(3))
    assert label_map.shape == predicted_map.shape == (224, LONG_SIDE)
    np.testing.assert_array_equal(label_map[1:, 0], [0] * 111 + [1] * 112)
    assert set(np.unique(predicted_map[:, :159])) == {2}
    assert reduced(label[:, :1]).shape == (LONG_SIDE, 1)


@pytest.fixture
def run(tmp_path):
    """A folder with an evaluation of three images, and the images: (evaluation.json, configuration's data section)."""
    names = ["first.png", "below/second.png", "third.png"]
    confusion, counts, iou = np.zeros((4, 5), np.int64), np.zeros((3, 2), np.int64), np.zeros(3)
    worst = WorstImages(4, 255)
    for index, share in enumerate((0.25, 0.75, 0)):
        label, predicted = wrong_by(share)
        save_png(tmp_path / "data" / "images" / "val" / names[index], np.full((60, 80, 3), 90, np.uint8))
        own = confusion_matrix(label, predicted, 4, 255)
        pixels = PixelCounts(own)
        confusion, counts[index], iou[index] = confusion + own, (pixels.pixels, pixels.correct.sum()), pixels.miou
        worst.add(index, iou[index], label, predicted)
    (tmp_path / "data" / "images" / "val" / names[0]).unlink()
    config = SimpleNamespace(name="x", eval=SimpleNamespace(resize=None, scales=[1.0], flip=False))
    data = SimpleNamespace(path="val", classes=CLASSES, name=names.__getitem__)
    content = {"checkpoint": "best.ckpt", "weights": "raw", "epoch": 4}
    content |= report(PixelCounts(confusion), counts, iou, config, "whole", data)
    arrays = {"confusion": confusion[:, :-1], "image_counts": counts, "image_iou": iou}
    write_evaluation(tmp_path / "evaluation.json", content, arrays, worst.pictures())
    section = {"path": "data", "images": "images", "val": "val"}
    return tmp_path / "evaluation.json", section


def page_of(path, section, data=None):
    content = read_evaluation(path, json.loads(path.read_text()))
    return "".join(part.content for part in sections(content, {"data": section}, data, [path.parent]))


def test_the_report_shows_classes_confusions_and_images(run):
    path, section = run
    text = page_of(path, section)
    page = Page(text)
    classes = page.tables["classes"][1:]
    # 29 rows of 40 columns count; of three images, 10, 30 and no columns are taken for sand.
    assert [row[0] for row in classes] == ["sand", "sky", "a < b"]
    assert [row[2] for row in classes] == [0.0, pytest.approx(200 / 3), pytest.approx(200 / 3)]
    assert page.tables["confused"][1:] == [
        ["a < b", "sand", 15 * 40.0, "", pytest.approx(100 / 3)],
        ["sky", "sand", 14 * 40.0, "", pytest.approx(100 / 3)],
    ]
    assert "1 class is neither in the labels nor in the predictions: never" in text
    order = [text.index(f"<b>{name}</b>") for name in ("below/second.png", "first.png", "third.png")]
    assert order == sorted(order)
    assert len(page.images) == 3 * 4 - 1 and "image not found" in text
    assert all(hexadecimal(index) in text for index in range(3)) and hexadecimal(3) not in text


def test_images_that_moved_are_found_where_they_are(run):
    path, section = run
    moved = path.parent / "moved"
    (path.parent / "data" / "images" / "val").rename(moved)
    assert page_of(path, section).count("image not found") == 3
    assert page_of(path, section, moved).count("image not found") == 1
    with pytest.raises(UserError, match="nowhere: no such folder"):
        page_of(path, section, path.parent / "nowhere")


def test_damaged_or_missing_pictures_leave_the_rest(run):
    path, section = run
    pictures = path.with_name("evaluation_pictures.zip")
    whole = pictures.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        pictures.write_bytes(content)
        assert "pictures of this evaluation are not beside" in page_of(path, section)
    pictures.unlink()
    assert "sky" in page_of(path, section)


def test_an_evaluation_of_another_version_is_named(run):
    path, _ = run
    content = json.loads(path.read_text())
    del content["worst_images"][0]["miou"]
    with pytest.raises(UserError, match="entry 1 of worst_images lacks miou"):
        read_evaluation(path, content)


def test_without_an_evaluation_the_report_says_so():
    assert "No whole epoch was evaluated yet" in sections(None, {}, None, [])[0].content
