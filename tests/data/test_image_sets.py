"""Folders, zip files and MindRecord files of images: the same samples, and clear refusals."""

import json
import os
import zipfile

import mindspore.dataset as ds
import numpy as np
import pytest

from focal_twins.data.dataset import DataError
from focal_twins.data.image_folder import ImageFolder
from focal_twins.data.image_set import check_classes
from focal_twins.data.mindrecord_images import MindRecordImages
from focal_twins.data.open_images import open_images
from focal_twins.data.pack_mindrecord import make_mindrecord
from focal_twins.data.zip_images import ZipImages
from tests.image_files import make_folder, zip_folder

COUNTS = {"b10": 6, "b9": 7, "cat": 8}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images" / "train", COUNTS)


def rows(images, indices):
    reader = images.reader(ds.SubsetSampler(indices))
    return [
        (images.file_content(image).tobytes(), int(label))
        for image, label in reader.create_tuple_iterator(num_epochs=1, output_numpy=True)
    ]


def in_format(name, folder, tmp_path):
    """The images of a folder, opened in a format."""
    if name == "folder":
        return open_images(folder.parent, "train")
    if name == "zip":
        zip_folder(folder).rename(tmp_path / "train.zip")
        (folder.parent / "train_map.txt").rename(tmp_path / "train_map.txt")
    else:
        make_mindrecord(folder.parent, "train", tmp_path, images_per_file=8, workers=1)
    return open_images(tmp_path, "train")


@pytest.mark.parametrize("name", ["folder", "zip", "mindrecord"])
def test_every_format_has_the_same_samples_in_the_same_order(name, folder, tmp_path):
    images = in_format(name, folder, tmp_path)
    assert images.classes == ("b10", "b9", "cat")
    assert images.size == 21
    files = [f"{label}/{index:03d}.png" for label, count in COUNTS.items() for index in range(count)]
    assert images.names == files
    assert images.labels.tolist() == [0] * 6 + [1] * 7 + [2] * 8
    chosen = [20, 0, 7, 13, 5, 6]
    expected = [((folder / files[i]).read_bytes(), int(images.labels[i])) for i in chosen]
    assert rows(images, chosen) == expected
    assert images.successors(8) == [9, 10, 11, 12, 6, 7]
    assert images.content(8).tobytes() == (folder / files[8]).read_bytes()


ODD_NAMES = ["10.jpg", "9.jpg", "B.JPG", "b.png", "a.jpg", "A.jpeg", "a.JPEG", "a.Jpeg", "a b.jpg", "a-b.jpg",
             "a.b.jpg", "a.jpg.png", "_x.gif", "~.bmp", "\u00e9.tif", "\u03a9.png", "\u65e5.PNG",
             "\uffee.jpg", "\U0001d4b3.jpg", "ILSVRC2012_val_00000293.JPEG"]  # fmt: skip


def test_files_are_in_the_order_of_image_folder_dataset(tmp_path):
    """Class by class and by the bytes of their names, whatever these are; so runs of earlier versions go on."""
    generator = np.random.default_rng(0)
    for name in generator.permutation(
        ["a", "a b", "a-b", "a.b", "B", "b10", "b9", "1", "10", "2", "\u00e9", "\U0001d4b3"]
    ):
        (tmp_path / name).mkdir()
        for file in generator.permutation(ODD_NAMES):
            (tmp_path / name / file).write_bytes(f"{name}/{file}".encode())
        (tmp_path / name / "readme.txt").write_text("not an image")
    folder = ImageFolder.open(tmp_path)
    endings = sorted({f".{name.rpartition('.')[2]}" for name in ODD_NAMES})
    reference = ds.ImageFolderDataset(str(tmp_path), shuffle=False, decode=False, extensions=endings)
    reference = [
        (content.tobytes(), int(label))
        for content, label in reference.create_tuple_iterator(num_epochs=1, output_numpy=True)
    ]
    assert rows(folder, list(range(folder.size))) == reference
    assert [name.encode() for name in folder.names] == [content for content, _ in reference]
    assert [folder.name(index) for index in range(folder.size)] == folder.names
    assert folder.size == 12 * len(ODD_NAMES)


def test_a_zip_file_without_class_folders_takes_the_names_of_others(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for label in range(3):
            archive.writestr(f"ILSVRC2012_val_{label}.JPEG", b"")
    (tmp_path / "val_map.txt").write_text("".join(f"ILSVRC2012_val_{label}.JPEG\t{label}\n" for label in range(3)))
    assert open_images(tmp_path, "val").classes == ("0", "1", "2")
    train = ImageFolder.open(folder)
    check_classes(train, open_images(tmp_path, "val", train.classes), 3)


def test_map_lines_may_leave_out_the_folder_of_the_split(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for name in ("a/1.png", "b/2.png"):
            archive.writestr(f"train/{name}", b"")
    (tmp_path / "train_map.txt").write_text("b/2.png\t1\na/1.png\t0\n")
    assert open_images(tmp_path, "train").names == ["train/a/1.png", "train/b/2.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "its map train_map.txt"),
        ("", "train_map.txt: empty"),
        ("b10/000.png 0\n", "line 1: 'b10/000.png 0' is not a name, a tab and a label"),
        ("b10/000.png\t0\nb10/100.png\t0\n", "line 2: 'b10/100.png' is not in train.zip"),
        ("b10/000.png\t0\ncat/000.png\t2\n", "no image has label 1, though 2 occurs"),
        ("b10/000.png\t0\n", "has the one class 'b10'"),
    ],
)
def test_unusable_maps_are_refused(folder, text, expected):
    path = zip_folder(folder)
    map_path = path.with_name("train_map.txt")
    map_path.unlink() if text is None else map_path.write_text(text)
    with pytest.raises(DataError, match=expected) as error:
        ZipImages.open(path)
    assert "\n" not in str(error.value)


def test_a_damaged_zip_file_is_refused(folder):
    path = zip_folder(folder)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable zip file"):
        ZipImages.open(path)


def test_a_zip_file_is_found_in_whatever_way_its_names_are_written(tmp_path):
    """Backslashes of Windows, decomposed letters and unmarked UTF-8 of a Mac, names from the root or from "."."""
    stored = [
        "train\\cat\\1.png",
        "/dog/2.png",
        "./dog/3.png",
        "cafe\u0301/4.png",
        "caf\u00e9/5.png".encode().decode("cp437"),
    ]
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in stored:
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, name.encode())
        archive.writestr("dog/9.png", b"not in the map")
        archive.writestr("__MACOSX/dog/._2.png", b"resource fork")
        archive.writestr("dog/", b"")
    written = ["cat/1.png", "dog/2.png", "dog/3.png", "caf\u00e9/4.png", "train/cat/1.png"]
    labels = [0, 1, 1, 2, 0]
    lines = "".join(f"{name}\t{label}\r\n" for name, label in zip(written, labels, strict=True))
    (tmp_path / "train_map.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    images = open_images(tmp_path, "train")
    assert images.classes == ("cat", "dog", "cafe\u0301")
    assert images.labels.tolist() == [0, 0, 1, 1, 2]
    assert [images.content(index).tobytes().decode() for index in range(5)] == [stored[i] for i in (0, 0, 2, 1, 3)]
    assert images.notices == (
        f"data file {tmp_path / 'train.zip'}: left out 2 not in train_map.txt ({stored[4]}, dog/9.png)",
        f"{tmp_path / 'train_map.txt'}: 1 lines repeat an image, which comes as often in an epoch",
    )


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda entry: setattr(entry, "flag_bits", 1), "line 1: 'a/1.png' is encrypted in train.zip; pack the images"),
        (lambda entry: setattr(entry, "compress_type", 9), "line 1: 'a/1.png' is compressed by method 9 in train.zip"),
    ],
)
def test_zip_entries_that_cannot_be_read_are_refused(tmp_path, damage, expected):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
        archive.writestr("b/1.png", b"")
        damage(archive.infolist()[0])
    (tmp_path / "train_map.txt").write_text("a/1.png\t0\nb/1.png\t1\n")
    with pytest.raises(DataError, match=expected):
        open_images(tmp_path, "train")


def test_an_image_with_two_labels_is_refused(folder):
    path = zip_folder(folder)
    with path.with_name("train_map.txt").open("a") as file:
        file.write("b10/000.png\t2\n")
    with pytest.raises(DataError, match=r"line 22: 'b10/000.png' has label 2 here and 0 further up"):
        ZipImages.open(path)


def test_mindrecord_keeps_names_of_any_bytes(folder, tmp_path, capsys):
    names = [os.fsdecode(b"b9/caf\xe9.png"), "b9/x\ty\nz\\.png"]
    for name in names:
        os.rename(folder / "b9" / f"00{names.index(name)}.png", folder / name)
    broken = folder / os.fsdecode(b"cat/\xff.png")
    broken.write_bytes(b"text")
    index = make_mindrecord(folder.parent, "train", tmp_path, 8, 1)
    assert "cat/\\xff.png: left out" in capsys.readouterr().out
    assert open_images(tmp_path, "train").names == [
        name for name in ImageFolder.open(folder).names if name[4:] != broken.name
    ]
    ((name, _),) = json.loads(index.read_text())["parts"][-1]["unreadable"]
    assert name == f"cat/{broken.name}"


def test_mindrecord_goes_on_where_it_was_cut(folder, tmp_path, capsys):
    """Whole parts stay as they are; cut, damaged and missing ones are made anew; the result reads as the folder."""
    make_mindrecord(folder.parent, "train", tmp_path, 8, 1)
    parts = sorted(tmp_path.glob("train.mindrecord0000?"))
    assert len(parts) == 3
    kept = parts[0].stat().st_mtime_ns
    damaged = bytearray(parts[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    parts[1].write_bytes(damaged)
    parts[2].with_name(parts[2].name + ".json").unlink()
    images = open_images(make_mindrecord(folder.parent, "train", tmp_path, 8, 1).parent, "train")
    assert parts[0].stat().st_mtime_ns == kept
    whole = list(range(21))
    assert rows(images, whole) == rows(ImageFolder.open(folder), whole)
    # Other images under the same names are other parts.
    (folder / "b9" / "003.png").rename(folder / "b9" / "0031.png")
    images = open_images(make_mindrecord(folder.parent, "train", tmp_path, 8, 1).parent, "train")
    assert "b9/0031.png" in images.names


def test_mindrecord_leaves_unreadable_images_out_and_names_them(folder, tmp_path, capsys):
    (folder / "b9" / "003.png").write_bytes(b"text")
    (folder / "cat" / "001.png").write_bytes((folder / "cat" / "001.png").read_bytes()[:40])
    images = open_images(make_mindrecord(folder.parent, "train", tmp_path, 8, 1).parent, "train")
    assert images.size == 19
    assert "b9/003.png" not in images.names
    out = capsys.readouterr().out
    assert "b9/003.png: left out" in out
    assert "2 unreadable images left out" in out


def test_mended_images_are_packed_after_all(folder, tmp_path):
    image = (folder / "b9" / "003.png").read_bytes()
    (folder / "b9" / "003.png").write_bytes(b"text")
    make_mindrecord(folder.parent, "train", tmp_path, 8, 1)
    (folder / "b9" / "003.png").write_bytes(image)
    make_mindrecord(folder.parent, "train", tmp_path, 8, 1)
    assert open_images(tmp_path, "train").size == 21


def test_hidden_folders_are_no_classes(folder):
    (folder / ".hidden").mkdir()
    (folder / "b10" / "000.png").rename(folder / ".hidden" / "000.png")
    images = ImageFolder.open(folder)
    assert images.size == len(images.names) == 20
    assert [label for _, label in rows(images, list(range(20)))] == images.labels.tolist()
    assert images.names == [ImageFolder.open(folder).name(index) for index in range(20)]


def test_incomplete_mindrecord_files_are_refused(folder, tmp_path):
    index = make_mindrecord(folder.parent, "train", tmp_path, 8, 1)
    with pytest.raises(DataError, match="is what would be made"):
        make_mindrecord(tmp_path, "train", tmp_path / "again", 8)
    with pytest.raises(DataError, match="holds the images themselves"):
        make_mindrecord(folder.parent, "train", folder.parent, 8)
    part = tmp_path / json.loads(index.read_text())["parts"][1]["file"]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train.mindrecord00001: missing or not of"):
        MindRecordImages.open(index)
    index.write_text("{}")
    with pytest.raises(DataError, match="not an index of MindRecord files"):
        MindRecordImages.open(index)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda path: None, r"no such folder \(nor train.zip, nor train.mindrecord.json\); set data.path"),
        (lambda path: path.mkdir(), "empty; expected one folder of images per class"),
        (lambda path: make_folder(path, {"only": 2}), "has the one class 'only'"),
        (lambda path: [make_folder(path, {"a": 2, "b": 1}), (path / "c").mkdir()], "c: holds no images"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, build, expected):
    build(tmp_path / "train")
    with pytest.raises(DataError, match=expected):
        open_images(tmp_path, "train")


def test_mismatches_are_refused(tmp_path, folder):
    train = ImageFolder.open(folder)
    val = ImageFolder.open(make_folder(tmp_path / "val", {"b10": 1, "b9": 1, "dog": 1}))
    with pytest.raises(DataError, match=r"different classes: only in train: cat; only in val: dog"):
        check_classes(train, val, 3)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "CAT")
    with pytest.raises(DataError, match=r"'cat' differs from 'CAT' only in case or Unicode form"):
        check_classes(train, ImageFolder.open(tmp_path / "val"), 3)
    with pytest.raises(DataError, match=r"has 3 classes, the model 10; set model.num_classes=3"):
        check_classes(train, train, 10)
