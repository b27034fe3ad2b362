"""Turns an image file into the input of a detector, as a description in words and numbers says."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from focal_twins.config.detection import canvases_of
from focal_twins.config.load import Config
from focal_twins.data.box_transforms import placed
from focal_twins.data.decoding import Reading
from focal_twins.data.dense_transforms import BILINEAR_RULE, INTERPOLATION, pad, resize_pixels
from focal_twins.data.image_source import ImageSource, read_pixels
from focal_twins.data.transforms import NORMALISING_RULE, normalise_parts
from focal_twins.models.detectors.detector import Detector
from focal_twins.models.detectors.selection import SelectionRule
from focal_twins.tasks.preprocessing_file import read_preprocessing

RESIZING_RULE = (
    "factor = min(max(short_side, long_side) / longer side, min(short_side, long_side) / shorter side); the new sides "
    "are floor(side * factor + 0.5), at least 1. Where no canvas holds these, the factor is the largest by which the "
    "image fits one, and the sides are floor(side * factor + 1e-6), at least 1"
)
PLACING_RULE = "in the top left corner of the first canvas that holds it; 0 beyond, after normalisation"
BOX_RULE = (
    "(x1, y1, x2, y2) in pixels of the canvas; clip them to the image's extent there, then multiply x by image width / "
    "extent width and y by image height / extent height; a mask lies over the box before it is clipped: scale that, "
    "paste the mask over it, and cut it off at the edges of the image"
)


def selection_rule(config: Config, model: Detector) -> SelectionRule:
    """Return by which rule a configuration selects a model's detections."""
    section = config.eval
    return SelectionRule.of(model, section.score_threshold, section.nms_iou, section.max_detections)


@dataclass(frozen=True)
class ImagePreparation:
    """Says how an image becomes the input of a detector, and which of the candidates are detections.

    Attributes:
        channels: 3 (RGB) or 1 (grey).
        short_side, long_side: bounds of the resized image's sides.
        canvases: (height, width) of the inputs.
        mean, std: of pixels scaled to [0, 1], for each channel.
        rule: selects detections.
        reading: says how files become pixels.
        output: what the network gives, see export_form.py; None for a network that is in no exported file.
    """

    channels: int
    short_side: int
    long_side: int
    canvases: tuple[tuple[int, int], ...]
    mean: list[float]
    std: list[float]
    rule: SelectionRule
    reading: Reading
    output: str | None = None

    @classmethod
    def of(cls, config: Config, model: Detector) -> "ImagePreparation":
        """Return how a configuration evaluates images."""
        data, section = config.data, config.eval
        return cls(
            model.in_chans,
            section.short_side,
            section.long_side,
            tuple(canvases_of(config)),
            data.mean,
            data.std,
            selection_rule(config, model),
            Reading.from_dict(data.model_dump()),
        )

    def on_canvas(self, canvas: tuple[int, int], output: str | None = None) -> "ImagePreparation":
        """Return the same for one canvas, as exported files have, and for the output of such a file."""
        return replace(self, canvases=(canvas,), output=output)

    def to_dict(self) -> dict:
        """Describe all of it for other programs."""
        return {
            "color": "RGB" if self.channels == 3 else "grey",
            "channels": self.channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "interpolation": INTERPOLATION,
            "antialias": False,
            "canvases": [list(canvas) for canvas in self.canvases],
            "scale": 1 / 255,
            "mean": list(self.mean),
            "std": list(self.std),
            **asdict(self.rule),
            "reading": self.reading.to_dict(),
            "output": self.output,
            "rules": {
                "resize": RESIZING_RULE,
                "interpolation": BILINEAR_RULE,
                "placement": PLACING_RULE,
                "normalisation": NORMALISING_RULE,
                "boxes": BOX_RULE,
            },
        }

    @classmethod
    def from_dict(cls, content: dict) -> "ImagePreparation":
        """Read a description back.

        Raises:
            UserError: it lacks something.
        """
        own, rule = read_preprocessing(content, cls, SelectionRule)
        own["canvases"] = tuple((height, width) for height, width in own["canvases"])
        return cls(**own, rule=SelectionRule(**rule))

    def read(self, source: ImageSource) -> np.ndarray:
        """Return the pixels [H, W, C] uint8 of an image; see image_source.read_pixels."""
        return read_pixels(source, self.channels, self.reading)

    def resized(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Return pixels [H, W, C] as they are on their canvas [*extent, C], and the canvas (height, width)."""
        height, width = pixels.shape[:2]
        canvas, extent = placed((height, width), (self.short_side, self.long_side), self.canvases)
        return resize_pixels(pixels, extent), canvas

    def inputs(self, resized: list[np.ndarray], canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Turn resized pixels into images [B, C, *canvas] float32 and their extents [B, 2] int32."""
        extents = np.array([pixels.shape[:2] for pixels in resized], np.int32)
        on_canvas = np.stack([pad(pixels, canvas, 0) for pixels in resized])
        return normalise_parts(on_canvas, extents, self.mean, self.std), extents
