"""Batches from a folder of class folders.

Files are found and read by MindSpore's ImageFolderDataset in C++; each image then goes to a Python worker process with
its key (epoch, position), which decodes and augments it. Order and randomness belong to (seed, epoch, position), not to
the state of any operator: see transforms.py.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision

from src.data.transforms import EvalTransform, TrainTransform, UnreadableImage, decode
from src.errors import UserError

EXTENSIONS = [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"]
EXTENSIONS += [extension.upper() for extension in EXTENSIONS] + [".Jpeg", ".Jpg", ".Png"]
ORDER_STREAM = 0  # tells the shuffling generators from others of the same seed


class DataError(UserError):
    """A data set that cannot be used; the message names the folder and the remedy."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder of images per class. Class indices are positions in the sorted folder names."""

    path: Path
    classes: tuple[str, ...]
    size: int

    @classmethod
    def open(cls, path: str | Path) -> "ImageFolder":
        """List the classes of a folder and count its images.

        Raises:
            DataError: no such folder, no images, a class without images, or fewer than two classes.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"data folder {path}: no such folder; set data.path (--data_url) to the folder that holds it")
        classes = tuple(sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != "."))
        if not classes:
            raise DataError(f"data folder {path}: empty; expected one folder of images per class")
        for name in classes:
            if not any(entry.name.endswith(tuple(EXTENSIONS)) for entry in os.scandir(path / name)):
                raise DataError(f"data folder {path / name}: holds no images ({', '.join(EXTENSIONS[:8])})")
        if len(classes) < 2:
            raise DataError(f"data folder {path}: has the one class {classes[0]!r}; classification needs two or more")
        folder = cls(path, classes, 0)
        return cls(path, classes, folder.reader(None).get_dataset_size())

    def reader(self, sampler) -> ds.ImageFolderDataset:
        """(image: file content uint8, label int32) in the order of a sampler over indices into the sorted files."""
        class_indexing = {name: index for index, name in enumerate(self.classes)}
        return ds.ImageFolderDataset(
            str(self.path),
            num_parallel_workers=min(4, os.cpu_count()),
            sampler=sampler or ds.SequentialSampler(),
            extensions=EXTENSIONS,
            class_indexing=class_indexing,
            decode=False,
        )

    def files(self, label: int) -> list[Path]:
        """The image files of a class, sorted."""
        return sorted(p for p in (self.path / self.classes[label]).iterdir() if p.name.endswith(tuple(EXTENSIONS)))

    def names(self) -> list[str]:
        """"class/file" of every image, in the order that `reader` counts them."""
        return [f"{name}/{path.name}" for label, name in enumerate(self.classes) for path in self.files(label)]

    def file_of(self, data: np.ndarray, label: int) -> Path | None:
        """The file of a class with the given content: how an unreadable image gets its name."""
        content = data.tobytes()
        for path in self.files(label):
            if path.stat().st_size == len(content) and path.read_bytes() == content:
                return path
        return None


def check_classes(train: ImageFolder, val: ImageFolder, num_classes: int) -> None:
    """Hold the folders of training and evaluation against each other and against the model.

    Raises:
        DataError: they differ.
    """
    if train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        where = train.path if only[0] in train.classes else val.path
        raise DataError(f"data folders {train.path} and {val.path} have different classes: {only[0]!r} is only in {where}")
    check_num_classes(train, num_classes)


def check_num_classes(folder: ImageFolder, num_classes: int) -> None:
    """Raises DataError when a model has another number of classes than a folder."""
    if len(folder.classes) != num_classes:
        subset = ", or evaluate a subset by eval.class_map" if len(folder.classes) < num_classes else ""
        raise DataError(
            f"data folder {folder.path}: has {len(folder.classes)} classes, the model {num_classes}; "
            f"set model.num_classes={len(folder.classes)}{subset}"
        )


def epoch_order(seed: int, epoch: int, size: int, repeats: int = 1) -> np.ndarray:
    """The global order of an epoch: sample indices by position, the same on every rank.

    With repeated augmentation (arXiv 1901.09335) each image comes `repeats` times in a row, at positions of their own
    and so differently augmented; an epoch stays as long and has as many fewer images.
    """
    order = np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(size)
    return np.repeat(order, repeats)[:size]


def rank_positions(size: int, batch_size: int, batches_per_update: int, rank: int, ranks: int) -> np.ndarray:
    """Positions of the global order that a rank takes in an epoch of whole updates.

    Batch b of the epoch is the positions [b, b + 1) * batch_size * ranks, of which rank r takes the r-th part.
    """
    global_batch = batch_size * ranks
    batches = size // (global_batch * batches_per_update) * batches_per_update
    return np.arange(batches * global_batch).reshape(batches, ranks, batch_size)[:, rank].ravel()


class EpochSampler(ds.Sampler):
    """Sample indices of one rank, epoch after epoch; MindSpore iterates over a sampler once per epoch."""

    def __init__(self, seed, size, positions, first_epoch, repeats):
        super().__init__()
        self.seed, self.size, self.positions, self.epoch, self.repeats = seed, size, positions, first_epoch, repeats

    def __iter__(self):
        order = epoch_order(self.seed, self.epoch, self.size, self.repeats)
        self.epoch += 1
        return iter(order[self.positions].tolist())


class EpochKeys:
    """(epoch, position) of the samples of an EpochSampler, in step with it."""

    def __init__(self, positions, first_epoch):
        self.positions, self.epoch = positions, first_epoch

    def __iter__(self):
        epoch = np.int64(self.epoch)
        self.epoch += 1
        return ((epoch, position) for position in self.positions)

    def __len__(self):
        return len(self.positions)


class UnreadableImages:
    """Names of the unreadable images met, gathered from worker processes through a file."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, image: Path | str, reason: str) -> None:
        """Called in workers. One short append is atomic."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{image}\t{' '.join(reason.split())[:200]}\n")

    def clear(self) -> None:
        """Forget what an earlier process met: it may have been mended."""
        self.path.unlink(missing_ok=True)

    def read(self) -> dict[str, str]:
        """Reason by image, each image once."""
        if not self.path.exists():
            return {}
        return dict(line.split("\t", 1) for line in self.path.read_text(encoding="utf-8").splitlines() if "\t" in line)


class TrainSample:
    """Worker-side function of one training sample: file content to pixels. Unreadable images are replaced.

    The replacement is the next readable image of the same class, so that the label stays true and the choice is the
    same in every epoch and on every rank.
    """

    def __init__(self, folder: ImageFolder, transform: TrainTransform, channels: int, unreadable: UnreadableImages):
        self.folder, self.transform, self.channels, self.unreadable = folder, transform, channels, unreadable

    def __call__(self, data, label, epoch, position):
        try:
            image = decode(data, self.channels)
        except UnreadableImage as error:
            image = self.replacement(data, int(label), str(error))
        return self.transform(image, int(epoch), int(position)), label

    def replacement(self, data, label, reason):
        broken = self.folder.file_of(data, label)
        self.unreadable.add(broken or f"{self.folder.path / self.folder.classes[label]} (a file of {len(data)} bytes)", reason)
        files = self.folder.files(label)
        start = files.index(broken) + 1 if broken in files else 0
        for path in files[start:] + files[:start]:
            try:
                return decode(np.fromfile(path, np.uint8), self.channels)
            except (UnreadableImage, OSError):
                continue
        raise DataError(f"data folder {self.folder.path / self.folder.classes[label]}: none of its images is readable")


class EvalSample:
    """Worker-side function of one evaluation sample: file content to pixels and a weight.

    An unreadable image keeps its place with weight 0: counting another one twice would be no measure of anything.
    """

    def __init__(self, folder: ImageFolder, transform: EvalTransform, channels: int, unreadable: UnreadableImages):
        self.folder, self.transform, self.channels, self.unreadable = folder, transform, channels, unreadable

    def __call__(self, data, label):
        try:
            return self.transform(decode(data, self.channels)), label, np.float32(1)
        except UnreadableImage as error:
            label_folder = self.folder.path / self.folder.classes[int(label)]
            self.unreadable.add(self.folder.file_of(data, int(label)) or label_folder, str(error))
            return np.zeros((*self.transform.size, self.channels), np.uint8), label, np.float32(0)


def resolve_workers(workers: int | str, local_ranks: int) -> int:
    """Reader processes per device: "auto" divides the machine's cores among its devices.

    MindSpore takes no more than there are cores, so a number from a larger machine's configuration is cut to that.
    """
    cores = os.cpu_count()
    return max(1, cores // local_ranks) if workers == "auto" else min(workers, cores)


def normalise(dataset, mean: list[float], std: list[float]):
    """[H, W, C] uint8 pixels to [C, H, W] float32, by mean and deviation of pixels scaled to [0, 1]; in C++ threads."""
    scaled = [[value * 255 for value in values] for values in (mean, std)]
    operations = [vision.Normalize(*scaled, is_hwc=True), vision.HWC2CHW()]
    return dataset.map(operations, input_columns=["image"], num_parallel_workers=1)


def train_dataset(
    folder: ImageFolder,
    transform: TrainTransform,
    data,
    *,
    batch_size: int,
    batches_per_update: int = 1,
    unreadable: UnreadableImages,
    first_epoch: int = 0,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 1,
):
    """A dataset of (images [B, C, H, W] float32, labels [B] int32) that is different in every epoch.

    Args:
        data: the data section of a configuration.
        first_epoch: the epoch of the first iteration; resuming at epoch e continues as if epochs 0..e-1 had been read.

    Raises:
        DataError: too few images for one update.
    """
    positions = rank_positions(folder.size, batch_size, batches_per_update, rank, ranks)
    if not len(positions):
        needed = batch_size * ranks * batches_per_update
        raise DataError(
            f"data folder {folder.path}: {folder.size} images do not fill one update of {needed}; lower train.batch_size"
        )
    images = folder.reader(EpochSampler(transform.seed, folder.size, positions, first_epoch, transform.augment.repeats))
    keys = ds.GeneratorDataset(
        EpochKeys(positions, first_epoch), ["epoch", "position"], shuffle=False, python_multiprocessing=False
    )
    dataset = ds.zip((images, keys))
    dataset = dataset.map(
        TrainSample(folder, transform, len(data.mean), unreadable),
        input_columns=["image", "label", "epoch", "position"],
        output_columns=["image", "label"],
        num_parallel_workers=workers,
        python_multiprocessing=workers > 1,
    )
    dataset = normalise(dataset.project(["image", "label"]), data.mean, data.std)
    return dataset.batch(batch_size, drop_remainder=True)


def eval_dataset(
    folder: ImageFolder,
    transform: EvalTransform,
    data,
    *,
    batch_size: int,
    unreadable: UnreadableImages,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 1,
):
    """A dataset of (images, labels, weights [B] float32, indices [B] int64) over every image once.

    Rank r reads the images r, r + ranks, ... of the sorted files, and `indices` are these numbers (see ImageFolder.names).
    The last batch is as small as it comes out.
    """
    indices = np.arange(rank, folder.size, ranks)
    dataset = folder.reader(ds.SubsetSampler(indices.tolist())).map(
        EvalSample(folder, transform, len(data.mean), unreadable),
        input_columns=["image", "label"],
        output_columns=["image", "label", "weight"],
        num_parallel_workers=workers,
        python_multiprocessing=workers > 1,
    )
    batches = normalise(dataset, data.mean, data.std).batch(batch_size, drop_remainder=False)
    # A Python row costs as much as reading a small image, so one per batch. There is one for no images too, as
    # MindSpore refuses an empty column; zipping then ends with the images.
    split = [(part,) for part in np.split(indices, range(batch_size, len(indices), batch_size))]
    column = ds.GeneratorDataset(split, ["index"], shuffle=False, python_multiprocessing=False)
    return ds.zip((batches, column))


class Epochs:
    """NumPy batches of a dataset, one epoch per pass: build once, iterate over once per epoch.

    Raises, while iterating:
        DataError: a file that cannot be opened, or what a worker refused.
    """

    def __init__(self, dataset, epochs: int = 1):
        self.iterator = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)

    def __iter__(self):
        try:
            yield from self.iterator
        except RuntimeError as error:
            # MindSpore wraps what went wrong into a report of many lines.
            found = re.search(r"image_folder\.DataError: (.*)", str(error)) or re.search(
                r"\[ERROR\] (.*open file.*)", str(error)
            )
            if found is None:
                raise
            raise DataError(found[1]) from error
