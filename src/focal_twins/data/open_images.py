"""Finds the images of a data folder: class folders, a zip file or MindRecord files."""

from pathlib import Path

from focal_twins.data.dataset import DataError
from focal_twins.data.image_folder import ImageFolder
from focal_twins.data.image_set import ImageSet
from focal_twins.data.mindrecord_images import INDEX_SUFFIX, MindRecordImages
from focal_twins.data.zip_images import ZipImages


def open_images(root: str | Path, name: str, classes: tuple[str, ...] | None = None) -> ImageSet:
    """Open the images called `name` (train, val) under a folder: the folder of that name, NAME.zip or NAME.mindrecord.

    Args:
        classes: names of the classes, for formats that do not say them (a zip file of images without class folders).

    Raises:
        DataError: there are none, or they cannot be used.
    """
    root = Path(root)
    zip_path, index_path = root / f"{name}.zip", root / f"{name}{INDEX_SUFFIX}"
    if (root / name).is_dir():
        return ImageFolder.open(root / name)
    if zip_path.is_file():
        return ZipImages.open(zip_path, classes)
    if index_path.is_file():
        return MindRecordImages.open(index_path)
    raise DataError(
        f"data folder {root / name}: no such folder (nor {zip_path.name}, nor {index_path.name}); "
        "set data.path (--data_url) to the folder that holds it"
    )
