"""What happens to one image, between its file's bytes and an array of pixels.

Every random choice is drawn from a generator keyed by (seed, epoch, position of the sample in the global order), so the
same sample is treated alike whatever the number of workers and devices, and a resumed run repeats an uninterrupted one.
"""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

INTERPOLATION = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
AUGMENTATION_STREAM = 1  # tells these generators from others of the same seed


class UnreadableImage(Exception):
    """Bytes that are not an image Pillow can decode."""


def decode(data: np.ndarray, channels: int) -> Image.Image:
    """File content [n] uint8 as an RGB (3 channels) or grey (1) image.

    Raises:
        UnreadableImage: damaged, cut short or not an image.
    """
    try:
        return Image.open(io.BytesIO(data.tobytes())).convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def pixels(image: Image.Image) -> np.ndarray:
    """Image as [H, W, C] uint8."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one sample in one epoch."""
    return np.random.default_rng([seed, AUGMENTATION_STREAM, epoch, position])


def random_resized_crop_box(
    generator: np.random.Generator, width: int, height: int, scale: list[float], ratio: list[float]
) -> tuple[int, int, int, int]:
    """A random crop (left, top, right, bottom): area uniform in `scale` of the image, log aspect uniform in log `ratio`.

    After ten attempts that do not fit, the largest central crop of an allowed aspect. Source: torchvision's
    RandomResizedCrop, which the original recipe uses (through timm).
    """
    log_ratio = np.log(ratio)
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(*log_ratio))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(generator.integers(0, height - crop_height + 1))
            left = int(generator.integers(0, width - crop_width + 1))
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, round(height * aspect))
    crop_height = min(height, round(width / aspect))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


class TrainTransform:
    """Random-resized crop and flips: an image to [H, W, C] uint8 pixels.

    Args:
        size: (height, width) of the result.
        augment: the augment section of a configuration.
    """

    def __init__(self, size: tuple[int, int], augment, seed: int):
        self.size = size
        self.augment = augment
        self.seed = seed

    def __call__(self, image: Image.Image, epoch: int, position: int) -> np.ndarray:
        generator = sample_generator(self.seed, epoch, position)
        augment = self.augment
        box = random_resized_crop_box(generator, image.width, image.height, augment.scale, augment.ratio)
        # Cropped first: resizing with `box` would let the filter see pixels outside the crop.
        image = image.crop(box).resize(self.size[::-1], INTERPOLATION[augment.interpolation])
        flip, mirror = generator.random(2)
        if flip < augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if mirror < augment.vflip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return pixels(image)


class EvalTransform:
    """Resize, then centre crop: an image to [H, W, C] uint8 pixels.

    The sides become floor(size / crop_ratio), the short one exactly; a crop_ratio of 1 therefore cuts only what
    does not fit the aspect. Pillow's bicubic is the filter of the original's evaluation (PILCUBIC in MindSpore).
    """

    def __init__(self, size: tuple[int, int], crop_ratio: float, interpolation: str):
        self.size = size
        # Guards against 224 / 0.875 coming out as 255.99999.
        self.cover = [math.floor(side / crop_ratio + 1e-6) for side in size]
        self.interpolation = INTERPOLATION[interpolation]

    def __call__(self, image: Image.Image) -> np.ndarray:
        height, width = self.size
        factor = max(self.cover[0] / image.height, self.cover[1] / image.width)
        new_height = max(self.cover[0], int(image.height * factor + 1e-6))
        new_width = max(self.cover[1], int(image.width * factor + 1e-6))
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), self.interpolation)
        left, top = round((new_width - width) / 2), round((new_height - height) / 2)
        return pixels(image.crop((left, top, left + width, top + height)))
