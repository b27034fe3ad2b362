"""Opens a folder of images with a COCO JSON file of their objects, or a part of it."""

import difflib
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools import mask as run_lengths

from src.data.coco_file import CocoFile, read_coco
from src.data.dataset import DataError
from src.data.decoding import AS_STORED, Reading, UnreadableImage
from src.data.image_files import EXAMPLES
from src.data.label_images import read_class_names
from src.data.numbered_images import NumberedImages
from src.data.text_files import read_lines
from src.files.names import escape_name
from src.models.detectors.boxes import clip

MIN_SIDE = 32  # pixels; the originals do not train on images with a shorter side
SPOT_CHECKS = 8  # images whose sizes are compared with the JSON when a data set is opened


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


class CocoImages(NumberedImages):
    """Serves images and the objects in them. Samples are in the order of their names.

    An object counts in training unless it is a crowd, is marked to be ignored, or has a box that is empty, narrower
    than a pixel or wholly outside of the image, as in the originals; in evaluation all count, as in pycocotools.

    Attributes:
        path: the folder of the images.
        category_ids: the id of each class in the JSON, by label.
        image_ids: the id of each sample's image in the JSON.
    """

    def __init__(
        self,
        path: Path,
        file: CocoFile,
        images: np.ndarray,
        categories: list[int],
        notices: tuple[str, ...] = (),
        reading: Reading = AS_STORED,
    ):
        """Take some of the images and categories of a file, by their numbers there."""
        self.path, self.file, self.images, self.notices, self.reading = path, file, images, notices, reading
        self.size = len(images)
        self.image_ids = [file.image_ids[number] for number in images]
        self.classes = tuple(file.category_names[number] for number in categories)
        self.category_ids = [file.category_ids[number] for number in categories]
        samples = np.full(len(file.names), -1)
        samples[images] = np.arange(self.size)
        labels = np.full(len(file.category_names), -1, np.int32)
        labels[categories] = np.arange(len(categories))
        # The objects' numbers in the file, sorted by their samples; where each sample's begin; the objects' labels.
        sample_of, label_of = samples[file.images], labels[file.categories]
        order = np.argsort(sample_of, kind="stable")
        self.objects = order[(sample_of[order] >= 0) & (label_of[order] >= 0)]
        self.starts = np.searchsorted(sample_of[self.objects], np.arange(self.size + 1))
        self.object_labels = label_of
        self.is_usable = ~file.ignored & is_sound(file)

    @classmethod
    def of(cls, config, split: str, classes: tuple[str, ...] | None = None, with_masks: bool = False) -> "CocoImages":
        """Open the data set that a configuration names for a split, "train" or "val"; see `open`.

        Args:
            classes: names of the classes where the configuration names none; None: all of the JSON.
        """
        data, num_classes = config.data, config.model.resolved()["num_classes"]
        is_train = split == "train"
        source = "train" if is_train or data.val_fraction is not None else "val"
        if data.classes is not None:
            classes = read_class_names(data.classes, num_classes)
        found = cls.open(
            Path(data.path) / getattr(data, f"{source}_images"),
            Path(data.path) / getattr(data, f"{source}_annotations"),
            classes,
            Part(data.val_fraction, not is_train, getattr(data, f"{split}_subset"), data.split_seed),
            for_training=is_train,
            with_masks=with_masks,
            reading=Reading.from_dict(data.model_dump()),
        )
        if len(found.classes) != num_classes:
            raise DataError(
                f"COCO JSON {found.file.path}: has {len(found.classes)} categories, the model {num_classes} classes; "
                f"set model.num_classes={len(found.classes)}, or choose by data.classes"
            )
        return found

    @classmethod
    def open(
        cls,
        path: Path,
        file_path: Path,
        classes: tuple[str, ...] | None = None,
        part: Part | None = None,
        for_training: bool = False,
        with_masks: bool = False,
        reading: Reading = AS_STORED,
    ) -> "CocoImages":
        """Read the JSON, choose from it, and look for the images.

        Args:
            path, file_path: the folder of the images, and the COCO JSON.
            classes: names of the categories that count, in the order of the labels; None: all, in that of their ids.
            part: which images count; None: all.
            for_training: leave out images without an object of these classes, or with a side of less than 32 pixels.
            with_masks: keep the segmentations, for `masks`.

        Raises:
            DataError: the JSON is faulty (see read_coco), no image is left or one is missing, a name of a class or an
                image is not in the JSON, or an image that was looked at is of another size than the JSON says.
        """
        file, part = read_coco(file_path, with_masks), part or Part()
        if not path.is_dir():
            raise DataError(
                f"data folder {path}: no such folder; set data.path, data.train_images and data.val_images to where "
                f"the images of {file_path} are"
            )
        categories, notices = _choose_categories(file, classes)
        images, chosen = _choose_images(file, part)
        notices += chosen
        if for_training:
            images, left_out = _leave_out(file, images, categories)
            notices += left_out
        if not len(images):
            raise DataError(f"COCO JSON {file_path}: no image is left ({'; '.join(notices) or 'it lists none'})")
        images = np.array(sorted(images, key=lambda number: os.fsencode(file.names[number])))
        shown = tuple(f"COCO JSON {file_path}: {notice}" for notice in notices)
        found = cls(path, file, images, categories, shown, reading)
        if for_training:
            found.notices += tuple(f"COCO JSON {file_path}: {notice}" for notice in found.count_objects())
        found.check_files()
        found.check_some_sizes()
        return found

    # --- samples -----------------------------------------------------------------------------------------------------

    @cached_property
    def names(self):
        return [self.file.names[number] for number in self.images]

    @property
    def sizes(self) -> np.ndarray:
        """The sizes [size, 2] (height, width) of the samples, as the JSON says."""
        return self.file.sizes[self.images]

    def image_size(self, index):
        """Return (height, width) of a sample, as the JSON says."""
        height, width = self.file.sizes[self.images[index]]
        return int(height), int(width)

    def _objects_of(self, index: int, crowd: bool) -> np.ndarray:
        """Return the numbers, in the file, of a sample's usable objects."""
        objects = self.objects[self.starts[index] : self.starts[index + 1]]
        return objects[self.is_usable[objects] & (self.file.crowds[objects] == crowd)]

    def boxes(self, index: int, crowd: bool = False) -> np.ndarray:
        """Return the boxes [n, 4] float32 (x1, y1, x2, y2) of a sample's usable objects, clipped to the image.

        Args:
            crowd: those of its crowds, in place of the others.
        """
        boxes = self.file.boxes[self._objects_of(index, crowd)]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
        return clip(corners, self.image_size(index))

    def labels(self, index: int, crowd: bool = False) -> np.ndarray:
        """Return the labels [n] int32 that belong to `boxes`."""
        return self.object_labels[self._objects_of(index, crowd)]

    def masks(self, index: int, crowd: bool = False) -> np.ndarray:
        """Return the masks [n, H, W] uint8 of 0 and 1 that belong to `boxes`.

        Raises:
            DataError: an object has no segmentation.
        """
        segmentations, size = self.file.segmentations, self.image_size(index)
        if segmentations is None:
            raise ValueError("the data set was opened without masks")
        objects = self._objects_of(index, crowd)
        masks = np.zeros((len(objects), *size), np.uint8)
        for mask, number in zip(masks, objects, strict=True):
            try:
                mask[:] = rasterise(segmentations[number], size)
            except ValueError as error:
                box = self.file.boxes[number].tolist()
                raise DataError(
                    f"COCO JSON {self.file.path}: the object with bbox {box} of {self._shown(index)}: {error}"
                ) from error
        return masks

    def pixels(self, index, channels):
        """Return the pixels [H, W, channels] uint8 of a sample.

        Raises:
            UnreadableImage: the file is damaged, cannot be opened, or is of another size than the JSON says, so that
                its boxes are of another image.
        """
        pixels = super().pixels(index, channels)
        if pixels.shape[:2] != self.image_size(index):
            raise UnreadableImage(self._other_size(index, pixels.shape[:2]))
        return pixels

    def ground_truth(self) -> dict:
        """Return what evaluation needs, as a COCO JSON: these images and categories, and every object as it is given.

        Objects are numbered from 1, because COCOeval takes a match with the object 0 for none.
        """
        file = self.file
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(self.image_ids, self.names, self.sizes.tolist(), strict=True)
        ]
        annotations: list[dict] = []
        samples = np.repeat(np.arange(self.size), np.diff(self.starts)).tolist()
        for sample, number in zip(samples, self.objects.tolist(), strict=True):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": self.image_ids[sample],
                "category_id": self.category_ids[self.object_labels[number]],
                "bbox": file.boxes[number].tolist(),
                "area": float(file.areas[number]),
                "iscrowd": int(file.crowds[number]),
            }
            if file.segmentations is not None:
                annotation["segmentation"] = file.segmentations[number]
            annotations.append(annotation)
        categories = [{"id": id_, "name": name} for id_, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    # --- checks ------------------------------------------------------------------------------------------------------

    def count_objects(self) -> list[str]:
        """Return lines on the objects that are not trained on as they are given."""
        file, objects = self.file, self.objects
        heights, widths = file.sizes[file.images[objects]].T
        x, y, width, height = file.boxes[objects].T
        beyond = (x < 0) | (y < 0) | (x + width > widths) | (y + height > heights)
        usable, crowds = self.is_usable[objects], file.crowds[objects]
        counts = {
            "crowds are not trained on": usable & crowds,
            "objects are left out: empty, narrower than a pixel, outside of their images, or marked to be ignored": (
                ~usable
            ),
            "boxes are clipped to their images": usable & ~crowds & beyond,
        }
        lines = [f"{rows.sum()} {what}" for what, rows in counts.items() if rows.any()]
        present = np.bincount(self.object_labels[objects[usable & ~crowds]], minlength=len(self.classes))
        if absent := [name for name, count in zip(self.classes, present, strict=True) if not count]:
            lines.append(f"no object is of {_some(absent)}")
        return lines

    def check_files(self) -> None:
        """Check that the folder has all images, by listing it: on remote disks, that is faster than to ask for each.

        Raises:
            DataError: images are missing.
        """
        folders = dict.fromkeys(os.path.dirname(name) for name in self.names)
        there: set[str] = set()
        for folder in folders:
            try:
                there.update(os.path.join(folder, name) for name in os.listdir(self.path / folder))
            except OSError:
                continue
        if missing := [name for name in self.names if os.path.join(*os.path.split(name)) not in there]:
            raise DataError(
                f"data folder {self.path}: {len(missing)} of the {self.size} images of {self.file.path} are missing "
                f"({_some(missing)}); set data.train_images and data.val_images, or take them out of the JSON"
            )

    def check_some_sizes(self) -> None:
        """Compare the sizes of a few images, spread over all, with the JSON's.

        Raises:
            DataError: one is of another size.
        """
        for index in np.unique(np.linspace(0, self.size - 1, SPOT_CHECKS, dtype=int)):
            size = super().image_size(index)
            if 0 not in size and size != self.image_size(index):
                raise DataError(f"COCO JSON {self.file.path}: {self._shown(index)} {self._other_size(index, size)}")

    def _shown(self, index: int) -> str:
        return f"the image {escape_name(self.name(index))}"

    def _other_size(self, index: int, size: tuple[int, ...]) -> str:
        """Say that a sample is of another size (height, width) than the JSON says, and what may be the reason."""
        height, width = self.image_size(index)
        other = "ignore" if self.reading.exif == "apply" else "apply"
        hint = f"; try data.exif={other}" if size == (width, height) else ""
        return f"is of {size[1]} x {size[0]} pixels, and the JSON says {width} x {height}{hint}"


def is_sound(file: CocoFile) -> np.ndarray:
    """Return which objects [M] bool of a file have an area, and a box of a pixel or more that meets the image."""
    x, y, width, height = file.boxes.T
    heights, widths = file.sizes[file.images].T
    inside_width = np.minimum(x + width, widths) - np.maximum(x, 0)
    inside_height = np.minimum(y + height, heights) - np.maximum(y, 0)
    return (inside_width > 0) & (inside_height > 0) & (file.areas > 0) & (width >= 1) & (height >= 1)


def rasterise(segmentation: list | dict | None, size: tuple[int, int]) -> np.ndarray:
    """Return the mask [H, W] uint8 of a segmentation: polygons, or run lengths as a list or packed into a text.

    Raises:
        ValueError: there is none.
    """
    if segmentation is None:
        raise ValueError("it has no segmentation")
    if isinstance(segmentation, list):
        packed = run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        packed = run_lengths.frPyObjects(segmentation, *size)
    else:
        packed = segmentation
    return run_lengths.decode(packed)


def _choose_categories(file: CocoFile, classes: tuple[str, ...] | None) -> tuple[list[int], list[str]]:
    """Return the numbers of the categories of these names, or of all by their ids, and notices."""
    if classes is None:
        return sorted(range(len(file.category_ids)), key=file.category_ids.__getitem__), []
    numbers = {name: number for number, name in enumerate(file.category_names)}
    for name in classes:
        if name not in numbers:
            near = difflib.get_close_matches(name, numbers, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {_some(file.category_names)}"
            raise DataError(f"COCO JSON {file.path}: has no category {name!r}; {hint}")
    chosen = [numbers[name] for name in classes]
    others = ~np.isin(file.categories, chosen)
    if not others.any():
        return chosen, []
    return chosen, [
        f"{len(chosen)} of {len(numbers)} categories count; {others.sum()} objects of the others are left out"
    ]


def _choose_images(file: CocoFile, part: Part) -> tuple[list[int], list[str]]:
    """Return the numbers of the images that a part has, and notices."""
    images, notices = list(range(len(file.names))), []
    if part.val_fraction is not None:
        held_back = set(_share(file, images, part.val_fraction, f"validation {part.seed}"))
        if len(held_back) == len(images):
            raise DataError(f"COCO JSON {file.path}: data.val_fraction leaves none of {len(images)} images to train on")
        purpose = "make up the validation" if part.held_back else "are held back for validation"
        notices.append(f"{len(held_back)} of its {len(images)} images {purpose} (data.val_fraction)")
        images = [number for number in images if (number in held_back) == part.held_back]
    if isinstance(part.subset, float):
        chosen = _share(file, images, part.subset, f"subset {part.seed}")
        notices.append(f"{len(chosen)} of {len(images)} images are in the subset")
        return chosen, notices
    if part.subset is not None:
        names = [line.strip() for line in read_lines(part.subset, f"list of images {part.subset}") if line.strip()]
        numbers = {file.names[number]: number for number in images}
        if unknown := [name for name in names if name not in numbers]:
            raise DataError(
                f"list of images {part.subset}: {len(unknown)} of its {len(names)} names ({_some(unknown)}) are not "
                f"among the images of {file.path}" + (" that it may choose from" if part.val_fraction else "")
            )
        chosen = [numbers[name] for name in dict.fromkeys(names)]
        notices.append(f"{len(chosen)} of {len(images)} images are in the subset {part.subset}")
        return chosen, notices
    return images, notices


def _share(file: CocoFile, images: list[int], share: float, purpose: str) -> list[int]:
    """Choose a share of images, one at least, by checksums of their names; a larger share holds a smaller one."""

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{purpose}\0{file.names[number]}".encode("utf-8", "surrogateescape")).digest()

    return sorted(images, key=rank)[: max(1, round(share * len(images)))]


def _leave_out(file: CocoFile, images: list[int], categories: list[int]) -> tuple[list[int], list[str]]:
    """Return the images that can be trained on, and notices."""
    annotated = np.zeros(len(file.names), bool)
    annotated[file.images[np.isin(file.categories, categories)]] = True
    small = file.sizes.min(axis=1) < MIN_SIDE
    numbers = np.array(images, int)
    counts = {
        "without an object are left out": ~annotated[numbers],
        f"with a side of less than {MIN_SIDE} pixels are left out": annotated[numbers] & small[numbers],
    }
    notices = [f"{chosen.sum()} images {what}" for what, chosen in counts.items() if chosen.any()]
    return numbers[annotated[numbers] & ~small[numbers]].tolist(), notices


def _some(names: list[str]) -> str:
    """Return the first few names, for a message."""
    return ", ".join([escape_name(name) for name in names[:EXAMPLES]] + ["..."] * (len(names) > EXAMPLES))
