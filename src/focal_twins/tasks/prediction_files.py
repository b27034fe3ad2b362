"""Gives the files of predictions a place each, and writes pictures there."""

from collections import defaultdict
from pathlib import Path

from PIL import Image

from focal_twins.errors import UserError
from focal_twins.files.atomic import write_bytes
from focal_twins.pages.page import encode

OVERLAYS = {"jpeg": ".jpg", "png": ".png", "none": None}  # endings of the pictures with predictions over them, by kind
JPEG_QUALITY = 92


def places_of(images: list[str]) -> list[str]:
    """Return for each image a path of its own, below the folder that all have in common, without extension.

    Images whose paths differ in nothing but the extension keep it; an image that is given twice has one place.
    """
    paths = [Path(name).absolute() for name in images]
    common = Path(*_common_parts([path.parent.parts for path in paths]))
    bare: dict[Path, set[Path]] = defaultdict(set)
    for path in paths:
        bare[path.with_suffix("")].add(path)
    return [
        str((path if len(bare[path.with_suffix("")]) > 1 else path.with_suffix("")).relative_to(common))
        for path in paths
    ]


def _common_parts(paths: list[tuple[str, ...]]) -> list[str]:
    """Return the parts that all paths begin with."""
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def overlay_ending(kind: str) -> str | None:
    """Return the ending of a kind of overlays; None where there are none.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in OVERLAYS:
        raise UserError(f"--overlay {kind}: choose one of {', '.join(OVERLAYS)}")
    return OVERLAYS[kind]


def save_picture(image: Image.Image, path: Path) -> None:
    """Write an image as a JPEG or PNG file, as the name says.

    Raises:
        UserError: no room or no permission.
    """
    write_bytes(path, encode(image, "jpeg", quality=JPEG_QUALITY) if path.suffix == ".jpg" else encode(image))
