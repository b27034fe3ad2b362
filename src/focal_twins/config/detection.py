"""Defines the sections of a configuration that only detection has, and checks that its sections fit together."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from focal_twins.config.images import ImageData, Share, Sides, check_ascending, check_channels
from focal_twins.config.schema import Fraction, PathText, Positive, Section
from focal_twins.models import ArgumentError
from focal_twins.models.backbones.backbone import image_size, size_of_pretraining
from focal_twins.models.detectors.detector import PAD_DIVISOR, check_canvas
from focal_twins.phrases import counted

Lengths = Annotated[list[Positive], Field(min_length=1)]


class DetectionData(ImageData):
    """Says where images and their COCO JSON come from, which of them count, and on what canvases they are put."""

    # Of two keys for the validation images, one is null.
    ALTERNATIVES: ClassVar[dict[str, str]] = {"val_fraction": "val_annotations"}

    path: PathText = "data/coco"  # the folders and files below are in it
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_annotations: str | None = "annotations/instances_val2017.json"
    # In place of val_annotations: so large a share of the training images is kept for validation. Which ones follows
    # from their names and split_seed, whatever the run's seed is and whichever other images there are.
    val_fraction: Share | None = None
    split_seed: Annotated[int, Field(ge=0)] = 0  # also of subsets by share
    # Names of the classes to learn, or a file with a name on each line; null: all of the JSON, in order of their ids.
    classes: list[str] | str | None = None
    # Null: all images; a share of them; or a file with the file_name of an image on each line.
    train_subset: Share | PathText | None = None
    val_subset: Share | PathText | None = None
    # Sizes (height, width) of the network's inputs; an image stands in the top left corner of the first that holds it.
    canvases: Annotated[list[Sides], Field(min_length=1)] | None = None  # null: the backbone's img_size alone
    exif: Literal["ignore", "apply"] = "apply"  # as the originals, whose OpenCV turns images; boxes are never turned


class DetectionAugment(Section):
    """Says how training augments images, and their boxes and masks with them."""

    # Images are resized, the aspect kept, as large as both sides allow; the short one is drawn from these.
    short_sides: Lengths = Field([480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800])
    long_side: Positive = 1333
    crop: bool = True  # one image in two, drawn, is first resized by crop_short_sides and cropped, as DETR does
    crop_short_sides: Lengths = Field([400, 500, 600])
    crop_range: Sides = Field([384, 600])  # least and greatest side of a crop; a smaller image is cropped to its side
    hflip: Fraction = 0.5

    check_range = field_validator("crop_range")(check_ascending)


class DetectionEval(Section):
    """Says how evaluation prepares images, and which detections count."""

    batch_size: Positive = 1  # more than 1 needs images of one canvas
    interval: Positive = 1  # epochs between evaluations while training
    short_side: Positive = 800  # images are resized, the aspect kept, as large as both sides allow
    long_side: Positive = 1333
    score_threshold: Fraction | None = None  # detections score higher than this; null: the network's
    nms_iou: Fraction | None = None  # boxes of a class that overlap more than this are one; null: the network's
    max_detections: Positive | None = None  # of an image, the best ones; null: the network's


def canvases_of(config) -> list[tuple[int, int]]:
    """Return the canvases (height, width) of a Config, in the order in which images try them."""
    if config.data.canvases is None:
        return [image_size(config.backbone.resolved()["img_size"])]
    return [(height, width) for height, width in config.data.canvases]


def check_detection(config) -> None:
    """Check that the sections of a Config fit each other.

    Raises:
        ConfigError: they do not; the message names the key.
    """
    backbone, num_classes, data = config.backbone.resolved(), config.model.resolved()["num_classes"], config.data
    check_channels(config, "backbone", backbone["in_chans"])
    if isinstance(data.classes, list):
        if repeated := [name for name in data.classes if data.classes.count(name) > 1]:
            raise config.error("data.classes", f"names {repeated[0]!r} twice")
        if len(data.classes) != num_classes:
            raise config.error(
                "data.classes",
                f"names {counted(len(data.classes), 'class')}, and the model has {num_classes} (model.num_classes)",
            )
    if config.amp.level in ("O2", "O3"):
        raise config.error("amp.level", f"{config.amp.level} would round boxes to float16; detection has O0 and O1")
    for canvas in data.canvases or ():
        shown = f"{canvas[0]} x {canvas[1]}"
        sizes = {"img_size": canvas, "pretrain_size": list(size_of_pretraining(backbone))}
        try:
            check_canvas((canvas[0], canvas[1]))
            replace(config.backbone, arguments=config.backbone.arguments | sizes).resolved()
        except ArgumentError as error:
            raise config.error("data.canvases", f"{shown}: {error.reason}") from error
    augment = config.augment
    _check_sides(config, "augment", "short_sides", max(augment.short_sides))
    if augment.crop and max(augment.crop_short_sides) > augment.long_side:
        raise config.error("augment.crop_short_sides", f"exceed augment.long_side {augment.long_side}")
    _check_sides(config, "eval", "short_side", config.eval.short_side)


def _check_sides(config, section: str, key: str, short_side: int) -> None:
    """Check the greatest short side of a section, and that a canvas holds such an image, lying or standing.

    Whether every image finds a canvas depends on the images' shapes, too: see DetectionTrainSamples.
    """
    long_side, canvases = getattr(config, section).long_side, canvases_of(config)
    if short_side > long_side:
        raise config.error(f"{section}.{key}", f"{short_side} exceeds {section}.long_side {long_side}")
    if not any(min(canvas) >= short_side and max(canvas) >= long_side for canvas in canvases):
        raise config.error(
            "data.canvases" if config.data.canvases else "backbone.img_size",
            f"no canvas holds images of {short_side} x {long_side} ({section}.{key}, {section}.long_side); "
            f"{nearest(canvases, (short_side, long_side))}",
        )


def nearest(canvases: list[tuple[int, int]], size: tuple[int, int]) -> str:
    """Say which canvas is nearest to holding an image of a size (height, width), and which one would."""

    def lacking(canvas: tuple[int, int]) -> int:
        return sum(max(side - have, 0) for side, have in zip(size, canvas, strict=True))

    canvas = min(canvases, key=lacking)
    height, width = (-(-side // PAD_DIVISOR) * PAD_DIVISOR for side in size)
    return f"the nearest is {canvas[0]} x {canvas[1]}; add one of {height} x {width}, or make the images smaller"
