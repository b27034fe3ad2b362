"""Folders of images and label images: what is found, and the one line that each fault gets."""

import shutil

import mindspore.dataset as ds
import numpy as np
import pytest
from PIL import Image

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.label_folders import LabelledFolders
from focal_twins.data.label_images import LabelRules
from tests.label_files import make_label_folders, make_pair, save_png

RULES = LabelRules(4)


def opened(root, rules=RULES, suffixes=("", ""), classes=("a", "b", "c", "d")) -> LabelledFolders:
    return LabelledFolders.open(
        root / "images" / "training", root / "annotations" / "training", rules, classes, suffixes
    )


def refusal(root, *arguments) -> str:
    with pytest.raises(DataError) as error:
        opened(root, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def root(tmp_path):
    return make_label_folders(tmp_path)


def test_pairs_are_in_the_order_of_their_names(tmp_path):
    for name in ["b", "town/10", "town/9", "a.1", "Z"]:
        make_pair(tmp_path, "training", name, (8, 8), 4, 0)
    make_pair(tmp_path, "training", ".hidden", (8, 8), 4, 0)
    (tmp_path / "images" / "training" / "list.txt").write_text("no image")
    data = opened(tmp_path)
    assert data.names == ["Z.png", "a.1.png", "b.png", "town/10.png", "town/9.png"]
    assert (data.size, data.classes, data.label_name(3)) == (5, ("a", "b", "c", "d"), "town/10.png")
    assert data.description == "4 classes"
    images, labels = data.notices
    assert (
        "1 hidden or of the system (.hidden.png)" in images and "1 without the ending of an image (list.txt)" in images
    )
    assert labels == f"data folder {data.label_path}: left out 1 hidden or of the system (.hidden.png)"


def test_the_reader_gives_indices_in_the_order_of_a_sampler(root):
    rows = opened(root).reader(ds.SubsetSampler([4, 0, 5])).create_tuple_iterator(num_epochs=1, output_numpy=True)
    assert [int(index) for (index,) in rows] == [4, 0, 5]


def test_contents_and_pairs_are_the_files(root):
    data = opened(root)
    assert data.content(1).tobytes() == (root / "images/training/scene1.png").read_bytes()
    assert data.label_content(1).tobytes() == (root / "annotations/training/scene1.png").read_bytes()
    pixels, label = data.pair(0, 3)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(root / "images/training/scene0.png")))
    np.testing.assert_array_equal(label, np.asarray(Image.open(root / "annotations/training/scene0.png")))
    assert data.pair(0, 1)[0].shape == (24, 40, 1)


def test_names_may_have_ends_of_their_own(tmp_path):
    """As in Cityscapes, where the folder of labels has other files as well."""
    make_pair(tmp_path, "training", "ulm/1", (8, 8), 4, 0)
    images, labels = tmp_path / "images/training/ulm", tmp_path / "annotations/training/ulm"
    (images / "1.png").rename(images / "1_leftImg8bit.png")
    (labels / "1.png").rename(labels / "1_gtFine_labelTrainIds.png")
    save_png(labels / "1_gtFine_color.png", np.zeros((8, 8, 4), np.uint8))
    data = opened(tmp_path, RULES, ("_leftImg8bit", "_gtFine_labelTrainIds"))
    assert data.files == [("ulm/1_leftImg8bit.png", "ulm/1_gtFine_labelTrainIds.png")]
    (notice,) = data.notices
    assert notice.endswith("left out 1 whose name does not end with _gtFine_labelTrainIds (ulm/1_gtFine_color.png)")
    assert "holds no images; it holds 1 whose name does not end with _left (ulm/1_leftImg8bit.png)" in refusal(
        tmp_path, RULES, ("_left", "")
    )


def test_what_has_no_partner_is_named_and_counted(root):
    labels = root / "annotations/training"
    for number in range(5):
        (labels / f"scene{number}.png").unlink()
    (root / "images/training/scene5.png").unlink()
    line = refusal(root)
    assert "5 images have no label image in " in line
    assert "(scene0.png, scene1.png, scene2.png, ...), and 1 label image has no image in " in line
    assert "(scene5.png); a pair has the same name" in line


def test_two_images_of_one_name_are_refused(root):
    shutil.copy(root / "images/training/scene1.png", root / "images/training/scene1.jpg")
    assert "scene1.jpg and scene1.png would have the same partner" in refusal(root)


def test_missing_and_empty_folders_are_refused(root):
    shutil.rmtree(root / "annotations/training")
    assert "no such folder; set data.path and data.labels to where the label images are" in refusal(root)
    (root / "annotations/training").mkdir()
    assert "holds no label images (.png, .bmp, .tif, .tiff); set data.path or data.labels" in refusal(root)
    save_png(root / "annotations/training/scene0.jpg", np.zeros((3, 3), np.uint8))
    assert "it holds 1 of a format without exact values (scene0.jpg)" in refusal(root)
    shutil.rmtree(root / "images/training")
    (root / "images/training").mkdir()
    assert "holds no images; set data.path or data.images" in refusal(root)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (np.zeros((40, 24), np.uint8),
         r"scene0.png: is 24 x 40 pixels, its image .*scene0.png 40 x 24; a label needs its image's size"),
        (np.full((24, 40), 9, np.uint8), "scene0.png: value 9 in 960 pixels is none of the 4 classes, 0 .. 3"),
        (np.zeros((24, 40, 3), np.uint8), "scene0.png: is an image of mode RGB"),
    ],
    ids=["size", "value", "colours"],
)  # fmt: skip
def test_faulty_labels_are_named_when_the_data_set_is_opened(root, label, expected):
    save_png(root / "annotations/training/scene0.png", label)
    with pytest.raises(DataError, match=expected):
        opened(root)


def test_labels_without_a_class_are_refused(root):
    """The usual reason is a label that begins at 1 and is read as if it began at 0, or the reverse."""
    for path in (root / "annotations/training").iterdir():
        save_png(path, np.zeros(Image.open(path).size[::-1], np.uint8))
    assert "all pixels of the 6 label images looked at are to be ignored" in refusal(root, LabelRules(4, 255, True))


def test_damaged_files_are_left_to_the_pipeline(root):
    (root / "images/training/scene0.png").write_bytes(b"no image")
    (root / "annotations/training/scene1.png").write_bytes(b"no label")
    assert opened(root).size == 6


def test_files_that_cannot_be_opened_are_unreadable(root):
    data = opened(root)
    (root / "images/training/scene0.png").unlink()
    (root / "annotations/training/scene1.png").unlink()
    with pytest.raises(UnreadableImage, match=r"^No such file"):
        data.pair(0, 3)
    with pytest.raises(UnreadableImage, match=r"^its label image .*annotations.training.scene1.png: No such file"):
        data.pair(1, 3)
