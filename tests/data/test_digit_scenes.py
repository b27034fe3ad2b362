"""The scenes of handwritten digits: what their files say of each other, and which scans are in which."""

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from focal_twins.data.digit_scene_files import CLASSES
from focal_twins.data.digit_scenes import SPLITS
from focal_twins.data.digits import split_scans
from focal_twins.data.mask_outlines import outlines, packed_lengths, run_lengths


@pytest.fixture
def make(run_script):
    """make(folder, option, ...) -> (exit code, stdout, stderr)"""
    return lambda output, *options: run_script("scripts/prepare_digit_scenes.py", "--output", output, *options)


def described(folder, split) -> dict:
    return json.loads((folder / f"annotations/instances_{split}.json").read_text())


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(text: str) -> list[int]:
    """Run lengths of COCO's string, as its format describes it: the other way round than the script writes them."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def filled(counts: list[int], size: list[int]) -> np.ndarray:
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(size, order="F")


def drawn(polygons: list[list[int]], height: int, width: int) -> np.ndarray:
    """The pixels whose centres a ray to the right leaves a polygon from, an odd number of times."""
    mask = np.zeros((height, width), bool)
    rows, columns = np.mgrid[:height, :width] + 0.5
    for polygon in polygons:
        points = [*zip(polygon[::2], polygon[1::2], strict=True)]
        inside = np.zeros_like(mask)
        for (x0, y0), (x1, y1) in pairwise([*points, points[0]]):
            if x0 == x1:
                inside ^= (rows > min(y0, y1)) & (rows < max(y0, y1)) & (columns < x0)
        mask |= inside
    return mask


def mask_of(annotation: dict, size: list[int]) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return drawn(segmentation, *size)
    assert segmentation["size"] == size
    counts = segmentation["counts"]
    return filled(unpacked(counts) if isinstance(counts, str) else counts, size)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_the_masks_of_the_annotations(digit_scenes, split):
    scenes = described(digit_scenes, split)
    names = {annotation["image_id"]: [] for annotation in scenes["annotations"]}
    for annotation in scenes["annotations"]:
        names[annotation["image_id"]].append(annotation)
    for image in scenes["images"]:
        size = [image["height"], image["width"]]
        stem = image["file_name"].removesuffix(".jpg")
        with Image.open(digit_scenes / "images" / split / image["file_name"]) as opened:
            assert (opened.mode, [opened.height, opened.width]) == ("L", size)
        label = np.zeros(size, np.uint8)
        for annotation in names.get(image["id"], []):
            mask = mask_of(annotation, size)
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            left, top, width, height = annotation["bbox"]
            assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (top, top + height, left, left + width)
            assert annotation["area"] == mask.sum()
            assert not label[mask].any(), "masks overlap"
            label[mask] = annotation["category_id"]
        np.testing.assert_array_equal(label, np.asarray(Image.open(digit_scenes / f"annotations/{split}/{stem}.png")))


def test_scenes_have_all_that_coco_has(digit_scenes):
    scenes = described(digit_scenes, "training")
    annotations = scenes["annotations"]
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    assert crowds
    assert all(isinstance(crowd["segmentation"]["counts"], list) and len(crowd["scans"]) >= 5 for crowd in crowds)
    single = [annotation["segmentation"] for annotation in annotations if not annotation["iscrowd"]]
    assert {type(mask) for mask in single} == {list, dict}
    assert len({annotation["image_id"] for annotation in annotations}) < len(scenes["images"]), "no image is empty"
    assert [(c["id"], c["name"]) for c in scenes["categories"]] == [(digit + 1, str(digit)) for digit in range(10)]
    assert (digit_scenes / "classes.txt").read_text().split() == list(CLASSES)


@pytest.mark.parametrize(("split", "part"), [("training", 0), ("validation", 1)])
def test_scans_are_those_of_the_digits_split(digit_scenes, split, part):
    target = load_digits().target
    allowed = set(split_scans(target)[part])
    for annotation in described(digit_scenes, split)["annotations"]:
        assert set(annotation["scans"]) <= allowed
        assert {int(target[scan]) for scan in annotation["scans"]} == {annotation["category_id"] - 1}


def test_held_out_scans_are_those_of_the_image_folder(digits):
    held_out = split_scans(load_digits().target)[1]
    assert sorted(int(path.stem) for path in digits.glob("val/*/*.png")) == sorted(held_out)


def test_same_options_give_the_same_files(tmp_path, digit_scenes, make):
    """More scenes do not change the first ones, and another seed changes all."""
    options = ("--training", 3, "--validation", 2)
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    assert "wrote 3 training scenes" in make(first, *options)[1]
    make(second, *options)
    make(other, *options, "--seed", 1)
    files = content(first)
    assert files == content(second)
    longer = content(digit_scenes)
    pictures = [name for name in files if name.endswith((".png", ".jpg"))]
    assert len(pictures) == 10
    for name in pictures:
        assert files[name] == longer[name]
    images = [name for name in pictures if name.startswith("images/")]
    assert not any(files[name] == (other / name).read_bytes() for name in images)


def test_a_whole_folder_is_left_alone_and_another_is_not_overwritten(tmp_path, make):
    output = tmp_path / "scenes"
    options = ("--training", 2, "--validation", 1, "--size", 96)
    make(output, *options)
    before = (output / "classes.txt").stat()
    assert "are there already" in make(output, *options)[1]
    assert (output / "classes.txt").stat() == before
    (output / "images/training/00000.jpg").unlink()
    assert "wrote 2 training scenes" in make(output, *options)[1]
    assert (output / "images/training/00000.jpg").exists()
    (output / "notes.txt").write_text("mine")
    code, _, error = make(output, *options[:-1], 144)
    assert (code, error.count("\n")) == (1, 1)
    assert "holds something else" in error
    code, _, error = make(output, "--size", 8)
    assert (code, error.count("\n")) == (1, 1)
    assert "--size 8: must be at least 48" in error
    (tmp_path / "file").write_text("mine")
    code, _, error = make(tmp_path / "file" / "scenes", *options)
    assert (code, error.count("\n")) == (1, 1)
    assert "file/scenes: cannot be written" in error


def test_outlines_follow_edges_of_pixels():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 1:4] = True
    assert outlines(mask) == ([[1, 1, 4, 1, 4, 3, 1, 3]], False)
    mask[3, 4] = True  # touches at a corner alone
    assert sorted(outlines(mask)[0]) == [[1, 1, 4, 1, 4, 3, 1, 3], [4, 3, 5, 3, 5, 4, 4, 4]]
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert outlines(ring) == ([[0, 0, 3, 0, 3, 3, 0, 3]], True)


def test_run_lengths_are_packed_as_coco_packs_them():
    """The strings are those that pycocotools 2.0.11 gives for the same masks."""
    mask = np.zeros((40, 8), bool)
    mask[3:20, 1:7] = True
    mask[10:12, 3:5] = False
    lengths = run_lengths(mask)
    assert packed_lengths(lengths) == "[1a0g000F[O1e0O[O1e0900U1"
    assert unpacked(packed_lengths(lengths)) == lengths
    assert run_lengths(np.ones((2, 2))) == [0, 4]
