"""COCO JSON and its images: what counts for training and evaluation, and the one line that each fault gets."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from focal_twins.config.load import load_config
from focal_twins.data.coco import CocoImages, Part
from focal_twins.data.coco_file import unpack_run_lengths
from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import Reading, UnreadableImage
from focal_twins.data.mask_outlines import packed_lengths, run_lengths
from tests.coco_files import SIZES, make_coco

NAMES = [f"scene{number:02d}.png" for number in range(4)]


def opened(path: Path, **options) -> CocoImages:
    return CocoImages.open(path.with_suffix(""), path, **options)


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as error:
        opened(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def annotation(**values) -> dict:
    """One of the first image, scene00, of 48 x 64 pixels."""
    return {"id": 99, "image_id": 100, "category_id": 7, "bbox": [8, 4, 16, 20], "area": 320, "iscrowd": 0} | values


def with_annotations(*annotations: dict):
    """Replace all annotations."""
    return lambda content: content.update(annotations=list(annotations))


def box_mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZES[0], np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_samples_and_classes_are_sorted_by_names_and_ids(tmp_path):
    data = opened(make_coco(tmp_path))
    assert (data.size, data.names, data.image_ids) == (4, NAMES, [100, 101, 102, 103])
    assert (data.classes, data.category_ids) == (("cat", "owl", "dog"), [3, 7, 20])
    assert [data.image_size(index) for index in range(4)] == [(*size,) for size in data.sizes.tolist()] == list(SIZES)
    assert data.labels(2).tolist() == [0, 1, 2]
    assert data.labels(2).dtype == np.int32
    np.testing.assert_array_equal(data.pixels(1, 3), np.asarray(Image.open(tmp_path / "train/scene01.png")))


def test_boxes_are_corners_clipped_to_the_image(tmp_path):
    boxes = [[-3, 4.5, 13, 20], [50, 40, 14.25, 30], [8, 4, 16, 20]]
    data = opened(
        make_coco(tmp_path, change=with_annotations(*(annotation(id=i, bbox=b) for i, b in enumerate(boxes))))
    )
    assert data.boxes(0).tolist() == [[0, 4.5, 10, 24.5], [50, 40, 64, 48], [8, 4, 24, 24]]
    assert (data.boxes(0).dtype, data.boxes(1).shape, data.labels(1).shape) == (np.float32, (0, 4), (0,))


def test_training_leaves_out_what_the_originals_do_and_counts_it(tmp_path):
    """An image whose objects are all left out, or crowds, stays: it shows what is no object."""
    objects = [
        annotation(id=1, bbox=[60, 40, 20, 20]),
        annotation(id=2, iscrowd=1),
        annotation(id=3, image_id=101, bbox=[70, 4, 16, 20]),  # outside of 64 x 48
        annotation(id=4, image_id=101, bbox=[4, 4, 0.5, 20]),
        annotation(id=5, image_id=101, bbox=[4, 4, 8, -8]),
        annotation(id=6, image_id=101, area=0),
        annotation(id=7, image_id=101, ignore=1),
        annotation(id=8, image_id=104),
    ]
    path = make_coco(tmp_path, sizes=(*SIZES, (31, 64)), change=with_annotations(*objects))
    data = opened(path, for_training=True)
    assert data.names == NAMES[:2]
    assert data.boxes(0).tolist() == [[60, 40, 64, 48]]
    assert data.boxes(0, crowd=True).tolist() == [[8, 4, 24, 24]]
    assert len(data.boxes(1)) == 0
    assert data.notices == (
        f"COCO JSON {path}: left out 2 images without an object; left out 1 image with a side of less than 32 pixels; "
        "left out 5 objects, empty, narrower than a pixel, outside of the image, or marked to be ignored; "
        "1 crowd not trained on; 1 box clipped to the image; no object of cat, dog",
    )
    evaluated = opened(path)
    assert (evaluated.size, evaluated.notices) == (5, ())


def test_a_box_that_float32_makes_empty_does_not_count(tmp_path):
    boxes = [[64 - 1e-7, 4, 16, 20], [8, 1e-9 - 20, 16, 20], [63.5, 4, 1e300, 20]]
    objects = (annotation(id=number, bbox=bbox) for number, bbox in enumerate(boxes))
    data = opened(make_coco(tmp_path, change=with_annotations(*objects)), for_training=True)
    corners = data.boxes(0)
    assert (corners[:, 2:] > corners[:, :2]).all() and len(corners) == 2
    assert "left out 1 object, empty" in data.notices[0]


def test_ground_truth_is_every_object_as_it_is_given(tmp_path):
    objects = [
        annotation(id=0, image_id=101, bbox=[-3.5, 4, 0.25, 20], area=5.5),
        annotation(id=7, iscrowd=1),
        annotation(id=9, category_id=3),
    ]
    truth = opened(make_coco(tmp_path, change=with_annotations(*objects)), classes=("owl", "dog")).ground_truth()
    assert [image["id"] for image in truth["images"]] == [100, 101, 102, 103]
    assert truth["images"][1] == {"id": 101, "file_name": "scene01.png", "height": 64, "width": 48}
    assert truth["categories"] == [{"id": 7, "name": "owl"}, {"id": 20, "name": "dog"}]
    assert truth["annotations"] == [annotation(id=1, iscrowd=1), objects[0] | {"id": 2}]
    json.dumps(truth)


def test_area_and_crowd_may_be_missing(tmp_path):
    bare = {"id": 1, "image_id": 100, "category_id": 3, "bbox": [1, 2, 10, 20]}
    data = opened(make_coco(tmp_path, change=with_annotations(bare)))
    assert (data.ground_truth()["annotations"][0]["area"], len(data.boxes(0))) == (200, 1)


def test_masks_are_the_pixels_of_polygons_and_of_both_forms_of_run_lengths(tmp_path):
    polygons = [[8, 4, 24, 4, 24, 24, 8, 24], [40, 30, 50, 30, 50, 40, 40, 40]]
    listed, packed = box_mask(8, 4, 24, 24), box_mask(0, 0, 9, 48)
    objects = [
        annotation(id=1, segmentation=polygons),
        annotation(id=2, segmentation={"size": [48, 64], "counts": run_lengths(listed)}),
        annotation(id=3, segmentation={"size": [48, 64], "counts": packed_lengths(run_lengths(packed))}),
        annotation(id=4, iscrowd=1, segmentation={"size": [48, 64], "counts": run_lengths(packed)}),
    ]
    data = opened(make_coco(tmp_path, change=with_annotations(*objects)), with_masks=True)
    expected = [listed | box_mask(40, 30, 50, 40), listed, packed]
    assert data.masks(0).dtype == np.uint8
    np.testing.assert_array_equal(data.masks(0), expected)
    assert data.masks(1).shape == (0, 64, 48)
    assert data.ground_truth()["annotations"][2]["segmentation"] == objects[2]["segmentation"]


def test_masks_need_a_segmentation_of_every_object_that_counts(tmp_path):
    """In training neither crowds nor what is left out count; in evaluation all objects of the chosen classes do."""
    outline = [[8, 4, 24, 4, 24, 24, 8, 24]]
    objects = [
        annotation(id=5, segmentation=outline),
        annotation(id=6, iscrowd=1),
        annotation(id=7, bbox=[4, 4, 0.5, 20], segmentation=[]),
        annotation(id=8, category_id=3),
    ]
    path = make_coco(tmp_path, change=with_annotations(*objects))
    assert opened(path, classes=("owl",), for_training=True, with_masks=True).masks(0).shape == (1, 48, 64)
    remedy = "; add masks, or set model.masks=false to find boxes alone"
    message = refusal(path, for_training=True, with_masks=True)
    assert message == (f"COCO JSON {path}: 1 of 2 objects has no segmentation (the annotation with id 8){remedy}")
    message = refusal(path, classes=("owl",), with_masks=True)
    assert message == (f"COCO JSON {path}: 2 of 3 objects have no segmentation (the annotation with id 6, ...){remedy}")
    assert len(opened(path).ground_truth()["annotations"]) == 4


@pytest.mark.parametrize("lengths", [[], [32, 31], [5, 100, 3, 2000, 7, 1]])
def test_packed_run_lengths_are_unpacked(lengths):
    assert unpack_run_lengths(packed_lengths(lengths)) == lengths
    assert unpack_run_lengths(packed_lengths(lengths) + "P") is None
    assert unpack_run_lengths(packed_lengths(lengths) + "\N{EURO SIGN}") is None


def change_first(kind: str, **values):
    """Change the first entry of a list; a value of None takes the key away."""

    def change(content: dict) -> None:
        entry = content[kind][0]
        entry.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del entry[key]

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_first("images", id=100), "images share the id 100; every one needs its own"),
        (change_first("images", file_name="scene00.png"), "images share the file_name 'scene00.png'"),
        (change_first("images", width=None), "the image with id 103 has no 'width'"),
        (change_first("images", height=0), "the image with id 103 has 'height' 0, which is no number of pixels"),
        (change_first("images", id="103"), "the image with id '103' has 'id' '103', which is no whole number"),
        (change_first("categories", id=7), "categories share the id 7"),
        (change_first("categories", name="cat"), "categories share the name 'cat'"),
        (change_first("annotations", id=5), "annotations share the id 5"),
        (change_first("annotations", id=None), "the annotation number 1 of the list has no 'id'"),
        (
            change_first("annotations", image_id=9),
            "with id 0 is of image_id 9, and there is no such image",
        ),
        (change_first("annotations", category_id=9), "with id 0 is of category_id 9, and there is no such category"),
        (change_first("annotations", bbox=None), "the annotation with id 0 has no 'bbox'"),
        (change_first("annotations", bbox=[1, 2, 3]), "has 'bbox' [1, 2, 3], which is no list of four numbers"),
        (change_first("annotations", bbox=[1, 2, "3", 4]), "which is no list of four numbers"),
        (
            change_first("annotations", bbox=[1, 2, float("nan"), 4]),
            "(image scene03.png) has a bbox that is not fin",
        ),
        (change_first("annotations", bbox=[1, 2, 10**400, 4]), "(image scene03.png) has a bbox that is not finite: [1"),
        (change_first("annotations", area=float("inf")), "has 'area' inf, which is no finite number"),
        (change_first("annotations", area=-(10**400)), "which is no finite number"),
        (lambda content: content.pop("categories"), "it has no list 'categories', only 'images', 'annotations'"),
        (lambda content: content.update(images={}), "'images' is no list of objects"),
        (lambda content: content.update(categories=[]), "the list 'categories' is empty"),
    ],
)
def test_a_faulty_json_is_one_line_that_names_file_and_thing(tmp_path, change, expected):
    path = make_coco(tmp_path, change=change)
    message = refusal(path)
    assert message.startswith(f"COCO JSON {path}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[1, 2, 3, 4]], "with a polygon that is no list of three corners or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "with a polygon that is no list of three corners or more"),
        ([[1, 2, 3, 4, 5, float("nan")]], "with a polygon that is no list of three corners or more, of finite x"),
        ([[1, 2, 3, 4, 5, 10**400]], "with a polygon that is no list of three corners or more, of finite x"),
        ("mask.png", "that is neither polygons nor run lengths"),
        ({"size": [64, 48], "counts": [3072]}, "of size [64, 48], and its image is [48, 64] (height, width)"),
        ({"size": [48, 64], "counts": [100]}, "whose 100 pixels are not those of its image"),
        ({"size": [48, 64], "counts": "1"}, "whose 1 pixels are not those of its image"),
        ({"size": [48, 64], "counts": "P"}, "whose counts are no run lengths"),
    ],
)
def test_a_faulty_segmentation_is_one_line_where_masks_are_wanted(tmp_path, segmentation, expected):
    path = make_coco(tmp_path, change=with_annotations(annotation(segmentation=segmentation)))
    assert f"COCO JSON {path}: the annotation with id 99 has a segmentation {expected}" in refusal(
        path, with_masks=True
    )
    assert len(opened(path).boxes(0)) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "not JSON (Expecting property name"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "holds no object with images, annotations and categories; results of a detector are no annotations"),
        (b'{"shapes": [], "imagePath": "a.jpg"}', "it has no list 'images', only 'shapes', 'imagePath'"),
    ],
)
def test_what_is_no_coco_json_is_one_line(tmp_path, content, expected):
    path = make_coco(tmp_path)
    path.write_bytes(content)
    assert expected in refusal(path)
    path.unlink()
    assert f"COCO JSON {path}: cannot be read (No such file or directory); set data.path" in refusal(path)


def test_missing_images_are_one_line(tmp_path):
    path = make_coco(tmp_path)
    for name in NAMES[:2]:
        (tmp_path / "train" / name).unlink()
    message = refusal(path)
    assert (
        f"data folder {tmp_path / 'train'}: 2 of the 4 images of {path} are missing (scene00.png, scene01.png)"
        in message
    )
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    assert f"data folder {tmp_path / 'train'}: no such folder; set data.path" in refusal(path)


def test_images_may_be_in_folders_below(tmp_path):
    path = make_coco(tmp_path, change=change_first("images", file_name="town/scene03.png"))
    assert "1 of the 4 images" in refusal(path)
    (tmp_path / "train/town").mkdir()
    (tmp_path / "train/scene03.png").rename(tmp_path / "train/town/scene03.png")
    assert opened(path).pixels(3, 3).shape == (60, 36, 3)


def test_an_image_of_another_size_than_the_json_says_is_refused(tmp_path):
    """Those that are looked at when the data set is opened; others are unreadable images when their turn comes."""
    path = make_coco(tmp_path)
    data = opened(path)
    Image.new("RGB", (48, 48)).save(tmp_path / "train/scene00.png")
    expected = "is of 48 x 48 pixels, and the JSON says 64 x 48"
    assert f"COCO JSON {path}: the image scene00.png {expected}" in refusal(path)
    with pytest.raises(UnreadableImage, match=expected):
        data.pixels(0, 3)


@pytest.mark.parametrize(("reading", "other"), [(Reading("apply"), "ignore"), (Reading("ignore"), "apply")])
def test_an_image_on_its_side_is_as_the_json_says_or_refused(tmp_path, reading, other):
    path = make_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    stored = (64, 48) if reading.exif == "ignore" else (48, 64)
    Image.new("RGB", stored).save(tmp_path / "train/scene00.png", exif=exif)
    assert opened(path, reading=reading).pixels(0, 3).shape == (48, 64, 3)
    assert refusal(path, reading=Reading(other)).endswith(f"and the JSON says 64 x 48; try data.exif={reading.exif}")


def test_classes_may_be_chosen_by_name(tmp_path):
    path = make_coco(tmp_path)
    data = opened(path, classes=("dog", "cat"))
    assert (data.category_ids, data.labels(0).tolist()) == ([20, 3], [1, 0])
    assert data.notices == (f"COCO JSON {path}: 2 of 3 categories, without 4 objects of the others",)
    assert "has no category 'dogs'; did you mean 'dog'?" in refusal(path, classes=("cat", "dogs"))


def many(number: int) -> tuple[tuple[int, int], ...]:
    return SIZES[:1] * number


def test_a_share_is_held_back_whatever_other_images_there_are(tmp_path):
    path = make_coco(tmp_path, sizes=many(40))
    held_back, rest = (opened(path, part=Part(0.25, held_back)) for held_back in (True, False))
    assert held_back.size == 10
    assert sorted(held_back.names + rest.names) == opened(path).names
    assert f"COCO JSON {path}: 10 of 40 images are held back for validation (data.val_fraction)" in rest.notices
    larger = opened(make_coco(tmp_path, sizes=many(44)), part=Part(0.25, True))
    assert len(set(larger.names) & set(held_back.names)) >= 8
    assert opened(path, part=Part(0.25, True, seed=1)).names != held_back.names
    few = make_coco(tmp_path / "few", sizes=many(1))
    assert "data.val_fraction leaves none of 1 images to train on" in refusal(few, part=Part(0.5))


def test_a_subset_is_a_share_or_a_list_of_names(tmp_path):
    path, names = make_coco(tmp_path, sizes=many(40)), tmp_path / "names.txt"
    smaller, larger = (opened(path, part=Part(subset=share)) for share in (0.1, 0.5))
    assert (smaller.size, larger.size) == (4, 20)
    assert set(smaller.names) < set(larger.names)
    assert smaller.listing != larger.listing
    assert smaller.notices == (f"COCO JSON {path}: 4 of 40 images chosen as a subset",)
    names.write_text("scene05.png\nscene03.png\n\nscene05.png\n")
    listed = opened(path, part=Part(subset=str(names)))
    assert listed.names == ["scene03.png", "scene05.png"]
    assert listed.notices == (f"COCO JSON {path}: 2 of 40 images chosen by {names}",)
    names.write_text("scene05.png\nsun.png\n")
    assert f"list of images {names}: 1 of its 2 names (sun.png) are not among the images of {path}" in refusal(
        path, part=Part(subset=str(names))
    )


def test_a_configuration_says_which_part_is_for_what(tmp_path):
    config_path = tmp_path / "detector.yaml"
    make_coco(tmp_path, sizes=many(20))
    content = {
        "task": "detection",
        "model": {"name": "upernet", "num_classes": 3},
        "backbone": {"name": "focal_tiny_patch4_window7_224", "img_size": [64, 64], "pretrain_size": 224},
        "data": {"path": str(tmp_path), "train_images": "train", "train_annotations": "train.json",
                 "val_images": "val", "val_annotations": "val.json"},
        "augment": {"crop": False, "short_sides": [48], "long_side": 64},
        "eval": {"short_side": 48, "long_side": 64},
    }  # fmt: skip
    config_path.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=r"val.json: cannot be read"):
        CocoImages.of(load_config(config_path, []), "val")
    make_coco(tmp_path, "val", change=change_first("categories", name="bear"))
    assert CocoImages.of(load_config(config_path, []), "val").classes == ("cat", "owl", "bear")
    with pytest.raises(DataError, match="has no category 'dog'"):
        CocoImages.of(load_config(config_path, []), "val", classes=("cat", "owl", "dog"))
    fewer = ["model.num_classes=2", "data.val_fraction=0.25", "data.val_annotations=null"]
    with pytest.raises(DataError, match=r"has 3 categories, the model 2 classes; set model.num_classes=3"):
        CocoImages.of(load_config(config_path, fewer), "train")
    chosen = load_config(config_path, [*fewer, "data.classes=[owl, dog]", "data.train_subset=0.5"])
    assert CocoImages.of(chosen, "train").classes == ("owl", "dog")
    assert (CocoImages.of(chosen, "train").size, CocoImages.of(chosen, "val").size) == (8, 5)
