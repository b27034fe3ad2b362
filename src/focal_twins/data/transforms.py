"""Crops, augments and normalises images, for training and for evaluation.

Every random choice is drawn from a generator keyed by (seed, epoch, position of the sample in the global order), so the
same sample is treated alike whatever the number of workers and devices, and a resumed run repeats an uninterrupted one.
Images are [H, W, C] uint8 arrays, C being 3 (RGB) or 1 (grey).
"""

import math
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor
from mindspore.dataset import vision
from PIL import ImageEnhance

from focal_twins import random_streams
from focal_twins.data.decoding import AS_STORED, Reading, as_image, decode, pixels
from focal_twins.data.image_source import ImageSource, as_list, read_pixels
from focal_twins.data.rand_augment import parse_policy
from focal_twins.data.resizing import FILTER_RULE, RESAMPLING, resize, resize_and_crop
from focal_twins.random_streams import Stream

# Said beside exported files, for programs that know nothing of this one.
NORMALISING_RULE = (
    "of each channel (pixel * scale - mean) / std in float32, pixel being 0 to 255, channels in the order of color; "
    "the input is [batch, channels, height, width]"
)
COVERING_RULE = (
    "factor = max(resize[0] / height, resize[1] / width); the new height and width are max(resize[i], floor(side * "
    "factor + 1e-6))"
)
CROPPING_RULE = (
    "size rows and columns from ((new height - size[0]) / 2, (new width - size[1]) / 2) on, each rounded, halves to "
    "the even number"
)


def normalise(images: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """Normalise pixels [B, H, W, C] uint8 to [B, C, H, W] float32, by mean and deviation of pixels scaled to [0, 1].

    It works plane by plane, which is faster than MindSpore's operators: 60 against 145 us for an image of 224 px.
    """
    batch, height, width, channels = images.shape
    result = np.empty((batch, channels, height, width), np.float32)
    for image, planes in zip(images, result, strict=True):
        for channel in range(channels):
            factor = 1 / (255 * std[channel])
            np.multiply(image[..., channel], np.float32(factor), out=planes[channel], dtype=np.float32)
            planes[channel] -= np.float32(mean[channel] / std[channel])
    return result


def normalise_parts(images: np.ndarray, extents: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """Normalise pixels [B, H, W, C] uint8 as `normalise` does, with zeros where no image is.

    Args:
        extents: [B, 2] (height, width) of each image, which stands in the top left corner.
    """
    result = normalise(images, mean, std)
    for image, (height, width) in zip(result, extents, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return result


def random_resized_crop_box(
    generator: np.random.Generator, width: int, height: int, scale: list[float], ratio: list[float]
) -> tuple[int, int, int, int]:
    """Draw a random crop (left, top, right, bottom) of an image.

    Its area is uniform in `scale` of the image's, its log aspect uniform in `ratio`. After ten attempts that do not fit
    it is the largest central crop of an allowed aspect. Source: torchvision's RandomResizedCrop, which the original
    recipe uses (through timm).
    """
    least, most = np.log(ratio)
    for _ in range(10):
        area = width * height * generator.uniform(scale[0], scale[1])
        aspect = math.exp(generator.uniform(least, most))
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


def draw_color_jitter(generator: np.random.Generator, strength: float) -> list[tuple[str, float]]:
    """Draw factors of brightness, contrast and saturation, in random order.

    Each factor is uniform in [1 - s, 1 + s], at least 0, s being the strength.

    Source: torchvision's ColorJitter as timm calls it, without hue.
    """
    low, high = max(0.0, 1 - strength), 1 + strength
    names = np.array(["Brightness", "Contrast", "Color"])
    return [(str(name), float(generator.uniform(low, high))) for name in generator.permutation(names)]


def jitter_colors(array: np.ndarray, drawn: list[tuple[str, float]]) -> np.ndarray:
    """Apply the factors that draw_color_jitter drew, by Pillow's definitions, to pixels [H, W, C] uint8."""
    image = as_image(array)
    for name, factor in drawn:
        image = getattr(ImageEnhance, name)(image).enhance(factor)
    return pixels(image)


class TrainTransform:
    """Augments an image for training and brings it to pixels [H, W, C] of one size.

    It does a random resized crop, then flips, then the policy or else colour jitter.

    Args:
        size: (height, width) of the result.
        augment: the augment section of a configuration.
        mean: mean of the images' channels, in [0, 1]: the colour of pixels that come in from outside the image.
        cooldown_epoch: the epoch (from 0) from which on augment.cooldown says which of these steps remain.

    Raises:
        PolicyError: augment.auto_augment means nothing.
    """

    def __init__(self, size, augment, seed: int, mean=(0.485, 0.456, 0.406), cooldown_epoch: float = math.inf):
        self.size = size
        self.augment = augment
        self.seed = seed
        self.cooldown_epoch = cooldown_epoch
        self.resampling = RESAMPLING[augment.interpolation]
        fill = tuple(min(255, round(255 * value)) for value in mean)
        fill = fill * 3 if len(fill) == 1 else fill
        self.policy = (
            parse_policy(augment.auto_augment, self.resampling, fill) if augment.auto_augment is not None else None
        )
        self.eval_transform = EvalTransform(size, 1.0, augment.interpolation)

    def mode(self, epoch: int) -> str:
        """Return which steps an epoch does: "all", "crop" (and flips) or "none"."""
        return self.augment.cooldown if epoch >= self.cooldown_epoch else "all"

    def __call__(self, array: np.ndarray, epoch: int, position: int) -> np.ndarray:
        mode, augment = self.mode(epoch), self.augment
        if mode == "none":
            return self.eval_transform(array)
        generator = random_streams.generator(self.seed, Stream.AUGMENTATION, epoch, position)
        height, width = array.shape[:2]
        left, top, right, bottom = random_resized_crop_box(generator, width, height, augment.scale, augment.ratio)
        resample = self.resampling[int(generator.integers(len(self.resampling)))]
        # The crop comes first: the filter must not see pixels outside it.
        array = resize(array[top:bottom, left:right], self.size, resample)
        flip, mirror = generator.random(2)
        if flip < augment.hflip:
            array = vision.HorizontalFlip()(array)
        if mirror < augment.vflip:
            array = vision.VerticalFlip()(array)
        if mode == "crop":
            return array
        if self.policy is not None:
            return np.ascontiguousarray(self.policy(array, generator))
        if augment.color_jitter:
            array = jitter_colors(array, draw_color_jitter(generator, augment.color_jitter))
        return array


class EvalTransform:
    """Resizes pixels of any size, then crops the centre: the result is pixels [H, W, C] of one size.

    The sides become floor(size / crop_ratio), the short one exactly; a crop_ratio of 1 therefore cuts only what
    does not fit the aspect. Pillow's bicubic is the filter of the original's evaluation (PILCUBIC in MindSpore).

    Args:
        size: (height, width) of the result.
        interpolation: augment.interpolation of a configuration; "random" is bicubic here.
    """

    def __init__(self, size: tuple[int, int], crop_ratio: float, interpolation: str):
        self.size = size
        self.crop_ratio = crop_ratio
        # The small addend keeps 224 / 0.875 from coming out as 255.99999.
        self.resize_size = [math.floor(side / crop_ratio + 1e-6) for side in size]
        self.resample = RESAMPLING[interpolation][-1]

    def placement(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size (height, width) to which an image is resized, and where (top, left) the crop of it begins."""
        factor = max(self.resize_size[0] / height, self.resize_size[1] / width)
        new_height = max(self.resize_size[0], int(height * factor + 1e-6))
        new_width = max(self.resize_size[1], int(width * factor + 1e-6))
        top, left = round((new_height - self.size[0]) / 2), round((new_width - self.size[1]) / 2)
        return (new_height, new_width), (top, left)

    def position(self, point: tuple[float, float], image_size: tuple[int, int]) -> tuple[float, float] | None:
        """Return where in the result a point (x, y) of an image (height, width) lies; None outside of the crop."""
        (height, width), (top, left) = self.placement(*image_size)
        x, y = point[0] * width / image_size[1] - left, point[1] * height / image_size[0] - top
        return (x, y) if 0 <= x < self.size[1] and 0 <= y < self.size[0] else None

    def visible_box(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the box (left, top, right, bottom) of an image (height, width) that the result shows."""
        (height, width), (top, left) = self.placement(*image_size)
        scale_x, scale_y = image_size[1] / width, image_size[0] / height
        return left * scale_x, top * scale_y, (left + self.size[1]) * scale_x, (top + self.size[0]) * scale_y

    def __call__(self, array: np.ndarray) -> np.ndarray:
        resized, corner = self.placement(*array.shape[:2])
        return resize_and_crop(array, resized, corner, self.size, self.resample)


class Preprocessing:
    """Turns a file's content into a model's input; evaluation, prediction and exported models all use it.

    It has two steps, `pixels` and `normalise`, because bytes sent between processes are a quarter as large as floats.

    Args:
        mean, std: mean and deviation of each channel, of pixels scaled to [0, 1]: one of grey images, three of RGB.
        reading: says how files become pixels.
    """

    def __init__(self, transform: EvalTransform, mean: list[float], std: list[float], reading: Reading = AS_STORED):
        self.transform, self.mean, self.std, self.reading = transform, mean, std, reading

    @classmethod
    def of(cls, config, size: tuple[int, int]) -> "Preprocessing":
        """Build the preprocessing of a configuration, for a model that takes images of (height, width)."""
        transform = EvalTransform(size, config.eval.crop_ratio, config.augment.interpolation)
        return cls(transform, config.data.mean, config.data.std, Reading.from_dict(config.data.model_dump()))

    @property
    def channels(self) -> int:
        return len(self.mean)

    def decode(self, content: np.ndarray) -> np.ndarray:
        """Decode file content [n] uint8 into pixels [H, W, C] uint8 of the image's own size.

        Raises:
            UnreadableImage: see decoding.decode.
        """
        return decode(content, self.channels, self.reading)

    def read(self, source: ImageSource) -> np.ndarray:
        """Return the pixels [H, W, C] uint8 of an image at its own size; see image_source.read_pixels."""
        return read_pixels(source, self.channels, self.reading)

    def pixels(self, content: np.ndarray) -> np.ndarray:
        """Turn file content [n] uint8 into pixels [H, W, C] uint8.

        Raises:
            UnreadableImage: see decode.
        """
        return self.transform(self.decode(content))

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Tensor:
        """Turn an image or several into the input [B, C, H, W] float32 of the model, as evaluation and prediction do.

        Args:
            images: see image_source.read_pixels.

        Raises:
            UnreadableImage, OSError, TypeError: see image_source.read_pixels.
        """
        sources, _ = as_list(images)
        return Tensor(self.normalise(np.stack([self.transform(self.read(source)) for source in sources])))

    def at(self, size: tuple[int, int]) -> "Preprocessing":
        """Return the same preprocessing for a model that takes images of another (height, width)."""
        transform = EvalTransform(size, self.transform.crop_ratio, self.transform.resample.name.lower())
        return type(self)(transform, self.mean, self.std, self.reading)

    def blank(self) -> np.ndarray:
        """Return black pixels [H, W, C] uint8, which stand for an image that cannot be read."""
        return np.zeros((*self.transform.size, self.channels), np.uint8)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Normalise a batch of pixels [B, H, W, C] uint8 to [B, C, H, W] float32."""
        return normalise(pixels, self.mean, self.std)

    def to_dict(self) -> dict:
        """Describe the preprocessing in words and numbers, for other programs."""
        transform = self.transform
        return {
            "color": "RGB" if self.channels == 3 else "grey",
            "channels": self.channels,
            "reading": self.reading.to_dict(),
            "resize": list(transform.resize_size),
            "size": list(transform.size),
            "crop_ratio": transform.crop_ratio,
            "interpolation": transform.resample.name.lower(),
            "antialias": True,
            "scale": 1 / 255,
            "mean": list(self.mean),
            "std": list(self.std),
            "rules": {
                "resize": COVERING_RULE,
                "interpolation": FILTER_RULE,
                "crop": CROPPING_RULE,
                "normalisation": NORMALISING_RULE,
            },
        }

    @classmethod
    def from_dict(cls, description: dict) -> "Preprocessing":
        """Rebuild the preprocessing that `to_dict` described.

        Raises:
            KeyError, TypeError, ValueError: `description` is not such a description.
        """
        height, width = map(int, description["size"])
        transform = EvalTransform((height, width), float(description["crop_ratio"]), description["interpolation"])
        if not len(description["mean"]) == len(description["std"]) == description["channels"]:
            raise ValueError("channels, mean and deviation do not agree")
        reading = Reading.from_dict(description.get("reading", {}))  # files exported earlier do not have it
        return cls(transform, list(map(float, description["mean"])), list(map(float, description["std"])), reading)
