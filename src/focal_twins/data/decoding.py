"""Decodes image files: from a file's bytes to an array of pixels, by one set of rules for every format.

What the rules leave open is a choice of the configuration (see Reading), the same wherever a run's images are read.
Images are [H, W, C] uint8 arrays, C being 3 (RGB) or 1 (grey).
"""

import io
import warnings
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

JPEG_START = b"\xff\xd8\xff"
# Pillow refuses more than this by default, which is twice the number of pixels from which on it warns.
MAX_PIXELS = 178_956_970
# Pillow's modes of 16 bits; of 32 bits, with what they hold.
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
NO_RANGE = {"I": "32-bit or signed integers", "F": "floating-point numbers"}
PROGRAMS = ("EPS",)  # Pillow would start Ghostscript for it, whatever the file is called
# Formats whose images of mode I have 16 bits: Pillow scales those of PPM, and its earlier versions read PNG as mode I.
SIXTEEN_BITS_AS_I = ("PNG", "PPM")
PNG_DEPTH = 24  # where a PNG file states its bits a channel
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0


class UnreadableImage(Exception):
    """Says that bytes are not an image that can be decoded, or none that may be."""


@dataclass(frozen=True)
class Reading:
    """Says how files become pixels where there is a choice; the section data of a configuration has the same keys.

    Attributes:
        exif: "apply" turns an image as its EXIF orientation says, "ignore" leaves it as it is stored. (TIFF images are
            always turned, because Pillow does so.)
        alpha: "drop" takes the colours of an image with transparency as they are; a colour (red, green, blue) is the
            background that the image is laid over.
        max_pixels: width times height above which an image is refused.
    """

    exif: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop"] | tuple[int, int, int] = "drop"
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_dict(cls, given: dict) -> "Reading":
        """Take what a dictionary has of the attributes; the others keep their defaults.

        Earlier descriptions and configurations have none of them, and meant the defaults.

        Raises:
            TypeError, ValueError: a value means nothing.
        """
        reading = cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})
        if reading.exif not in ("ignore", "apply"):
            raise ValueError(f"exif: neither ignore nor apply but {reading.exif!r}")
        if reading.alpha == "drop":
            return reading
        red, green, blue = map(int, reading.alpha)
        return cls(reading.exif, (red, green, blue), int(reading.max_pixels))

    def to_dict(self) -> dict:
        """Describe in words and numbers how files become pixels, for other programs too."""
        return {
            **asdict(self),
            "alpha": self.alpha if self.alpha == "drop" else list(self.alpha),
            "decoder": "libjpeg-turbo with the slow integer transform and smooth upsampling of colours, as in Pillow",
            "grey": "of colours (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16, as Pillow's mode L",
            "depth": "of 16-bit values the upper 8 bits; 32-bit and floating-point images are refused",
            "frame": "the first of several",
            "color_profile": "ignored",
        }

    def check_size(self, width: int, height: int) -> None:
        """Check that an image has no more pixels than allowed.

        Raises:
            UnreadableImage: it has more.
        """
        if width * height > self.max_pixels:
            raise UnreadableImage(f"{width} x {height} pixels are more than data.max_pixels={self.max_pixels}")


AS_STORED = Reading()


def decode(data: np.ndarray, channels: int, reading: Reading = AS_STORED) -> np.ndarray:
    """Decode file content [n] uint8 into pixels [H, W, channels] uint8.

    JPEG goes through libjpeg-turbo directly, which gives the same pixels as Pillow and is faster because it makes no
    Pillow image. Pillow decodes what it does not take (CMYK, harmless damage).

    Raises:
        UnreadableImage: damaged, cut short, not an image, too large, or of values without an agreed range.
    """
    content = data.tobytes()
    try:
        array = _decode_jpeg(content, channels, reading) if content.startswith(JPEG_START) else None
        if array is None:
            return _decode_by_pillow(content, channels, reading)
        if reading.exif == "ignore":
            return array
        return turned(array, _orientation(_open(content, reading)))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image, or of a kind that Pillow does not read") from error
    except Image.DecompressionBombError as error:  # of what a file holds beside the size that it states
        raise UnreadableImage(f"more pixels than data.max_pixels={reading.max_pixels}") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _decode_jpeg(content: bytes, channels: int, reading: Reading) -> np.ndarray | None:
    """Decode a JPEG image with libjpeg-turbo; return None where Pillow must see to it.

    Pillow takes some files for whole whose end is missing, such as an interrupted copy that is filled up with zeros,
    and paints the rest grey; libjpeg-turbo tells.

    Raises:
        UnreadableImage: the end is missing, or there are too many pixels.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        reading.check_size(width, height)
        array = simplejpeg.decode_jpeg(content, "CMYK" if colors in ("CMYK", "YCCK") else "RGB")
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise UnreadableImage(f"cut short ({error})") from error
        return None
    if colors not in ("YCbCr", "Gray"):
        return None
    return array if channels == 3 else pixels(Image.fromarray(array).convert("L"))


def _open(content: bytes, reading: Reading) -> Image.Image:
    """Open an image with Pillow, which decodes nothing yet (of most formats)."""
    # Pillow's own limit, of which it takes twice, stays behind this one: it differs by format, and it is the process's.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, reading.max_pixels)
    image = Image.open(io.BytesIO(content))
    reading.check_size(*image.size)
    return image


def from_pillow(image: Image.Image, channels: int, reading: Reading = AS_STORED) -> np.ndarray:
    """Turn a Pillow image into pixels [H, W, channels] uint8, as `decode` does with its file; the image stays as it is.

    Raises:
        UnreadableImage: see decode.
    """
    information = image.info
    image.info = dict(information)
    try:
        return _pixels_of(image, channels, reading)
    finally:
        image.info = information


def _decode_by_pillow(content: bytes, channels: int, reading: Reading) -> np.ndarray:
    return _pixels_of(_open(content, reading), channels, reading, content)


def _pixels_of(image: Image.Image, channels: int, reading: Reading, content: bytes = b"") -> np.ndarray:
    """Return the pixels [H, W, channels] uint8 of an image, whose `info` may change.

    Args:
        content: the image's file, where it is at hand; see _over_background.
    """
    if image.format in PROGRAMS:
        raise UnreadableImage(f"{image.format} is not pixels but a program that draws them; store it as PNG")
    image.load()
    reading.check_size(*image.size)  # an icon holds images of sizes that its header does not state
    mode = "RGB" if channels == 3 else "L"
    if reading.alpha != "drop" and image.has_transparency_data:
        flat = _over_background(image, content, reading.alpha)
    else:
        image.info.pop("transparency", None)  # Pillow would warn that it is dropped
        flat = _eight_bits(image)
    orientation = 1 if reading.exif == "ignore" else _orientation(image)
    if flat.mode == "LAB":  # which Pillow converts to RGB alone
        flat = flat.convert("RGB")
    flat = flat.convert(mode)
    del image  # a large one takes much memory
    return turned(pixels(flat), orientation)


def pixels(image: Image.Image) -> np.ndarray:
    """Turn a Pillow image into an array [H, W, C] uint8."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def as_image(array: np.ndarray) -> Image.Image:
    """Turn pixels [H, W, C] uint8 into a Pillow image."""
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring an image to 8 bits a channel, which Pillow's own conversion would do by clipping at 255.

    The upper 8 bits are kept, as Pillow keeps them of colours with 16 bits: a picture is the same in grey and in RGB.

    Raises:
        UnreadableImage: nothing says which value is white.
    """
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in SIXTEEN_BITS_AS_I):
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]  # Pillow reads TIFF images of 12 bits without scaling them
        grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        # Pillow inverts the negatives of 8 bits, and leaves those of more bits as they are.
        return Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey)
    if image.mode in NO_RANGE:
        raise UnreadableImage(
            f"{NO_RANGE[image.mode]} have no agreed range of brightness; store it with 8 or 16 bits a channel"
        )
    return image


def _over_background(image: Image.Image, content: bytes, background: tuple[int, int, int]) -> Image.Image:
    """Lay an image with transparency over a background; return an RGB image.

    Args:
        content: the image's file, which says how many bits a transparent colour has; without it, 8 are assumed.
    """
    transparent = image.info.get("transparency")
    flat = _eight_bits(image)
    if flat is not image:  # grey of 16 bits, of which one value is transparent
        colours = flat.convert("RGB")
        alpha = Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8))
    else:
        if transparent is not None and image.format == "PNG":
            depth = content[PNG_DEPTH] if content else 8
            image.info["transparency"] = _like_pixels(transparent, image.mode, depth)
        with_alpha = image.convert("RGBA")
        colours, alpha = with_alpha.convert("RGB"), with_alpha.getchannel("A")
    result = Image.new("RGB", image.size, background)
    result.paste(colours, mask=alpha)
    return result


def _like_pixels(transparent, mode: str, depth: int):
    """Return the transparent colour of a PNG image as 8 bits, as Pillow gives the pixels but not this colour."""
    if mode == "RGB" and depth == 16:
        return tuple(value >> 8 for value in transparent)
    if mode == "1":
        return 255 if transparent else 0
    if mode == "L" and depth < 8:
        return transparent * (255 // (2**depth - 1))
    return transparent


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, from 1 to 8; 1, as it is stored, where there is none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata, at which every viewer shows the image as it is stored
        return 1
    return orientation if orientation in range(1, 9) else 1


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror pixels [H, W, C] to how they are to be seen, by an EXIF orientation from 1 to 8.

    Source: EXIF 2.32, section 4.6.4, tag 274. From 5 on, rows and columns change places before the mirroring.
    """
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    mirrored_rows, mirrored_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    array = array[:: -1 if mirrored_rows else 1, :: -1 if mirrored_columns else 1]
    return np.ascontiguousarray(array)


# Pillow warns from half of its limit on; there is one limit here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
