"""From files to batches.

Files are found and read by MindSpore's datasets in C++; a batch of them then goes to a Python worker process with the
key (epoch, position) of each, which decodes and augments them. (Image by image, the way to the workers and back takes a
fifth of the whole time.) Normalising, erasing and mixing come last, on whole batches and in a thread, one batch ahead
of training, for bytes are a quarter of the size of floats. Order and randomness belong to (seed, epoch, position) and
(seed, update, rank), not to the state of any operator: they are the same with any number of workers and after a resume.
"""

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import mindspore.dataset as ds
import numpy as np

from src.data.image_set import DataError, ImageSet
from src.data.mixup import draw_mixing, is_on, mix_images, mix_targets, soft_targets
from src.data.random_erasing import draw_rectangles, erase
from src.data.transforms import EvalTransform, Preprocessing, TrainTransform, UnreadableImage, decode, normalise
from src.random_streams import Stream, generator

# Options of mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Marks what a worker refuses in the long report that MindSpore makes of its exception.
REFUSED = "the data cannot be used: "


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, size: int, repeats: int = 1) -> np.ndarray:
    """The global order of an epoch: sample indices by position, the same on every rank.

    With repeated augmentation (arXiv 1901.09335) each image comes `repeats` times in a row, at positions of their own
    and so differently augmented; an epoch stays as long and has as many fewer images.
    """
    order = generator(seed, Stream.ORDER, epoch).permutation(size)
    order = np.repeat(order, repeats)[:size]
    order.setflags(write=False)  # the cached one is everybody's
    return order


def rank_positions(size: int, batch_size: int, batches_per_update: int, rank: int, ranks: int) -> np.ndarray:
    """Positions of the global order that a rank takes in an epoch of whole updates.

    Batch b of the epoch is the positions [b, b + 1) * batch_size * ranks, of which rank r takes every ranks-th from the
    r-th on: copies of an image in a row (repeated augmentation) go to different ranks.
    """
    global_batch = batch_size * ranks
    batches = size // (global_batch * batches_per_update) * batches_per_update
    return np.arange(batches * global_batch).reshape(batches, batch_size, ranks)[..., rank].ravel()


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
        # A generator, for MindSpore also calls this to see whether it can, without reading anything.
        epoch = np.int64(self.epoch)
        self.epoch += 1
        for position in self.positions:
            yield epoch, position

    def __len__(self):
        return len(self.positions)


class UnreadableImages:
    """Names of the unreadable images met, gathered from worker processes through a file."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, image: Path | str, reason: str) -> None:
        """Called in workers. One short append is atomic; on a full disk, a missing name is less than the run."""
        with suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{image}\t{' '.join(reason.split())[:200]}\n")

    def read(self) -> dict[str, str]:
        """Reason by image, each image once."""
        if not self.path.exists():
            return {}
        return dict(line.split("\t", 1) for line in self.path.read_text(encoding="utf-8").splitlines() if "\t" in line)


class TrainSamples:
    """Worker-side function of a batch's samples: file contents to pixels. Unreadable images are replaced.

    The replacement is the next readable image of the same class, so that the label stays true and the choice is the
    same in every epoch and on every rank.
    """

    def __init__(self, images: ImageSet, transform: TrainTransform, channels: int, unreadable: UnreadableImages):
        self.images, self.transform, self.channels, self.unreadable = images, transform, channels, unreadable
        self.home = os.getpid()

    def __call__(self, contents, labels, epochs, positions, batch_info):
        """Lists over the batch, as MindSpore passes them; to lists of pixels [H, W, C] and labels."""
        if os.getpid() != self.home:
            keep_freed_memory()
        keys = zip(contents, map(int, epochs), map(int, positions), strict=True)
        return [self.sample(*key) for key in keys], labels

    def sample(self, data: np.ndarray, epoch: int, position: int) -> np.ndarray:
        """Pixels [H, W, C] of one image's content."""
        try:
            array = decode(data, self.channels)
        except UnreadableImage as error:
            order = epoch_order(self.transform.seed, epoch, self.images.size, self.transform.augment.repeats)
            array = self.replacement(int(order[position]), str(error))
        return self.transform(array, epoch, position)

    def replacement(self, index: int, reason: str) -> np.ndarray:
        """Pixels of the next readable image of the class.

        Raises:
            DataError: there is none.
        """
        images = self.images
        self.unreadable.add(images.path / images.name(index), reason)
        for other in images.successors(index):
            try:
                return decode(images.content(other), self.channels)
            except (UnreadableImage, OSError):
                continue
        raise DataError(
            f"{REFUSED}data folder {images.path}: no image of class {images.classes[images.labels[index]]} is readable"
        )


@cache
def keep_freed_memory() -> None:
    """Once in a process, have the C library keep what it frees, so that the next image's arrays need no new pages.

    For worker processes alone, which use the same little memory over and over; 4% of their time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            library.mallopt(option, 1 << 30)


class EvalSamples:
    """Worker-side function of a batch's samples: file contents to pixels and weights.

    An unreadable image keeps its place with weight 0: counting another one twice would be no measure of anything.
    """

    def __init__(self, images: ImageSet, preprocessing: Preprocessing, unreadable: UnreadableImages):
        self.images, self.preprocessing, self.unreadable = images, preprocessing, unreadable

    def __call__(self, contents, labels, indices, batch_info):
        """Lists over the batch, as MindSpore passes them; to lists of pixels [H, W, C], labels, weights and indices."""
        samples = [self.sample(*one) for one in zip(contents, map(int, indices), strict=True)]
        arrays, weights = zip(*samples, strict=True)
        return list(arrays), labels, list(weights), indices

    def sample(self, data: np.ndarray, index: int) -> tuple[np.ndarray, np.float32]:
        """Pixels [H, W, C] and weight of one image's content."""
        try:
            return self.preprocessing.pixels(data), np.float32(1)
        except UnreadableImage as error:
            self.unreadable.add(self.images.path / self.images.name(index), str(error))
            return self.preprocessing.blank(), np.float32(0)


def resolve_workers(workers: int | Literal["auto"], local_ranks: int) -> int:
    """Reader processes per device: "auto" divides the machine's cores among its devices.

    MindSpore takes no more than there are cores, so a number from a larger machine's configuration is cut to that.
    """
    cores = os.cpu_count() or 1
    return max(1, cores // local_ranks) if workers == "auto" else min(workers, cores)


def configure_reading(data, memory_nodes: int | None = None) -> None:
    """Take MindSpore's global settings from the data section of a configuration.

    Automatic prefetching is of 4 rows per stage, for a row of the last stage is a whole batch. Automatic binding is on
    where a machine has several memory nodes and libnuma, which MindSpore needs for it.

    Raises:
        DataError: binding is asked for and libnuma is missing.
    """
    ds.config.set_prefetch_size(4 if data.prefetch == "auto" else data.prefetch)
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) if memory_nodes is None else memory_nodes
    if data.numa is True and not has_libnuma():
        raise DataError(
            "data.numa: true needs the system's libnuma (package libnuma1 or numactl); install it, or false"
        )
    ds.config.set_numa_enable(data.numa is True or (data.numa == "auto" and nodes > 1 and has_libnuma()))


def has_libnuma() -> bool:
    """Whether the library by which MindSpore binds processes is there."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def readable_batches(iterator):
    """The batches of an iterator of MindSpore's.

    Raises:
        DataError: a file that cannot be opened, or what a worker refused.
    """
    try:
        yield from iterator
    except RuntimeError as error:
        # MindSpore wraps what went wrong into a report of many lines.
        found = re.search(f"{re.escape(REFUSED)}(.*)", str(error)) or re.search(
            r"\[ERROR\] (.*\b[Ff]ile\b.*)", str(error)
        )
        if found is None:
            raise
        raise DataError(found[1]) from error


def one_ahead(batches, finish):
    """finish(*batch) of each batch, each worked out in another thread while the one before is in use.

    MindSpore's iterator stays in this thread: an error of its that another one receives ends the process.
    """
    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for batch in batches:
            done, ahead = ahead, thread.submit(finish, *batch)
            if done is not None:
                yield done.result()
        if ahead is not None:
            yield ahead.result()


class TrainBatches:
    """Batches of (images [B, C, H, W] float32, targets [B, classes] float32), different in every epoch.

    Each pass over the object is the next epoch; one that continues a run cut within an epoch begins with what is left
    of it.

    Args:
        data: the data section of a configuration.
        batches_per_update: an epoch is whole updates.
        epochs: of the whole run.
        first_epoch: the epoch of the first pass.
        first_batch: batches of this epoch that were trained on already.

    Raises:
        DataError: too few images for one update.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: TrainTransform,
        data,
        *,
        batch_size: int,
        unreadable: UnreadableImages,
        batches_per_update: int = 1,
        epochs: int = 1,
        first_epoch: int = 0,
        first_batch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 1,
    ):
        self.positions = rank_positions(images.size, batch_size, batches_per_update, rank, ranks)
        if not len(self.positions):
            needed = batch_size * ranks * batches_per_update
            raise DataError(
                f"data folder {images.path}: {images.size} images do not fill one update of {needed}; "
                "lower train.batch_size"
            )
        self.images, self.transform, self.data = images, transform, data
        self.batch_size, self.batches_per_update = batch_size, batches_per_update
        self.epoch, self.first_batch, self.epochs = first_epoch, first_batch, max(epochs, first_epoch + 1)
        self.rank, self.workers = rank, workers
        self.samples = TrainSamples(images, transform, len(data.mean), unreadable)
        self.iterator = None  # of MindSpore, over as many epochs as one of its pipelines can read

    @property
    def batches_per_epoch(self) -> int:
        return len(self.positions) // self.batch_size

    def __iter__(self):
        epoch, first = self.epoch, self.first_batch
        if self.iterator is None:
            self.iterator = self._open(epoch, first)
        numbered = ((*batch, epoch, number) for number, batch in enumerate(readable_batches(self.iterator), first))
        yield from one_ahead(numbered, self.finish)
        self.epoch, self.first_batch = epoch + 1, 0
        if first or self.images.fixed_order:
            self.iterator = None

    def _open(self, epoch: int, first_batch: int):
        """An iterator over the rest of an epoch from a batch on, or from its start over all epochs that follow."""
        positions = self.positions[first_batch * self.batch_size :]
        augment, seed, size = self.transform.augment, self.transform.seed, self.images.size
        if self.images.fixed_order:
            sampler = ds.SubsetSampler(epoch_order(seed, epoch, size, augment.repeats)[positions].tolist())
        else:
            sampler = EpochSampler(seed, size, positions, epoch, augment.repeats)
        keys = ds.GeneratorDataset(
            EpochKeys(positions, epoch), ["epoch", "position"], shuffle=False, python_multiprocessing=False
        )
        dataset = ds.zip((self.images.reader(sampler), keys)).batch(
            self.batch_size,
            drop_remainder=True,
            per_batch_map=self.samples,
            input_columns=["image", "label", "epoch", "position"],
            output_columns=["image", "label"],
            num_parallel_workers=self.workers,
            python_multiprocessing=self.workers > 1,
        )
        passes = 1 if first_batch or self.images.fixed_order else self.epochs - epoch
        return dataset.create_tuple_iterator(num_epochs=passes, output_numpy=True)

    def finish(self, images: np.ndarray, labels: np.ndarray, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Normalise, erase and mix a batch of pixels [B, H, W, C]; returns it with its targets."""
        images = normalise(images, self.data.mean, self.data.std)
        augment, seed, classes = self.transform.augment, self.transform.seed, len(self.images.classes)
        targets = soft_targets(labels, classes, augment.label_smoothing)
        if self.transform.mode(epoch) != "all":
            return images, targets
        height, width = images.shape[2:]
        if augment.erasing:
            count = augment.erasing_count
            count = tuple(count) if isinstance(count, list) else (count, count)
            positions = self.positions[number * self.batch_size :]
            for image, position in zip(images, positions, strict=False):
                choices = generator(seed, Stream.ERASING, epoch, position)
                rectangles = draw_rectangles(choices, height, width, augment.erasing, count)
                erase(image, rectangles, augment.erasing_mode, choices)
        if is_on(augment) and not (augment.mixup_off_epoch and epoch >= augment.mixup_off_epoch):
            update, part = divmod(epoch * self.batches_per_epoch + number, self.batches_per_update)
            choices = generator(seed, Stream.MIXING, update, part, self.rank)
            mixing = draw_mixing(choices, augment, len(images), height, width)
            mix_images(images, mixing)
            targets = mix_targets(targets, mixing)
        return images, targets


class EvalKeys:
    """Indices of the samples of an evaluation, beside them in the pipeline."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return ((np.int64(index),) for index in self.indices)

    def __len__(self):
        return len(self.indices)


class EvalBatches:
    """Batches of (images, labels, weights [B] float32, indices [B]) over every image once: rank r has r, r + ranks, ...

    Weights are 0 for unreadable images, else 1. The last batch is as small as it comes out. Each pass over the object
    is one over the images.

    Args:
        passes: how many there will be.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: EvalTransform,
        data,
        *,
        batch_size: int,
        unreadable: UnreadableImages,
        passes: int = 1,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 1,
    ):
        self.preprocessing = Preprocessing(transform, data.mean, data.std)
        indices = list(range(rank, images.size, ranks))
        if not indices:  # more ranks than images; MindSpore refuses an empty dataset
            self.iterator = ()
            return
        keys = ds.GeneratorDataset(EvalKeys(indices), ["index"], shuffle=False, python_multiprocessing=False)
        dataset = ds.zip((images.reader(ds.SubsetSampler(indices)), keys)).batch(
            batch_size,
            drop_remainder=False,
            per_batch_map=EvalSamples(images, self.preprocessing, unreadable),
            input_columns=["image", "label", "index"],
            output_columns=["image", "label", "weight", "index"],
            num_parallel_workers=workers,
            python_multiprocessing=workers > 1,
        )
        self.iterator = dataset.create_tuple_iterator(num_epochs=passes, output_numpy=True)

    def __iter__(self):
        yield from one_ahead(readable_batches(self.iterator), self.finish)

    def finish(self, images, labels, weights, indices):
        """Normalise a batch of pixels [B, H, W, C]."""
        return self.preprocessing.normalise(images), labels, weights, indices
