"""Chooses the images and categories of a COCO JSON that make up a data set."""

import difflib
from dataclasses import dataclass

import numpy as np

from focal_twins.data.coco_file import CocoFile
from focal_twins.data.dataset import DataError
from focal_twins.data.text_files import read_lines
from focal_twins.data.validation_split import share_of
from focal_twins.files.names import some_names
from focal_twins.phrases import counted

MIN_SIDE = 32  # pixels; the originals do not train on images with a shorter side


@dataclass(frozen=True)
class Part:
    """Says which images of a COCO JSON make up a data set.

    What is chosen by a share depends on the image's name and the seed alone: a larger share holds a smaller one's
    images, and images that come to the JSON later leave nearly all others where they are.

    Attributes:
        val_fraction: the share that is held back for validation; None where the whole JSON is for one purpose.
        held_back: the part is what is held back; otherwise it is the rest.
        subset: a share of these, a file with a file_name on each line, or None for all.
        seed: of both shares.
    """

    val_fraction: float | None = None
    held_back: bool = False
    subset: float | str | None = None
    seed: int = 0


def choose_categories(file: CocoFile, classes: tuple[str, ...] | None) -> tuple[list[int], list[str]]:
    """Return the numbers of the categories of these names, or of all by their ids, and what to say of them.

    Raises:
        DataError: there is no category of a name.
    """
    if classes is None:
        return sorted(range(len(file.category_ids)), key=file.category_ids.__getitem__), []
    numbers = {name: number for number, name in enumerate(file.category_names)}
    for name in classes:
        if name not in numbers:
            near = difflib.get_close_matches(name, numbers, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {some_names(file.category_names)}"
            raise DataError(f"COCO JSON {file.path}: has no category {name!r}; {hint}")
    chosen = [numbers[name] for name in classes]
    others = ~np.isin(file.categories, chosen)
    if not others.any():
        return chosen, []
    return chosen, [
        f"{len(chosen)} of {len(numbers)} categories, without {counted(others.sum(), 'object')} of the others"
    ]


def choose_images(file: CocoFile, part: Part) -> tuple[list[int], list[str]]:
    """Return the numbers of the images that a part has, and what to say of them.

    Raises:
        DataError: no image is left, or one that is listed is not there.
    """
    images, notices = list(range(len(file.names))), []
    if part.val_fraction is not None:
        held_back = set(share_of(images, file.names, part.val_fraction, f"validation {part.seed}"))
        if len(held_back) == len(images):
            raise DataError(f"COCO JSON {file.path}: data.val_fraction leaves none of {len(images)} images to train on")
        purpose = "are the validation" if part.held_back else "are held back for validation"
        notices.append(f"{len(held_back)} of {counted(len(images), 'image')} {purpose} (data.val_fraction)")
        images = [number for number in images if (number in held_back) == part.held_back]
    if isinstance(part.subset, float):
        chosen = share_of(images, file.names, part.subset, f"subset {part.seed}")
        notices.append(f"{len(chosen)} of {counted(len(images), 'image')} chosen as a subset")
        return chosen, notices
    if part.subset is not None:
        names = [line.strip() for line in read_lines(part.subset, f"list of images {part.subset}") if line.strip()]
        numbers = {file.names[number]: number for number in images}
        if unknown := [name for name in names if name not in numbers]:
            raise DataError(
                f"list of images {part.subset}: {len(unknown)} of its {len(names)} names ({some_names(unknown)}) are "
                f"not among the images of {file.path}" + (" that it may choose from" if part.val_fraction else "")
            )
        chosen = [numbers[name] for name in dict.fromkeys(names)]
        notices.append(f"{len(chosen)} of {counted(len(images), 'image')} chosen by {part.subset}")
        return chosen, notices
    return images, notices


def leave_out_of_training(file: CocoFile, images: list[int], categories: list[int]) -> tuple[list[int], list[str]]:
    """Return the images that can be trained on, and notices."""
    annotated = np.zeros(len(file.names), bool)
    annotated[file.images[np.isin(file.categories, categories)]] = True
    small = file.sizes.min(axis=1) < MIN_SIDE
    numbers = np.array(images, int)
    notices = []
    if count := (~annotated[numbers]).sum():
        notices.append(f"left out {counted(count, 'image')} without an object")
    if count := (annotated[numbers] & small[numbers]).sum():
        notices.append(f"left out {counted(count, 'image')} with a side of less than {MIN_SIDE} pixels")
    return numbers[annotated[numbers] & ~small[numbers]].tolist(), notices
