"""What a detector predicts for image files: from a checkpoint and from exported files, in every form, and drawn."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from focal_twins.data.box_transforms import placed
from focal_twins.data.coco import rasterise
from focal_twins.errors import UserError
from focal_twins.models.detectors.selection import SelectionRule, select_detections
from focal_twins.pages.palette import palette
from focal_twins.tasks.detection.export_form import CANDIDATES, DETECTIONS
from focal_twins.tasks.detection.predictor import ObjectPredictor
from focal_twins.tasks.detection.preparation import ImagePreparation
from tests.label_files import save_png
from tests.tasks.detection.scenes import CLASSES, OBJECTS, SIZES

CANVASES = ((96, 128), (128, 96))
RULE = SelectionRule(len(CLASSES), False, False, 0.05, 0.5, 100)
DESCRIBED = {
    "channels": 3, "short_side": 72, "long_side": 112, "canvases": [list(canvas) for canvas in CANVASES],
    "mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 3, "class_boxes": False, "has_factor": False,
    "score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100, "clips_boxes": True, "reading": {}, "output": None,
}  # fmt: skip
COLOURS = ((200, 40, 40), (40, 200, 40))  # of the two classes, over grey
EXTENTS = ((72, 96), (108, 72), (72, 96), (72, 72))  # of the images on their canvases


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The scenes as files, in which each object is a box of its class's colour."""
    folder = tmp_path_factory.mktemp("scenes")
    for index, (size, objects) in enumerate(zip(SIZES, OBJECTS, strict=True)):
        pixels = np.full((*size, 3), 90, np.uint8)
        for x1, y1, x2, y2, label in objects:
            pixels[y1:y2, x1:x2] = COLOURS[label]
        save_png(folder / "below" / f"scene{index}.png", pixels)
    return [str(folder / "below" / f"scene{index}.png") for index in range(len(SIZES))]


def candidates_of(image):
    """Candidates [8, 7] of an image on a canvas: boxes of what has the colour of a class, with falling scores."""
    pixels = (image * 0.25 + 0.5) * 255
    found = np.zeros((8, 7), np.float32)
    number = 0
    for label, colour in enumerate(COLOURS):
        columns = np.abs(pixels - np.array(colour)[:, None, None]).max(axis=0) < 50
        for y1, y2 in runs(columns.any(axis=1)):
            for x1, x2 in runs(columns[y1:y2].any(axis=0)):
                found[number, :4], found[number, 4 + label] = (x1, y1, x2, y2), 0.9 - 0.2 * number
                number += 1
    return found


def runs(places):
    """First and end of each run of True."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], places.astype(int), [0]])))
    return zip(changes[::2], changes[1::2], strict=True)


def finder(calls):
    def find(images, extents):
        calls.append((images.shape, extents.tolist()))
        return [
            select_detections(candidates_of(image), RULE, extent)
            for image, extent in zip(images, extents.tolist(), strict=True)
        ]

    return find


def options(**given):
    return SimpleNamespace(**{"top": None, "threshold": None, "classes": None, "output": None, "overlay": None} | given)


def predictor_of(answer, chosen=None, classes=CLASSES, **changed):
    return ObjectPredictor(answer, ImagePreparation.from_dict(DESCRIBED | changed), None, classes, chosen or options())


def printed(predictor, files, form="json", batch_size=3):
    stream = io.StringIO()
    with predictor.writer(form, stream) as writer:
        for prediction in predictor.predict(files, batch_size, 2):
            writer.write(prediction)
    return json.loads(stream.getvalue()) if form == "json" else stream.getvalue()


def expected_of(index):
    """The objects of a scene in the order in which they are found: class by class, from the top."""
    return sorted(OBJECTS[index], key=lambda box: (box[4], box[1]))


def test_objects_are_found_at_the_size_of_their_images(files):
    calls = []
    found = printed(predictor_of(finder(calls)), files)
    # Three at a time: the two lying ones together, filled up to three; then the standing one; then the square one.
    assert [shape for shape, _ in calls] == [(3, 3, 96, 128), (3, 3, 128, 96), (3, 3, 96, 128)]
    assert calls[0][1] == [list(EXTENTS[0]), list(EXTENTS[2]), [96, 128]]
    assert [entry["file_name"] for entry in found] == [files[0]] * 2 + [files[1]] * 3 + [files[3]]
    assert [entry["image_id"] for entry in found] == [1, 1, 2, 2, 2, 4]
    for index in (0, 1, 3):
        entries = [entry for entry in found if entry["image_id"] == index + 1]
        for entry, (x1, y1, x2, y2, label) in zip(entries, expected_of(index), strict=True):
            assert (entry["category_id"], entry["category"]) == (label, CLASSES[label])
            assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1.5)  # a pixel of the canvas


def test_text_and_csv(files, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"no image")
    predictor = predictor_of(finder([]))
    assert printed(predictor, files[:3], "text").splitlines() == [
        f"{files[0]}: 1 cell, 1 a < b", f"{files[1]}: 2 cell, 1 a < b", f"{files[2]}: nothing"
    ]  # fmt: skip
    (row, *_) = csv.DictReader(io.StringIO(printed(predictor, [files[3]], "csv")))
    assert (row["image"], row["rank"], row["index"], row["class"], row["score"]) == (files[3], "1", "1", "a < b", "0.9")
    assert float(row["x2"]) == pytest.approx(45, abs=1.5)
    (unreadable,) = predictor.predict([str(tmp_path / "cut.png")], 1, 1)
    assert "not an image" in unreadable.problem and unreadable.found is None


def test_the_threshold_and_top_leave_the_best(files):
    assert len(printed(predictor_of(finder([]), options(threshold=0.7)), [files[1]])) == 2
    assert len(printed(predictor_of(finder([]), options(threshold=0.05)), [files[1]])) == 3
    (best,) = printed(predictor_of(finder([]), options(top=1)), [files[1]])
    assert best["score"] == pytest.approx(0.9)


def test_pictures_show_the_boxes_in_the_colours_of_their_classes(files, tmp_path):
    found = printed(predictor_of(finder([]), options(output=str(tmp_path), overlay="png")), files)
    assert json.loads((tmp_path / "detections.json").read_text()) == found
    for index, size in enumerate(SIZES):
        picture = np.asarray(Image.open(tmp_path / "overlays" / f"scene{index}.png"))
        factor = -(-400 // max(size))
        assert picture.shape == (factor * size[0], factor * size[1], 3)
        for label, colour in enumerate(palette(3)):
            painted = (picture == colour).all(axis=2)
            has_class = any(box[4] == label for box in OBJECTS[index])
            assert painted.any() == has_class
    left, *_, label = OBJECTS[3][0]
    picture = np.asarray(Image.open(tmp_path / "overlays" / "scene3.png"))  # enlarged eight times
    edge = picture[8 * 25, 8 * (left - 2) : 8 * (left + 2)]  # at half height, around the left side
    assert (edge == palette(3)[label]).all(axis=1).any()
    assert printed(predictor_of(finder([]), options(output=str(tmp_path / "no"), overlay="none")), files) == found
    assert not (tmp_path / "no" / "overlays").exists()


def test_detections_are_written_as_they_come(files, tmp_path):
    """Beside their file, which is there, whole, at the end, also where the stream takes no more."""
    path, growing = tmp_path / "detections.json", tmp_path / ".detections.json.writing"
    path.write_text("earlier")
    predictor = predictor_of(finder([]), options(output=str(tmp_path), overlay="none"))
    stream = io.StringIO()
    with pytest.raises(ValueError, match="closed"), predictor.writer("json", stream) as writer:
        for prediction in predictor.predict(files[:2], 1, 1):
            writer.write(prediction)
            assert growing.exists() and path.read_text() == "earlier"
        stream.close()
    assert [entry["image_id"] for entry in json.loads(path.read_text())] == [1, 1, 2, 2, 2]
    assert not growing.exists()


def listed(image):
    """What a file with NMS inside gives of a canvas: rows [100, 6], filled up with zeros."""
    found = select_detections(candidates_of(image), RULE, image.shape[1:])
    rows = np.zeros((100, 6), np.float32)
    rows[: len(found.scores)] = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=1)
    return rows


@pytest.mark.parametrize(("output", "answer_of"), [(CANDIDATES, candidates_of), (DETECTIONS, listed)])
def test_exported_files_find_what_the_checkpoint_finds(files, output, answer_of):
    """On one canvas, on which standing images are smaller: boxes are less exact there."""
    expected = printed(predictor_of(finder([])), files)
    exported = predictor_of(
        lambda images: np.stack([answer_of(image) for image in images]), canvases=[[96, 128]], output=output
    )
    found = printed(exported, files, batch_size=2)
    for entry, other in zip(found, expected, strict=True):
        assert {**entry, "bbox": None} == {**other, "bbox": None}
        assert entry["bbox"] == pytest.approx(other["bbox"], abs=2.5)


def test_what_a_file_finds_in_the_padding_is_left_out(files):
    def answer(images):
        rows = np.zeros((len(images), 1, 7), np.float32)
        rows[:, 0, :5] = (100, 75, 120, 90, 0.9)  # the first image takes 72 x 96 of the canvas
        return rows

    assert printed(predictor_of(answer, output=CANDIDATES), files[:1]) == []


def test_a_mask_of_a_file_lies_over_the_box_before_it_is_clipped(files):
    """The box reaches into the padding; the left quarter of it is the object, of which the image has a part."""

    def answer(images):
        rows, masks = np.zeros((len(images), 1, 6), np.float32), np.zeros((len(images), 1, 28, 28), np.float32)
        rows[:, 0] = (48, 36, 128, 96, 0.9, 1)  # the image takes 72 x 96 of the canvas
        masks[:, :, :, :7] = 1
        return rows, masks

    (found,) = printed(predictor_of(answer, canvases=[[96, 128]], output=DETECTIONS), files[:1])
    assert found["bbox"] == [40, 30, 40, 30]
    expected = np.zeros(SIZES[0], np.uint8)
    expected[30:, 40:57] = 1  # 128 - 48 is 66.7 pixels of the image
    # At the corner of the box, zeros outside of it count on both sides.
    assert np.count_nonzero(rasterise(found["segmentation"], SIZES[0]) != expected) <= 1


def test_descriptions_are_read_back():
    preparation = ImagePreparation.from_dict(DESCRIBED)
    assert ImagePreparation.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation
    with pytest.raises(UserError, match=r"lacks preprocessing\.nms_iou"):
        ImagePreparation.from_dict({key: value for key, value in DESCRIBED.items() if key != "nms_iou"})


@pytest.mark.parametrize(
    ("size", "canvases", "expected"),
    [
        ((480, 640), [(800, 1344), (1344, 800)], ((800, 1344), (800, 1067))),
        ((640, 480), [(800, 1344), (1344, 800)], ((1344, 800), (1067, 800))),
        ((640, 480), [(800, 1344)], ((800, 1344), (800, 600))),  # as large as fits
        ((640, 480), [(320, 320), (416, 320)], ((416, 320), (416, 312))),
        ((3, 4000), [(800, 1344)], ((800, 1344), (1, 1333))),
    ],
)
def test_images_stand_on_the_first_canvas_that_holds_them(size, canvases, expected):
    assert placed(size, (800, 1333), canvases) == expected


def test_a_factor_makes_scores_lower_than_the_threshold_of_the_model():
    assert predictor_of(None, options(threshold=0.01), has_factor=True).threshold == 0.01


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"threshold": 1.5}, "--threshold: must be between 0 and 1, got 1.5"),
        ({"threshold": 0.01}, "--threshold 0.01: the model gives no score below 0.05"),
        ({"overlay": "png"}, "--overlay: needs --output FOLDER"),
    ],
)
def test_flags_that_cannot_be_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        predictor_of(None, options(**flags))
