"""Defines the sections of a configuration that only classification has, and checks that its sections fit together."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from focal_twins.config.images import ImageData, Share, check_channels
from focal_twins.config.schema import Fraction, PathText, Positive, Rate, Section
from focal_twins.data.rand_augment import PolicyError, parse_policy


class ClassificationData(ImageData):
    """Says where images come from and how they are read."""

    ALTERNATIVES: ClassVar[dict[str, str]] = {"val_fraction": "val"}

    path: PathText = (
        "data/imagenet"  # folder that holds train and val: folders, zip or MindRecord files (docs/training.md)
    )
    train: str = "train"
    val: str | None = "val"
    # In place of val: so large a share of each class's training images is kept for validation. Which ones follows from
    # their names and split_seed, whatever the run's seed is and whichever other images there are.
    val_fraction: Share | None = None
    split_seed: Annotated[int, Field(ge=0)] = 0


class ClassificationAugment(Section):
    """Says how training augments images and targets."""

    scale: list[Annotated[float, Field(gt=0, le=1)]] = Field([0.08, 1.0], min_length=2, max_length=2)  # crop area
    ratio: list[Annotated[float, Field(gt=0)]] = Field([0.75, 4 / 3], min_length=2, max_length=2)  # crop width / height
    interpolation: Literal["bicubic", "bilinear", "random"] = (
        "bicubic"  # random: one of the two per image and operation
    )
    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    repeats: Positive = (
        1  # repeated augmentation (arXiv 1901.09335): copies of an image, each augmented anew, in an epoch
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    auto_augment: str | None = None  # for example rand-m9-mstd0.5-inc1 (data/rand_augment.py)
    color_jitter: Rate = 0.0  # strength for brightness, contrast and saturation; left out where auto_augment is on
    erasing: Fraction = 0.0  # probability of random erasing
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    erasing_count: Positive | list[Positive] = 1  # rectangles, or the least and the most of them
    mixup: Rate = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: Rate = 0.0
    mixup_prob: Fraction = 1.0  # probability of mixing a batch at all
    switch_prob: Fraction = 0.5  # probability of cutmix where both are on
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    mixup_off_epoch: Positive | None = None  # whole epochs after which nothing is mixed any more
    cutmix_minmax: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None, min_length=2, max_length=2
    )  # least and greatest share of the sides that the box takes, in place of its Beta distribution
    cooldown: Literal["all", "crop", "none"] = (
        "all"  # what remains in the schedule's cool-down: all, crop and flips, or images as in evaluation
    )

    @field_validator("scale", "ratio", "erasing_count", "cutmix_minmax")
    @classmethod
    def check_range(cls, values):
        """Check that two values are the least and the greatest."""
        if isinstance(values, list) and (len(values) != 2 or values[0] > values[1]):
            raise ValueError("must be two values in ascending order")
        return values


class ClassificationLoss(Section):
    """Says how the training loss weights the classes."""

    # A weight for each class, in the order of the labels; balanced: the number of training images divided by that of
    # classes and that of the class's images; null: none. The loss is the weighted mean over the images of an update.
    class_weights: Literal["balanced"] | list[Annotated[float, Field(gt=0)]] | None = None


class ClassificationEval(Section):
    """Says how evaluation prepares and scores images."""

    batch_size: Positive = 64
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 0.875  # the short side becomes floor(img_size / crop_ratio)
    interval: Positive = 1  # epochs between evaluations while training
    flip: bool = False  # average the logits of each image and of its mirror image
    class_map: PathText | None = None  # file of the classes that folders stand for (tasks/classification/label_maps.py)
    real_labels: PathText | None = None  # file of several valid labels per image, such as ImageNet-ReaL's real.json


def check_classification(config) -> None:
    """Check that the sections of a Config fit each other.

    Raises:
        ConfigError: they do not; the message names the key.
    """
    model = config.model.resolved()
    check_channels(config, "model", model["in_chans"])
    if not model["num_classes"]:
        raise config.error("model.num_classes", "must be at least 1, got 0")
    weights = config.loss.class_weights
    if isinstance(weights, list) and len(weights) != model["num_classes"]:
        raise config.error(
            "loss.class_weights",
            f"has {len(weights)} weights, and the model {model['num_classes']} classes (model.num_classes)",
        )
    if config.augment.cooldown != "all" and not config.schedule.cooldown_epochs:
        raise config.error("augment.cooldown", "has no effect without schedule.cooldown_epochs")
    if config.augment.auto_augment is not None:
        try:
            parse_policy(config.augment.auto_augment)
        except PolicyError as error:
            raise config.error("augment.auto_augment", str(error)) from error
