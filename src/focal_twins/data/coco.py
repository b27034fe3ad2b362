"""Opens a folder of images with a COCO JSON file of their objects, or a part of it."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools import mask as run_lengths

from focal_twins.data.coco_file import CocoFile, read_coco
from focal_twins.data.coco_selection import Part, choose_categories, choose_images, leave_out_of_training
from focal_twins.data.dataset import DataError
from focal_twins.data.decoding import AS_STORED, Reading, UnreadableImage
from focal_twins.data.label_images import read_class_names
from focal_twins.data.numbered_images import NumberedImages
from focal_twins.files.names import escape_name, some_names
from focal_twins.phrases import counted

SPOT_CHECKS = 8  # images whose sizes are compared with the JSON when a data set is opened


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
        reading: Reading = AS_STORED,
    ):
        """Take some of the images and categories of a file, by their numbers there."""
        self.path, self.file, self.images, self.reading = path, file, images, reading
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
        found.is_held_back = data.val_fraction is not None and not is_train
        if len(found.classes) != num_classes:
            raise DataError(
                f"COCO JSON {found.file.path}: has {counted(len(found.classes), 'category')}, the model "
                f"{counted(num_classes, 'class')}; "
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
                image is not in the JSON, an image that was looked at is of another size than the JSON says, or an
                object without a segmentation is among those that masks are wanted of: in training those that count, in
                evaluation all.
        """
        file, part = read_coco(file_path, with_masks), part or Part()
        if not path.is_dir():
            raise DataError(
                f"data folder {path}: no such folder; set data.path, data.train_images and data.val_images to where "
                f"the images of {file_path} are"
            )
        categories, notices = choose_categories(file, classes)
        images, chosen = choose_images(file, part)
        notices += chosen
        if for_training:
            images, left_out = leave_out_of_training(file, images, categories)
            notices += left_out
        if not len(images):
            raise DataError(f"COCO JSON {file_path}: no image is left ({'; '.join(notices) or 'it lists none'})")
        images = np.array(sorted(images, key=lambda number: os.fsencode(file.names[number])))
        found = cls(path, file, images, categories, reading)
        if for_training:
            notices += found.count_objects()
        found.notices = (f"COCO JSON {file_path}: {'; '.join(notices)}",) if notices else ()
        if with_masks:
            found.check_segmentations(for_training)
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
        return clipped_corners(boxes, self.file.sizes[self.images[[index]]])

    def labels(self, index: int, crowd: bool = False) -> np.ndarray:
        """Return the labels [n] int32 that belong to `boxes`."""
        return self.object_labels[self._objects_of(index, crowd)]

    def masks(self, index: int) -> np.ndarray:
        """Return the masks [n, H, W] uint8 of 0 and 1 that belong to `boxes`; there are none of crowds."""
        segmentations, size = self.file.segmentations, self.image_size(index)
        if segmentations is None:
            raise ValueError("the data set was opened without masks")
        objects = self._objects_of(index, crowd=False)
        masks = np.zeros((len(objects), *size), np.uint8)
        for mask, number in zip(masks, objects, strict=True):
            mask[:] = rasterise(segmentations[number], size)
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
        """Return what to say of the objects that are not trained on as they are given."""
        file, objects = self.file, self.objects
        heights, widths = file.sizes[file.images[objects]].T
        x, y, width, height = file.boxes[objects].T
        beyond = (x < 0) | (y < 0) | (x + width > widths) | (y + height > heights)
        usable, crowds = self.is_usable[objects], file.crowds[objects]
        said = []
        if count := (~usable).sum():
            said.append(
                f"left out {counted(count, 'object')}, empty, narrower than a pixel, outside of the image, or marked "
                "to be ignored"
            )
        if count := (usable & crowds).sum():
            said.append(f"{counted(count, 'crowd')} not trained on")
        if count := (usable & ~crowds & beyond).sum():
            said.append(f"{counted(count, 'box')} clipped to the image")
        present = np.bincount(self.object_labels[objects[usable & ~crowds]], minlength=len(self.classes))
        if absent := [name for name, count in zip(self.classes, present, strict=True) if not count]:
            said.append(f"no object of {some_names(absent)}")
        return said

    def check_segmentations(self, for_training: bool) -> None:
        """Check that objects have segmentations: in training those that count, in evaluation all.

        Raises:
            DataError: some have none.
        """
        file, objects = self.file, self.objects
        if for_training:
            objects = objects[self.is_usable[objects] & ~file.crowds[objects]]
        if len(bare := objects[~file.segmented[objects]]):
            raise DataError(
                f"COCO JSON {file.path}: {len(bare)} of {counted(len(objects), 'object')} "
                f"{'has' if len(bare) == 1 else 'have'} no segmentation (the annotation with id "
                f"{file.annotation_ids[bare].min()}{', ...' if len(bare) > 1 else ''}); add masks, or set "
                "model.masks=false to find boxes alone"
            )

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
                f"data folder {self.path}: {len(missing)} of the {counted(self.size, 'image')} of {self.file.path} are "
                f"missing ({some_names(missing)}); set data.train_images and data.val_images, or "
                "take them out of the JSON"
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


def clipped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the corners [n, 4] float32 (x1, y1, x2, y2) of boxes (x, y, width, height), clipped to their images.

    Args:
        boxes: [n, 4] float64. sizes: [n, 2] or [1, 2], (height, width) of the images.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners, 0, sizes[:, [1, 0, 1, 0]]).astype(np.float32)


def is_sound(file: CocoFile) -> np.ndarray:
    """Return which objects [M] bool of a file have an area, and a box of a pixel or more that meets the image.

    It meets the image by what is left of it in float32, which may be nothing of a sliver at an edge.
    """
    corners = clipped_corners(file.boxes, file.sizes[file.images])
    meets = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return meets & (file.areas > 0) & (file.boxes[:, 2:] >= 1).all(axis=1)


def rasterise(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Return the mask [H, W] uint8 of a segmentation: polygons, or run lengths as a list or packed into a text."""
    if isinstance(segmentation, list):
        packed = run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        packed = run_lengths.frPyObjects(segmentation, *size)
    else:
        packed = segmentation
    return run_lengths.decode(packed)
