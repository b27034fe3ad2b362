"""Class maps and valid labels: what they mean, and one line for each way to get them wrong."""

import json

import numpy as np
import pytest

from focal_twins.data.dataset import DataError
from focal_twins.tasks.classification.label_maps import LabelSpace, read_class_map, read_valid_labels

FOLDERS = ("0", "1", "10", "2")  # sorted as texts, which is not the order of the numbers


@pytest.fixture
def file(tmp_path):
    """file(content) writes a text, or anything else as JSON."""

    def write(content):
        path = tmp_path / "labels.txt"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


NAMES = ("ant", "bee", "cat", "dog")
MAPS = {
    "indices": ({"0": 0, "1": 1, "2": 2, "10": 3}, None),
    "names": ({"0": "ant", "1": "bee", "2": "cat", "10": "dog"}, NAMES),
    "lines": ("0 0\n1  1\n\n 2\t2 \n10 3\n", None),
}


@pytest.mark.parametrize(("content", "names"), MAPS.values(), ids=MAPS.keys())
def test_numbered_folders_mean_their_numbers(file, content, names):
    space = read_class_map(file(content), FOLDERS, 4, names)
    assert space.labels.tolist() == [0, 1, 3, 2]
    assert space.outputs.tolist() == [0, 1, 2, 3]
    assert space.names == (names or ("0", "1", "2", "10"))
    assert not space.restricts
    logits = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(space.select(logits), logits)


def test_a_part_of_the_classes_restricts_predictions(file):
    """To the classes of the map: "plum tree", which has no folder, stays a possible answer."""
    space = read_class_map(file("fig 7\nplum tree 0\napple 5\n"), ("apple", "fig"), 9, None)
    assert space.outputs.tolist() == [0, 5, 7]
    assert space.names == ("plum tree", "apple", "fig")
    assert space.labels.tolist() == [1, 2]
    assert space.restricts
    assert space.select(np.arange(9.0)[None]).tolist() == [[0, 5, 7]]


def test_folders_called_like_classes_are_a_subset():
    space = LabelSpace.of_names(("cat", "dog"), ("ant", "bee", "cat", "cow", "dog"))
    assert (space.outputs.tolist(), space.labels.tolist(), space.restricts) == ([2, 4], [0, 1], True)
    assert space.names == ("cat", "dog")


WRONG_MAPS = {
    "not JSON": ("{", None, "not valid JSON"),
    "a list": ([1], None, "must be an object {folder: class}, or lines"),
    "no number": ("0 zero\n", None, "line 1: expected a folder and a class index, got '0 zero'"),
    "one word": ("0 0\n1\n", None, "line 2: expected a folder and a class index, got '1'"),
    "missing folder": ({"0": 0, "1": 1, "2": 2}, None, "has no entry for the folder '10'"),
    "out of range": ({"0": 0, "1": 4}, None, "folder '1': 4 is not an index from 0 to 3$"),
    "negative": ({"0": -1}, None, "folder '0': -1 is not an index"),
    "no class": ({"0": True}, None, "folder '0': True is not an index"),
    "fraction": ({"0": 1.0}, None, "folder '0': 1.0 is not an index"),
    "unknown name": ({"0": "eel"}, NAMES, "'eel' is not an index from 0 to 3 or a class of the checkpoint"),
    "names unknown": ({"0": "ant"}, None, "the checkpoint knows no class names such as 'ant'; give indices"),
    "shared class": ({"0": 0, "1": "ant"}, NAMES, "folders '0' and '1' have the same class 'ant'"),
    "shared index": ("0 3\n1 3\n", None, "folders '0' and '1' have the same class 3"),
    "twice in JSON": ('{"0": 0, "0": 1}', None, "'0' appears twice"),
    "twice in lines": ("0 0\n0 1\n", None, "'0' appears twice"),
}


@pytest.mark.parametrize(("content", "names", "expected"), WRONG_MAPS.values(), ids=WRONG_MAPS.keys())
def test_wrong_maps_are_one_line(file, content, names, expected):
    with pytest.raises(DataError, match=expected) as error:
        read_class_map(file(content), FOLDERS, 4, names)
    assert str(error.value).startswith("class map ")
    assert "labels.txt: " in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    for name, expected in (
        ("none", "No such file"),
        (".", "Is a directory"),
        ("image", "is UTF-16; convert it"),
    ):
        for read in (lambda path: read_class_map(path, (), 1, None), lambda path: read_valid_labels(path, (), 1)):
            with pytest.raises(DataError, match=expected):
                read(tmp_path / name)


IMAGES = ["a/ILSVRC2012_val_00000003.JPEG", "b/ILSVRC2012_val_00000001.JPEG", "b/ILSVRC2012_val_00000010_n01440764.jpg"]


def test_a_list_goes_by_the_numbers_of_the_files(file):
    content = [[0], [1], [2, 3], [], [], [], [], [], [], []]
    assert read_valid_labels(file(content), IMAGES, 4) == [{2, 3}, {0}, set()]


def test_an_object_goes_by_the_names_of_the_files(file):
    content = {"ILSVRC2012_val_00000003.JPEG": [1], "b/x.png": [], "x.png": [3], "unused.png": [0]}
    assert read_valid_labels(file(content), [IMAGES[0], "a/x.png", "b/x.png"], 4) == [{1}, {3}, set()]


WRONG_LABELS = {
    "not JSON": ("n01 3", "a/1.png", "not valid JSON"),
    "a number": (3, "a/1.png", "must be a list of lists of classes, or an object"),
    "no number": ([[0]], "b/001.png", "goes by the numbers of ILSVRC2012_val_00000001.JPEG; b/001.png has none"),
    "number zero": ([[0]], "a/ILSVRC2012_val_00000000.JPEG", "has none"),
    "too short": ([[0]] * 9, IMAGES[2], "has 9 entries, too few for the image b/ILSVRC2012_val_00000010_n01440764.jpg"),
    "unknown image": ({"2.png": [0]}, "a/1.png", "has no entry for the image a/1.png"),
    "no list": ({"1.png": 0}, "a/1.png", "image a/1.png: must be a list of classes from 0 to 3, got 0"),
    "out of range": ({"1.png": [0, 4]}, "a/1.png", r"from 0 to 3, got \[0, 4\]"),
    "no class": ({"1.png": ["ant"]}, "a/1.png", r"from 0 to 3, got \['ant'\]"),
}


@pytest.mark.parametrize(("content", "image", "expected"), WRONG_LABELS.values(), ids=WRONG_LABELS.keys())
def test_wrong_labels_are_one_line(file, content, image, expected):
    with pytest.raises(DataError, match=expected) as error:
        read_valid_labels(file(content), [image], 4)
    assert str(error.value).startswith("valid labels ")
    assert "\n" not in str(error.value)
