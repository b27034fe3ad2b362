"""From files to batches.

Files are found and read by MindSpore's datasets in C++; a batch of them then goes to a Python worker process with the
key (epoch, position) of each, where a task's `sample` decodes and augments them. (Image by image, the way to the
workers and back takes a fifth of the whole time.) A task's `batch` comes last, on whole batches and in a thread, one
batch ahead of training: it makes floats of bytes, which are a quarter of their size. Order and randomness belong to
(seed, epoch, position) and (seed, update, rank), not to the state of any operator: they are the same with any number of
workers and after a resume.
"""

import ctypes
import os
import re
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import Literal

import mindspore.dataset as ds
import numpy as np

from src.data.dataset import DataError, Dataset
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


@dataclass(frozen=True)
class BatchKey:
    """Where a training batch stands in the run; its randomness is keyed by this.

    Attributes:
        positions: [B] of its samples in the global order of the epoch.
        update, part: the update that it belongs to, counted over the run, and which of the update's batches it is.
    """

    epoch: int
    positions: np.ndarray
    update: int
    part: int
    rank: int


class TrainSamples(ABC):
    """What a task makes of the samples of a data set for training."""

    outputs: tuple[str, ...]  # names of what `sample` returns

    @abstractmethod
    def sample(self, columns: tuple[np.ndarray, ...], epoch: int, position: int) -> tuple[np.ndarray, ...]:
        """Turn the columns of one sample into arrays of fixed shapes. Runs in a worker process."""

    @abstractmethod
    def batch(self, arrays: tuple[np.ndarray, ...], key: BatchKey) -> tuple[np.ndarray, ...]:
        """Turn the stacked arrays of a batch into what the loss takes. Runs in a thread of the training process."""


class EvalSamples(ABC):
    """What a task makes of the samples of a data set for evaluation."""

    outputs: tuple[str, ...]

    @abstractmethod
    def sample(self, columns: tuple[np.ndarray, ...], index: int) -> tuple[np.ndarray, ...]:
        """Turn the columns of one sample into arrays. Runs in a worker process."""

    @abstractmethod
    def batch(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Turn the stacked arrays of a batch into what the evaluator takes. Runs in a thread."""


class SampleWorker:
    """Calls a task's `sample` for every sample of a batch, in a worker process.

    Args:
        columns: names of what MindSpore hands over: the data set's columns, then the keys.
        keys: how many of them are keys.
    """

    def __init__(self, samples: TrainSamples | EvalSamples, columns: list[str], keys: int):
        self.samples, self.keys = samples, keys
        self.home = os.getpid()
        # MindSpore holds the number of arguments against that of the columns, and adds information on the batch.
        self.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_ONLY) for name in [*columns, "batch"]])

    def __call__(self, *lists):
        """Take lists over the batch, of columns and of the keys (integers) behind them; return lists of arrays."""
        if os.getpid() != self.home:
            keep_freed_memory()
        *lists, _batch_info = lists
        made = [
            self.samples.sample(row[: -self.keys], *map(int, row[-self.keys :])) for row in zip(*lists, strict=True)
        ]
        return tuple(list(output) for output in zip(*made, strict=True))


@cache
def keep_freed_memory() -> None:
    """Once in a process, have the C library keep what it frees, so that the next image's arrays need no new pages.

    For worker processes alone, which use the same little memory over and over; 4% of their time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            library.mallopt(option, 1 << 30)


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


def _read(iterator):
    """Yield the batches of an iterator of MindSpore's.

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


def prefetched(batches, finish):
    """Yield finish(*batch) of each batch, each worked out in another thread while the one before is in use.

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
    """Training batches of a task, different in every epoch.

    Each pass over the object is the next epoch; one that continues a run cut within an epoch begins with what is left
    of it.

    Args:
        batches_per_update: an epoch is whole updates.
        epochs: of the whole run.
        repeats: see epoch_order.
        first_epoch: the epoch of the first pass.
        first_batch: batches of this epoch that were trained on already.

    Raises:
        DataError: too few images for one update.
    """

    def __init__(
        self,
        data: Dataset,
        samples: TrainSamples,
        *,
        seed: int,
        batch_size: int,
        batches_per_update: int = 1,
        epochs: int = 1,
        repeats: int = 1,
        first_epoch: int = 0,
        first_batch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 1,
    ):
        self.positions = rank_positions(data.size, batch_size, batches_per_update, rank, ranks)
        if not len(self.positions):
            needed = batch_size * ranks * batches_per_update
            raise DataError(
                f"data folder {data.path}: {data.size} images do not fill one update of {needed}; "
                "lower train.batch_size"
            )
        self.data, self.samples, self.seed = data, samples, seed
        self.batch_size, self.batches_per_update, self.repeats = batch_size, batches_per_update, repeats
        self.epoch, self.first_batch, self.epochs = first_epoch, first_batch, max(epochs, first_epoch + 1)
        self.rank, self.workers = rank, workers
        self.iterator = None  # of MindSpore, over as many epochs as one of its pipelines can read

    @property
    def batches_per_epoch(self) -> int:
        return len(self.positions) // self.batch_size

    def __iter__(self):
        epoch, first = self.epoch, self.first_batch
        if self.iterator is None:
            self.iterator = self._open(epoch, first)
        numbered = ((batch, self._key(epoch, number)) for number, batch in enumerate(_read(self.iterator), first))
        yield from prefetched(numbered, self.samples.batch)
        self.epoch, self.first_batch = epoch + 1, 0
        if first or self.data.fixed_order:
            self.iterator = None

    def _key(self, epoch: int, number: int) -> BatchKey:
        """The key of a batch by its number in the epoch."""
        first = number * self.batch_size
        update, part = divmod(epoch * self.batches_per_epoch + number, self.batches_per_update)
        return BatchKey(epoch, self.positions[first : first + self.batch_size], update, part, self.rank)

    def _open(self, epoch: int, first_batch: int):
        """An iterator over the rest of an epoch from a batch on, or from its start over all epochs that follow."""
        positions = self.positions[first_batch * self.batch_size :]
        size, seed = self.data.size, self.seed
        if self.data.fixed_order:
            sampler = ds.SubsetSampler(epoch_order(seed, epoch, size, self.repeats)[positions].tolist())
        else:
            sampler = EpochSampler(seed, size, positions, epoch, self.repeats)
        keys = ds.GeneratorDataset(
            EpochKeys(positions, epoch), ["epoch", "position"], shuffle=False, python_multiprocessing=False
        )
        columns = [*self.data.columns, "epoch", "position"]
        dataset = ds.zip((self.data.reader(sampler), keys)).batch(
            self.batch_size,
            drop_remainder=True,
            per_batch_map=SampleWorker(self.samples, columns, keys=2),
            input_columns=columns,
            output_columns=list(self.samples.outputs),
            num_parallel_workers=self.workers,
            python_multiprocessing=self.workers > 1,
        )
        passes = 1 if first_batch or self.data.fixed_order else self.epochs - epoch
        return dataset.create_tuple_iterator(num_epochs=passes, output_numpy=True)


class EvalKeys:
    """Indices of the samples of an evaluation, beside them in the pipeline."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return ((np.int64(index),) for index in self.indices)

    def __len__(self):
        return len(self.indices)


class EvalBatches:
    """Evaluation batches of a task over every sample once: rank r has r, r + ranks, ...

    The last batch is as small as it comes out. Each pass over the object is one over the samples. Nothing is read
    before the first.

    Args:
        passes: how many there will be.
    """

    def __init__(
        self,
        data: Dataset,
        samples: EvalSamples,
        *,
        batch_size: int,
        passes: int = 1,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 1,
    ):
        self.data, self.samples, self.batch_size = data, samples, batch_size
        self.passes, self.workers = passes, workers
        self.indices = list(range(rank, data.size, ranks))
        self.iterator = None

    def __iter__(self):
        if not self.indices:  # more ranks than samples; MindSpore refuses an empty dataset
            return
        if self.iterator is None:
            self.iterator = self._open()
        batches = ((batch,) for batch in _read(self.iterator))
        yield from prefetched(batches, self.samples.batch)

    def _open(self):
        keys = ds.GeneratorDataset(EvalKeys(self.indices), ["index"], shuffle=False, python_multiprocessing=False)
        columns = [*self.data.columns, "index"]
        dataset = ds.zip((self.data.reader(ds.SubsetSampler(self.indices)), keys)).batch(
            self.batch_size,
            drop_remainder=False,
            per_batch_map=SampleWorker(self.samples, columns, keys=1),
            input_columns=columns,
            output_columns=list(self.samples.outputs),
            num_parallel_workers=self.workers,
            python_multiprocessing=self.workers > 1,
        )
        return dataset.create_tuple_iterator(num_epochs=self.passes, output_numpy=True)
