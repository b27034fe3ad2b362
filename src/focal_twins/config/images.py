"""Defines the keys of the section data that every task on images has: how files are read and become pixels.

The types and checks of values that several of these tasks have are here, too.
"""

from typing import Annotated, Literal

from pydantic import Field

from focal_twins.config.schema import Positive, Section
from focal_twins.data.decoding import MAX_PIXELS

Level = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(gt=0, lt=1)]
Sides = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class ImageData(Section):
    """Says how image files are read; a task's own section adds where they are."""

    workers: Literal["auto"] | Positive = (
        "auto"  # reader processes per device; auto: the cores divided among the devices
    )
    prefetch: Literal["auto"] | Positive = "auto"  # rows that each stage of the pipeline keeps ready
    numa: Literal["auto"] | bool = "auto"  # bind each process to a memory node; auto: where there are several
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=1)  # mean of pixels scaled to [0, 1], per channel
    std: list[Annotated[float, Field(gt=0)]] = Field([0.229, 0.224, 0.225], min_length=1)
    exif: Literal["ignore", "apply"] = "ignore"  # apply: turn images as their EXIF orientation says (docs/data.md)
    # drop: the colours of transparent pixels as they are; [red, green, blue]: laid over a background of that colour
    alpha: Literal["drop"] | Annotated[list[Level], Field(min_length=3, max_length=3)] = "drop"
    max_pixels: Positive = MAX_PIXELS  # width times height above which an image counts as unreadable


def check_ascending(values: list[float]) -> list[float]:
    """Check that two values are the least and the greatest.

    Raises:
        ValueError: they are not; the schema turns it into a message that names the key.
    """
    if values[0] > values[1]:
        raise ValueError("must be two values in ascending order")
    return values


def check_channels(config, section: str, channels: int) -> None:
    """Check that images can be read with as many channels as a network takes.

    Args:
        section: the network's section of the configuration.

    Raises:
        ConfigError: they cannot; the message names the key.
    """
    if channels not in (1, 3):
        raise config.error(
            f"{section}.in_chans", f"images are read as grey (1) or RGB (3), not with {channels} channels"
        )
    for key in ("mean", "std"):
        if len(getattr(config.data, key)) != channels:
            raise config.error(f"data.{key}", f"has {len(getattr(config.data, key))} values for {channels} channels")
