"""Turns an image file into the input of a segmentor, as a description in words and numbers says."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from focal_twins.config.load import Config
from focal_twins.data.decoding import Reading
from focal_twins.data.dense_transforms import (
    BILINEAR_RULE,
    INTERPOLATION,
    rescaled_size,
    resize_pixels,
    scaled_bounds,
)
from focal_twins.data.image_source import ImageSource, read_pixels
from focal_twins.data.transforms import NORMALISING_RULE, normalise
from focal_twins.models.segmentors.segmentor import Segmentor
from focal_twins.tasks.preprocessing_file import read_preprocessing
from focal_twins.tasks.segmentation.export_form import LABELS
from focal_twins.tasks.segmentation.inference_rule import InferenceRule

RESIZING_RULE = (
    "factor = min(max(resize) / longer side, min(resize) / shorter side); the new sides are floor(side * factor + 0.5) "
    "and at least 1; where resize is null, the image keeps its size"
)
SLIDING_RULE = (
    "the normalised image is padded with 0, on the right and below, to window at least. Along each side windows begin "
    "at every multiple of stride until one reaches the end; that one is moved back to end with the side. Logits are "
    "resized to the window and averaged where windows overlap, cut to the resized image, and resized to the image; "
    "every resizing of logits is bilinear between the same pixels as that of images, without rounding. Of labels, the "
    "border within an overlap is at (start of the first + window + start of the second) // 2, and pixel i of the image "
    "takes the one at floor(i * resized side / side)"
)


@dataclass(frozen=True)
class ImagePreparation:
    """Says how an image becomes the input of a segmentor, and how its output belongs to the image.

    Attributes:
        channels: 3 (RGB) or 1 (grey).
        resize: bounds of the long and the short side of the resized image, the aspect kept; None: its own size.
        scales: `resize` times each of these; probabilities are averaged.
        mean, std: of pixels scaled to [0, 1], for each channel.
        rule: how the resized image goes through the network; what pads it is 0 after normalising.
        num_classes: number of classes.
        reading: says how files become pixels.
        output: what the network gives, see export_form.py; None for a network that is in no exported file.
    """

    channels: int
    resize: list[int] | None
    scales: list[float]
    mean: list[float]
    std: list[float]
    rule: InferenceRule
    num_classes: int
    reading: Reading
    output: str | None = None

    @classmethod
    def of(cls, config: Config, model: Segmentor, mode: str) -> "ImagePreparation":
        """Return how a configuration evaluates images."""
        data, section = config.data, config.eval
        return cls(
            model.in_chans,
            section.resize,
            section.scales,
            data.mean,
            data.std,
            InferenceRule.of(config, model.img_size, mode),
            model.num_classes,
            Reading.from_dict(data.model_dump()),
        )

    def of_exported(self, output: str) -> "ImagePreparation":
        """Return the same for an exported file, over one size: by windows, without other scales and mirror images."""
        rule = replace(self.rule, mode="slide", canvas_step=None, flip=False)
        return replace(self, scales=[1.0], rule=rule, output=output)

    @property
    def gives_labels(self) -> bool:
        """Whether the network's output is labels; otherwise it is logits."""
        return self.output == LABELS

    def to_dict(self) -> dict:
        """Describe all of it for other programs."""
        rule = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.rule).items()}
        return {
            "color": "RGB" if self.channels == 3 else "grey",
            "channels": self.channels,
            "resize": self.resize,
            "interpolation": INTERPOLATION,
            "antialias": False,
            "scales": self.scales,
            "scale": 1 / 255,
            "mean": list(self.mean),
            "std": list(self.std),
            **rule,
            "num_classes": self.num_classes,
            "reading": self.reading.to_dict(),
            "output": self.output,
            "rules": {
                "resize": RESIZING_RULE,
                "interpolation": BILINEAR_RULE,
                "normalisation": NORMALISING_RULE,
                "windows": SLIDING_RULE,
            },
        }

    @classmethod
    def from_dict(cls, content: dict) -> "ImagePreparation":
        """Read a description back.

        Raises:
            UserError: it lacks something.
        """
        own, rule = read_preprocessing(content, cls, InferenceRule)
        rule = {key: tuple(value) if isinstance(value, list) else value for key, value in rule.items()}
        return cls(**own, rule=InferenceRule(**rule))

    def read(self, source: ImageSource) -> np.ndarray:
        """Return the pixels [H, W, C] uint8 of an image; see image_source.read_pixels."""
        return read_pixels(source, self.channels, self.reading)

    def scaled(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the pixels [H, W, C] uint8 resized to each scale."""
        size = pixels.shape[:2]
        return [
            resize_pixels(pixels, rescaled_size(size, scaled_bounds(self.resize, size, scale))) for scale in self.scales
        ]

    def normalise(self, pixels: list[np.ndarray]) -> np.ndarray:
        """Turn pixels [h, w, C] of images of one size into inputs [B, C, h, w] float32."""
        return normalise(np.stack(pixels), self.mean, self.std)
