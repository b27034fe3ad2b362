"""From the bytes of a file to pixels: depth, transparency, orientation, size, damage."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from focal_twins.config.classification import ClassificationData
from focal_twins.data.decoding import Reading, UnreadableImage, decode, from_pillow, pixels, turned

GREEN = (0, 200, 0)


@pytest.fixture(scope="module")
def photograph():
    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((150, 100)))


def encoded(image: Image.Image, file_format: str, **options) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def read(content, channels=3, **reading) -> np.ndarray:
    return decode(content, channels, Reading(**reading))


def png(values, color_type: int, depth: int, *chunks: tuple[bytes, bytes], rows: bytes | None = None) -> np.ndarray:
    """A PNG file of big-endian samples [H, W, C], or of rows, with more chunks before its data."""
    height, width, _ = values.shape
    rows = rows or b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return np.frombuffer(content, np.uint8)


def tiff(values: np.ndarray, bits: int, photometric: int, sample_format: int = 1) -> np.ndarray:
    """An uncompressed grey TIFF file of little-endian samples [H, W]; 12 bits are packed."""
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.tobytes()
    height, width = values.shape
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data),
        339: sample_format,
    }  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return np.frombuffer(content + struct.pack("<H", len(tags)) + directory + bytes(4), np.uint8)


DEEP = np.random.default_rng(0).integers(0, 2**16, (6, 8), dtype=np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_become_their_upper_8(file_format, channels):
    content = encoded(Image.fromarray(DEEP.astype(np.int32) if file_format == "PPM" else DEEP), file_format)
    np.testing.assert_array_equal(read(content, channels), np.repeat((DEEP >> 8)[..., None], channels, 2))
    np.testing.assert_array_equal(read(content, channels, alpha=GREEN), read(content, channels))


def test_16_bits_of_either_byte_order_and_in_colours_are_read_alike():
    expected = np.repeat((DEEP >> 8)[..., None], 3, 2)
    big_endian = Image.frombytes("I;16B", (8, 6), DEEP.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(encoded(big_endian, "TIFF")), expected)
    np.testing.assert_array_equal(read(png(np.repeat(DEEP[..., None], 3, 2), 2, 16)), expected)
    np.testing.assert_array_equal(read(png(np.repeat(DEEP[..., None], 2, 2), 4, 16)), expected)


def test_tiff_of_12_bits_and_negatives_are_not_read_as_16_bits_and_positives():
    twelve = DEEP >> 4
    np.testing.assert_array_equal(read(tiff(twelve, 12, 1), 1)[..., 0], DEEP >> 8)
    np.testing.assert_array_equal(read(tiff(DEEP, 16, 1), 1)[..., 0], DEEP >> 8)
    np.testing.assert_array_equal(read(tiff(DEEP, 16, 0), 1)[..., 0], 255 - (DEEP >> 8))
    np.testing.assert_array_equal(read(tiff((DEEP >> 8).astype(np.uint8), 8, 0), 1)[..., 0], 255 - (DEEP >> 8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "32-bit or signed integers have no agreed range"),
        (tiff(DEEP.view(np.int16), 16, 1, sample_format=2), "32-bit or signed integers have no agreed range"),
        (encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "floating-point numbers have no agreed range"),
        (
            encoded(Image.fromarray(DEEP.astype(np.float32) / 65535), "PPM"),
            "floating-point numbers have no agreed range",
        ),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", ["drop", GREEN])
def test_values_without_an_agreed_range_are_refused(content, reason, channels, alpha):
    with pytest.raises(UnreadableImage, match=f"{reason}.*8 or 16 bits"):
        read(content, channels, alpha=alpha)


ALPHA = np.array([[0, 255, 128, 1], [255, 0, 64, 254]], np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (2, 4, 3), dtype=np.uint8)


def over(colours: np.ndarray, alpha: np.ndarray, background=GREEN) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(colours * share + np.array(background) * (1 - share)).astype(np.uint8)


def test_transparency_is_dropped_or_laid_over_a_background():
    rgba = encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), "PNG")
    np.testing.assert_array_equal(read(rgba), COLOURS)
    np.testing.assert_array_equal(read(rgba, alpha=GREEN), over(COLOURS, ALPHA))
    expected = np.asarray(Image.fromarray(over(COLOURS, ALPHA)).convert("L"))[..., None]
    np.testing.assert_array_equal(read(rgba, 1, alpha=GREEN), expected)
    grey = encoded(Image.fromarray(np.dstack([COLOURS[..., 0], ALPHA])), "PNG")
    np.testing.assert_array_equal(read(grey), np.repeat(COLOURS[..., :1], 3, 2))
    np.testing.assert_array_equal(read(grey, alpha=GREEN), over(np.repeat(COLOURS[..., :1], 3, 2), ALPHA))


def test_transparency_of_palettes_and_of_one_colour():
    palette = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4), "P")
    palette.putpalette(COLOURS.tobytes())
    for transparency in (ALPHA.tobytes(), 3):
        content = encoded(palette, "PNG", transparency=transparency)
        alpha = ALPHA if transparency != 3 else np.where(np.arange(8).reshape(2, 4) == 3, 0, 255)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(read(content), COLOURS)
            np.testing.assert_array_equal(read(content, alpha=GREEN), over(COLOURS, alpha))
    mask = np.ones((2, 4), bool)
    mask[1, 2] = False
    alpha = np.where(mask, 255, 0)
    content = png(COLOURS, 2, 8, (b"tRNS", struct.pack(">3H", *COLOURS[1, 2])))
    np.testing.assert_array_equal(read(content, alpha=GREEN), over(COLOURS, alpha))
    deep = COLOURS.astype(np.uint16) * 256 + 77
    content = png(deep, 2, 16, (b"tRNS", struct.pack(">3H", *deep[1, 2])))
    np.testing.assert_array_equal(read(content), COLOURS)
    np.testing.assert_array_equal(read(content, alpha=GREEN), over(COLOURS, alpha))
    content = png(deep[..., :1], 0, 16, (b"tRNS", struct.pack(">H", deep[1, 2, 0])))
    np.testing.assert_array_equal(read(content, alpha=GREEN), over(np.repeat(COLOURS[..., :1], 3, 2), alpha))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(photograph, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        for mode in ("RGB", "L"):
            content = encoded(Image.fromarray(photograph).convert(mode), file_format, exif=exif)
            image = Image.open(io.BytesIO(content.tobytes()))
            for channels, converted in ((3, "RGB"), (1, "L")):
                expected = pixels(ImageOps.exif_transpose(image).convert(converted))
                np.testing.assert_array_equal(read(content, channels, exif="apply"), expected)
                np.testing.assert_array_equal(read(content, channels), pixels(image.convert(converted)))
    # Of a stored corner, EXIF says on which sides it is to be seen: row 0 at the top or bottom or left or right.
    corner = np.zeros((2, 3, 1), np.uint8)
    corner[0, 0] = 1
    seen = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    result = turned(corner, orientation)
    assert result.shape == ((3, 2, 1) if orientation >= 5 else (2, 3, 1))
    assert result[seen[orientation]] == 1
    assert result.sum() == 1


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_damaged_metadata_leave_an_image_as_it_is_stored(photograph, exif):
    content = encoded(Image.fromarray(photograph), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read(content, exif="apply"), read(content))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_limit_holds_for_every_format(file_format, channels):
    content = encoded(Image.new("RGB", (40, 30)), file_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(content, channels, max_pixels=1200).shape == (30, 40, channels)
        with pytest.raises(UnreadableImage, match=r"^40 x 30 pixels are more than data\.max_pixels=1199$"):
            read(content, channels, max_pixels=1199)


def test_the_limit_holds_where_pillow_would_warn_or_refuse_before(monkeypatch):
    for file_format in ("PNG", "JPEG"):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        content = encoded(Image.new("L", (40, 30)), file_format)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read(content, 1, exif="apply").shape == (30, 40, 1)
    small = png(np.zeros((1, 1, 1)), 0, 8).tobytes()
    for width in (9000, 20000):  # within Pillow's own limit, which is behind this one, and beyond it
        header = b"IHDR" + struct.pack(">IIBBBBB", width, 20000, 8, 0, 0, 0, 0)
        bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
        with pytest.raises(UnreadableImage, match=r"pixels .*than data\.max_pixels=178956970$"):
            read(np.frombuffer(bomb, np.uint8))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_transparent_level_of_few_bits_is_found(depth):
    levels = np.arange(16).reshape(2, 8) % 2**depth
    bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -depth:] for row in levels]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    content = png(levels[..., None], 0, depth, (b"tRNS", b"\0\1"), rows=rows)
    shown = read(content, alpha=GREEN)
    np.testing.assert_array_equal((shown == GREEN).all(axis=-1), levels == 1)
    np.testing.assert_array_equal(read(content, 1)[..., 0], levels * (255 // (2**depth - 1)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", ["drop", GREEN])
def test_every_mode_of_8_bits_is_read_as_pillow_converts_it(mode, channels, alpha):
    if mode == "LAB":
        image = Image.frombytes("LAB", (4, 2), COLOURS.tobytes())
    else:
        with_alpha = Image.fromarray(np.dstack([COLOURS, np.full_like(ALPHA, 255)]))
        image = with_alpha.convert({"PA": "LA"}.get(mode, mode)).convert(mode)
    colours = image.convert("RGB")
    content = encoded(image, "TIFF")
    direct = colours if channels == 3 or mode == "LAB" else image
    expected = pixels(direct.convert("RGB" if channels == 3 else "L"))
    np.testing.assert_array_equal(read(content, channels, alpha=alpha), expected)


def test_a_program_that_draws_is_not_started():
    with pytest.raises(UnreadableImage, match="EPS is not pixels"):
        read(encoded(Image.fromarray(COLOURS), "EPS"))


def test_of_several_frames_the_first_is_read(photograph):
    first, second = Image.fromarray(photograph), Image.new("RGB", (150, 100), "red")
    for file_format in ("TIFF", "WEBP", "GIF", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        alone = encoded(first, file_format, **options)
        several = encoded(first, file_format, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(read(several), read(alone))


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 50, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_decoded_as_pillow_does(photograph, options, mode, channels):
    buffer = io.BytesIO()
    Image.fromarray(photograph).convert(mode).save(buffer, "JPEG", **options)
    expected = pixels(Image.open(buffer).convert("RGB" if channels == 3 else "L"))
    np.testing.assert_array_equal(decode(np.frombuffer(buffer.getvalue(), np.uint8), channels), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_whose_end_is_missing_is_unreadable_however_it_ends(photograph, options, mode, channels):
    """Pillow reads some of these without a word, and the missing part is grey."""
    whole = encoded(Image.fromarray(photograph).convert(mode), "JPEG", **options).tobytes()
    kept, rest = whole[: len(whole) * 6 // 10], len(whole) * 4 // 10
    for cut in (kept, kept + bytes(rest), kept + b"\xff\xd9", kept + b"<html>", whole[:-2]):
        with pytest.raises(UnreadableImage, match=r"cut short|truncated|broken"):
            read(np.frombuffer(cut, np.uint8), channels)
    for harmless in (whole + b"more", whole[:-2] + bytes(3) + whole[-2:], whole + whole):
        np.testing.assert_array_equal(
            read(np.frombuffer(harmless, np.uint8), channels), read(np.frombuffer(whole, np.uint8), channels)
        )


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_damaged_files_are_unreadable(content):
    with pytest.raises(UnreadableImage):
        decode(np.frombuffer(content, np.uint8), 3)


def test_the_choices_of_a_configuration_are_those_of_a_description():
    data = ClassificationData(exif="apply", alpha=[1, 2, 3], max_pixels=1000)
    reading = Reading.from_dict(data.model_dump())
    assert reading == Reading("apply", (1, 2, 3), 1000)
    assert Reading.from_dict(reading.to_dict()) == reading
    assert Reading.from_dict(ClassificationData().model_dump()) == Reading.from_dict({}) == Reading()
    for wrong in ({"exif": "turn"}, {"alpha": "white"}, {"alpha": [1, 2]}):
        with pytest.raises(ValueError, match=r"exif|invalid literal|not enough values"):
            Reading.from_dict(wrong)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reading", [Reading(), Reading("apply", GREEN)])
def test_an_opened_image_has_the_pixels_of_its_file(photograph, channels, reading):
    """And is not changed: those who opened it have it still."""
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.fromarray(photograph)
    palette = small.quantize(16)
    contents = [
        *(encoded(small.convert(mode), "JPEG", exif=exif) for mode in ("RGB", "L", "CMYK")),
        encoded(palette, "PNG", transparency=3),
        encoded(small.convert("L"), "PNG", transparency=77, exif=exif),
        encoded(Image.fromarray(np.dstack([photograph, photograph[..., 0]])), "PNG"),
        encoded(Image.fromarray(DEEP), "PNG"),
    ]
    for content in contents:
        opened = Image.open(io.BytesIO(content.tobytes()))
        before = dict(opened.info)
        np.testing.assert_array_equal(from_pillow(opened, channels, reading), decode(content, channels, reading))
        assert opened.info.keys() >= before.keys()
