"""Label images: what counts as one, what its values mean, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import UnreadableImage
from focal_twins.data.label_images import LabelFault, LabelRules, read_class_names, read_label
from tests.conftest import ROOT

ORIGINAL = np.load(ROOT / "tests" / "reference" / "dense" / "segmentation_pipeline.npz")


def content(image: Image.Image, form: str = "PNG", **options) -> np.ndarray:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return np.frombuffer(stream.getvalue(), np.uint8)


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, "P")
    image.putpalette(np.random.default_rng(0).permutation(256).astype(np.uint8).repeat(3).tolist())
    return image


SMALL = np.random.default_rng(0).integers(0, 4, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    "file",
    [
        content(Image.fromarray(SMALL)),
        content(palette(SMALL)),
        content(palette(SMALL), bits=2),
        content(palette(SMALL), bits=4),
        content(Image.fromarray(SMALL.astype(np.uint16))),
        content(Image.fromarray(SMALL.astype(np.int32)), "TIFF"),
        content(Image.fromarray(SMALL), "BMP"),
        content(palette(SMALL), transparency=1),
    ],
    ids=["grey", "palette", "palette of 2 bits", "palette of 4", "16 bits", "32 bits", "BMP", "transparent index"],
)
def test_stored_values_are_the_classes(file):
    label = read_label(file, LabelRules(4))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, SMALL)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_images_of_few_bits_hold_class_numbers(bits):
    """Pillow reads them as levels of grey from black to white, and writes none: this one is put together here."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = SMALL % (1 << bits)
    places = np.unpackbits(values[:, :, None], axis=2)[:, :, 8 - bits :].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in places)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, bits, 0, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_label(np.frombuffer(file, np.uint8), LabelRules(4)), values)


def test_zero_may_mean_unlabelled_as_in_the_original():
    """255 stays ignored, 0 becomes so, and every class is one less."""
    raw = ORIGINAL["label"]
    reduced = read_label(content(Image.fromarray(raw)), LabelRules(150, 255, reduce_zero_label=True))
    np.testing.assert_array_equal(reduced, ORIGINAL["label_reduced"])
    assert (raw == 0).any()


def test_values_beyond_a_byte():
    values = np.array([[0, 299, 65535]], np.uint16)
    label = read_label(content(Image.fromarray(values)), LabelRules(300, 65535))
    assert label.dtype == np.int32
    assert label.tolist() == [[0, 299, 65535]]
    few = read_label(content(Image.fromarray(values[:, :1])), LabelRules(300, 65535))
    assert few.dtype == np.int32


def test_a_class_may_be_ignored():
    label = read_label(content(Image.fromarray(SMALL)), LabelRules(4, ignore_index=0))
    np.testing.assert_array_equal(label, SMALL)


@pytest.mark.parametrize(
    ("image", "rules", "expected"),
    [
        (Image.fromarray(np.array([[0, 7, 7, 4]], np.uint8)), LabelRules(4),
         r"value 4 in 1 pixel \(and 1 other value\) is none of the 4 classes, 0 .. 3, and not data.ignore_index 255"),
        (Image.fromarray(np.array([[1, 5, 5]], np.uint8)), LabelRules(4, 255, True),
         r"value 5 in 2 pixels is .* 1 .. 4"),
        (Image.fromarray(np.array([[1, 1000]], np.uint16)), LabelRules(4), "value 1000 in 1 pixel "),
        (Image.fromarray(np.array([[-1, 1]], np.int32)), LabelRules(4), "beyond 16 bits"),
        (Image.new("RGB", (3, 3)), LabelRules(4), "mode RGB, .* convert its colours to class numbers"),
        (Image.new("RGBA", (3, 3)), LabelRules(4), "mode RGBA"),
        (Image.new("LA", (3, 3)), LabelRules(4), "mode LA"),
        (Image.new("F", (3, 3)), LabelRules(4), "mode F"),
    ],
    ids=["beyond", "beyond the reduced", "beyond in 16 bits", "negative", "RGB", "RGBA", "grey and alpha", "floats"],
)  # fmt: skip
def test_what_is_no_label_is_refused(image, rules, expected):
    with pytest.raises(LabelFault, match=expected) as fault:
        read_label(content(image, "TIFF" if image.mode in "IF" else "PNG"), rules)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_files_are_unreadable(damage):
    file = content(Image.fromarray(np.random.default_rng(0).integers(0, 4, (50, 50), dtype=np.uint8)))
    broken = file[: len(file) // 2] if damage == "cut" else np.frombuffer(b"no image", np.uint8)
    with pytest.raises(UnreadableImage):
        read_label(broken, LabelRules(4))


def test_class_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("wall\n\n  night sky \nfloor\n", encoding="utf-8")
    assert read_class_names(str(path), 3) == ("wall", "night sky", "floor")
    assert read_class_names(["a", "b"], 2) == ("a", "b")
    assert read_class_names(None, 2) == ("class 0", "class 1")
    for names, expected in [
        (str(path), "names.txt: names 3 classes, and the model has 2"),
        (str(tmp_path / "none.txt"), "none.txt: cannot be read"),
        (["a", "a"], "names 'a' twice"),
    ]:
        with pytest.raises(DataError, match=expected):
            read_class_names(names, 2)
