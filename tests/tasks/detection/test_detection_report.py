"""The sections of a report about what a detector finds, misses and invents."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from focal_twins.errors import UserError
from focal_twins.tasks.detection.run_sections import CURVES, read_evaluation, sections
from focal_twins.tasks.detection.worst_pictures import RIGHT, WRONG
from focal_twins.tasks.evaluation_file import write_evaluation
from focal_twins.tasks.task import evaluate
from tests.label_files import save_png
from tests.report_pages import Page
from tests.tasks.detection.scenes import SIZES, Scenes
from tests.tasks.detection.test_detection_evaluator import Network, batch_of, evaluator


@pytest.fixture(params=[False, True], ids=["boxes", "masks"])
def run(request, tmp_path):
    """A folder with an evaluation, and all images but the last: (evaluation.json, the data section)."""
    scenes = Scenes()
    for index, size in enumerate(SIZES[:-1]):
        save_png(tmp_path / "data" / "val" / scenes.name(index), np.full((*size, 3), 90, np.uint8))
    result = evaluate(Network(request.param), [batch_of([0, 1, 2, 3])], evaluator(masks=request.param))
    content = {"checkpoint": "best.ckpt", "weights": "ema", "epoch": 4} | result.content()
    path = tmp_path / "evaluation.json"
    write_evaluation(path, content, result.arrays(), result.pictures(), result.files())
    return path, {"path": "data", "val_images": "val"}


def page_of(path, section, data=None):
    content = read_evaluation(path, json.loads(path.read_text()))
    parts = sections(content, {"data": section}, data, [path.parent])
    assert [part.title for part in parts] == ["Classes", "Sizes", "Precision and recall", "Worst images"]
    return "".join(part.content for part in parts)


def test_the_report_shows_classes_sizes_curves_and_images(run):
    path, section = run
    content = json.loads(path.read_text())
    text = page_of(path, section)
    page = Page(text)
    has_masks = "mask_ap" in content
    _, other, _ = content["classes"]
    kinds = ["box", "mask"] if has_masks else ["box"]
    assert [row[0] for row in page.tables["classes"][1:]] == ["a < b", "cell"]
    figures = [other[f"{kind}_{name}"] for kind in kinds for name in ("ap", "ap50", "ap75", "ar_100")]
    assert page.tables["classes"][1][2:] == [*figures, 3, 1, 0]
    assert page.tables["sizes"][1][-2:] == [2, 1] and page.tables["sizes"][3][2] == "-"
    assert "1 class has no object: never." in text
    assert "4 of the objects are found, and 2 detections have no object of their own" in text
    titles = ["all classes", "each class, at an IoU of 0.5"]
    if has_masks:
        titles = [f"{kind}: {title}" for kind in ("Boxes", "Masks") for title in titles]
    assert list(page.charts) == titles
    overall, by_class = (page.charts[title]["series"] for title in titles[:2])
    assert overall[0]["name"] == "IoU 0.50" and overall[0]["y"] == content["box_precision"][0]
    assert [series["name"] for series in by_class] == ["a < b", "cell"]  # the lowest AP50 first
    assert by_class[1]["y"] == content["box_class_precision"][0]
    order = [text.index(f"<b>scene{number}.png</b>") for number in (3, 2, 1)]
    assert order == sorted(order)
    assert len(page.images) == 2 * 3 and text.count("image not found") == 1
    assert "0 found, 1 missed, 1 invented" in text


def pixels_of(image):
    content = base64.b64decode(image["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def share_of(pixels, colour):
    """JPEG blurs colours."""
    return (np.abs(pixels - colour).max(axis=2) < 60).mean()


def test_mistakes_are_red_and_the_rest_is_blue(run):
    """Image 3 has a missed object and an invented one; in image 1 two of three objects are found."""
    page = Page(page_of(*run))
    missed, invented, nothing, alone, objects, found = map(pixels_of, page.images)
    for picture in (missed, invented, alone):
        assert share_of(picture, WRONG) > 0.01 and share_of(picture, RIGHT) == 0
    assert share_of(nothing, WRONG) == share_of(nothing, RIGHT) == 0
    assert share_of(objects, WRONG) > 0.001 and share_of(objects, RIGHT) > 0.01
    assert share_of(found, WRONG) == 0 and share_of(found, RIGHT) > 0.01


def test_images_that_moved_are_found_where_they_are(run):
    path, section = run
    moved = path.parent / "moved"
    (path.parent / "data" / "val").rename(moved)
    assert page_of(path, section).count("image not found") == 3
    assert page_of(path, section, moved).count("image not found") == 1
    with pytest.raises(UserError, match="nowhere: no such folder"):
        page_of(path, section, path.parent / "nowhere")


def test_an_evaluation_of_another_version_is_named(run):
    path, _ = run
    content = json.loads(path.read_text())
    del content["worst_images"][0]["objects"][0]["found"]
    with pytest.raises(UserError, match="entry 1 of worst_images: one of its objects lacks found"):
        read_evaluation(path, content)
    content = json.loads(path.read_text())
    content["box_precision"] = content["box_precision"][:9]
    with pytest.raises(UserError, match=r"box_precision has \[9, 101\] values"):
        read_evaluation(path, content)


def test_of_many_classes_those_with_the_lowest_ap_have_curves(run):
    path, section = run
    content = json.loads(path.read_text())
    kinds = [key.removesuffix("_ap50") for key in content["classes"][0] if key.endswith("_ap50")]
    entry = content["classes"][0]
    content["classes"] = [entry | {"name": f"class {n}"} | {f"{k}_ap50": 100 - n for k in kinds} for n in range(12)]
    for kind in kinds:
        content[f"{kind}_class_precision"] = [content[f"{kind}_class_precision"][0]] * 12
    path.write_text(json.dumps(content))
    chart = next(
        chart for title, chart in Page(page_of(path, section)).charts.items() if "8 classes with the lowest" in title
    )
    assert [series["name"] for series in chart["series"]] == [f"class {n}" for n in range(11, 11 - CURVES, -1)]


def test_without_an_evaluation_the_report_says_so():
    assert "No whole epoch was evaluated yet" in sections(None, {}, None, [])[0].content
