"""Defines the sections of a configuration that only segmentation has, and checks that its sections fit together."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from focal_twins.config.images import ImageData, Sides, check_ascending, check_channels
from focal_twins.config.schema import Fraction, PathText, Positive, Rate, Section
from focal_twins.models.backbones.backbone import image_size
from focal_twins.phrases import counted

PixelValue = Annotated[int, Field(ge=0, lt=2**16)]  # what a label image can hold
Factor = Annotated[float, Field(gt=0)]
Range = Annotated[list[Factor], Field(min_length=2, max_length=2)]


class SegmentationData(ImageData):
    """Says where images and their label images come from and how they are read."""

    # PATH/images/training/*.jpg belongs to PATH/annotations/training/*.png of the same stem; folders within count too.
    path: PathText = "data/ade20k"
    images: str = "images"
    labels: str = "annotations"
    train: str = "training"
    val: str = "validation"
    image_suffix: str = ""  # what stands behind the common part of a name: _leftImg8bit in Cityscapes
    label_suffix: str = ""  # likewise: _gtFine_labelTrainIds in Cityscapes; other label images are passed over
    classes: list[str] | str | None = None  # names of the classes, or a file with a name on each line; null: class N
    reduce_zero_label: bool = False  # 0 means unlabelled and 1 is the first class, as in ADE20K's files
    ignore_index: PixelValue = 255  # the pixel value that counts in no loss and no figure
    exif: Literal["ignore", "apply"] = (
        "apply"  # as the originals, whose OpenCV turns images; label images are never turned
    )


class SegmentationAugment(Section):
    """Says how training augments images. The size of the crop is the network's img_size."""

    resize: Sides | None = Field([2048, 512])  # bounds of the long and the short side, the aspect kept; null: none
    ratio_range: Range = Field([0.5, 2.0])  # each image is resized to `resize` times a factor from here
    cat_max_ratio: Annotated[float, Field(gt=0, le=1)] = 0.75  # largest share of a class in a crop; 1: no limit
    hflip: Fraction = 0.5
    photometric: bool = True  # each distortion below happens with probability one half
    brightness: Rate = 32.0  # largest addend to pixels 0 .. 255
    contrast: Range = Field([0.5, 1.5])  # factors
    saturation: Range = Field([0.5, 1.5])  # factors; grey images have none
    hue: Annotated[int, Field(ge=0, le=90)] = 18  # largest turn, in units of two degrees; grey images have none

    check_ranges = field_validator("ratio_range", "contrast", "saturation")(check_ascending)


class SegmentationLoss(Section):
    """Says how the loss is averaged."""

    # all: over all pixels, the ignored ones included, as the originals' published weights were trained; valid: over
    # the pixels that have a class
    mean: Literal["all", "valid"] = "all"


class SegmentationEval(Section):
    """Says how evaluation prepares and scores images."""

    batch_size: Positive = 1  # more than 1 needs images of one size
    interval: Positive = 1  # epochs between evaluations while training
    # whole: images as they are, each size a graph of its own; canvas: padded to multiples of canvas_step, so that there
    # are few sizes; slide: by windows of the network's img_size; auto: whole on CPU, slide on Ascend
    mode: Literal["auto", "whole", "slide", "canvas"] = "auto"
    canvas_step: Positive | None = None  # of canvas: sides are padded up to multiples of this many pixels
    graphs: Positive = 4  # sizes whose graphs are kept, beside the one of img_size; the least recently used one goes
    resize: Sides | None = Field([2048, 512])  # bounds of the long and the short side, the aspect kept; null: none
    stride: Sides | None = None  # steps (vertical, horizontal) of sliding crops; null: two thirds of the crop
    scales: list[Factor] = Field([1.0], min_length=1)  # `resize` times each of these, the probabilities averaged
    flip: bool = False  # average the probabilities of each image and of its mirror image


def check_segmentation(config) -> None:
    """Check that the sections of a Config fit each other.

    Raises:
        ConfigError: they do not; the message names the key.
    """
    backbone, num_classes, data = config.backbone.resolved(), config.model.resolved()["num_classes"], config.data
    check_channels(config, "backbone", backbone["in_chans"])
    if isinstance(data.classes, list) and len(data.classes) != num_classes:
        raise config.error(
            "data.classes",
            f"names {counted(len(data.classes), 'class')}, and the model has {num_classes} (model.num_classes)",
        )
    if data.reduce_zero_label and data.ignore_index <= num_classes:
        raise config.error(
            "data.ignore_index",
            f"{data.ignore_index} is also one of the {num_classes} classes, which are 1 to {num_classes} in the files "
            f"and 0 to {num_classes - 1} once data.reduce_zero_label has taken 1 off",
        )
    if (config.eval.mode == "canvas") != (config.eval.canvas_step is not None):
        problem = "is needed by eval.mode canvas" if config.eval.mode == "canvas" else "is for eval.mode canvas alone"
        raise config.error("eval.canvas_step", problem)
    if config.eval.stride is not None:
        if config.eval.mode not in ("slide", "auto"):
            raise config.error("eval.stride", "is for eval.mode slide alone")
        sides = image_size(backbone["img_size"])
        if any(step > side for step, side in zip(config.eval.stride, sides, strict=True)):
            raise config.error(
                "eval.stride", f"{config.eval.stride} leaves gaps between windows of {list(sides)} pixels (img_size)"
            )
    if data.ignore_index == 255 and num_classes > 255:
        raise config.error("data.ignore_index", f"255 is one of the {num_classes} classes; name a value beyond them")
