"""Makes batches of a data set's files for training and evaluation.

MindSpore's datasets give the samples in order: their numbers, or what they read in C++. A batch of them, with the key
(epoch, position) of each, then goes to a Python worker process, where a task's `sample` opens, decodes and augments
them. (Sent image by image, the way to the workers and back would take a fifth of the whole time.) A task's `batch`
comes last, on whole batches and in a thread, one batch ahead of training: it turns bytes into floats, which are four
times as large. Order and randomness depend on (seed, epoch, position) and (seed, update, rank) alone, not on the state
of any operator: they are the same with any number of workers and after a resume.
"""

import ctypes
import gc
import os
import re
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import Parameter, Signature
from pathlib import Path
from threading import Lock
from typing import Literal

import mindspore.dataset as ds
import numpy as np

from focal_twins.data.dataset import DataError, Dataset
from focal_twins.files.names import escape_name, unescape_name
from focal_twins.phrases import counted
from focal_twins.random_streams import Stream, generator

# Options of mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Marks a worker's own message in the long report that MindSpore makes of its exception.
REFUSED = "the data cannot be used: "


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, size: int, repeats: int = 1) -> np.ndarray:
    """Return the global order of an epoch: sample indices by position, the same on every rank.

    With repeated augmentation (arXiv 1901.09335) each image comes `repeats` times in a row, at positions of their own
    and so differently augmented; an epoch stays as long and has as many fewer images.
    """
    order = generator(seed, Stream.ORDER, epoch).permutation(size)
    order = np.repeat(order, repeats)[:size]
    order.setflags(write=False)  # all callers share the cached array
    return order


def rank_positions(size: int, batch_size: int, batches_per_update: int, rank: int, ranks: int) -> np.ndarray:
    """Return the positions of the global order that a rank takes in an epoch of whole updates.

    Batch b of the epoch is the positions [b, b + 1) * batch_size * ranks. Rank r takes every ranks-th of them from the
    r-th on, so that copies of an image in a row (repeated augmentation) go to different ranks.
    """
    global_batch = batch_size * ranks
    batches = size // (global_batch * batches_per_update) * batches_per_update
    return np.arange(batches * global_batch).reshape(batches, batch_size, ranks)[..., rank].ravel()


class EpochPositions:
    """Tells which positions of an epoch's order a rank takes, in the order in which it takes them.

    Args:
        samples: may rearrange the order, see TrainSamples.
        size, repeats, seed: of the order, see epoch_order.
        batch_size, batches_per_update, rank, ranks: see rank_positions.
    """

    def __init__(self, samples, size, repeats, seed, batch_size, batches_per_update, rank, ranks):
        self.samples, self.size, self.repeats, self.seed = samples, size, repeats, seed
        self.slots = rank_positions(size, batch_size, batches_per_update, rank, ranks)
        self.unit = batch_size * batches_per_update * ranks
        self.lock = Lock()
        self.known: dict[int, np.ndarray] = {}  # of the last epochs that were asked for

    def __deepcopy__(self, memo):
        return self  # MindSpore copies what it is given, and what is known of an epoch would be computed again

    def __len__(self):
        return len(self.slots)

    def of(self, epoch: int) -> np.ndarray:
        """Return [len(self)] positions. They are computed once, whichever thread asks first."""
        with self.lock:
            if epoch not in self.known:
                arranged = self.samples.arrange(epoch, self.order(epoch), self.unit)
                kept = list(self.known.items())[-2:]
                self.known = dict(kept) | {epoch: self.slots if arranged is None else arranged[self.slots]}
            return self.known[epoch]

    def indices(self, epoch: int) -> np.ndarray:
        """Return the indices of the samples at these positions."""
        return self.order(epoch)[self.of(epoch)]

    def order(self, epoch: int) -> np.ndarray:
        return epoch_order(self.seed, epoch, self.size, self.repeats)


class EpochSampler(ds.Sampler):
    """Yields the sample indices of one rank, epoch after epoch; MindSpore iterates over a sampler once per epoch.

    Args:
        positions: EpochPositions. first: number of samples of an epoch that are left out.
    """

    def __init__(self, positions, first_epoch, first):
        super().__init__()
        self.positions, self.epoch, self.first = positions, first_epoch, first

    def __iter__(self):
        indices = self.positions.indices(self.epoch)[self.first :]
        self.epoch += 1
        return iter(indices.tolist())


class EpochKeys:
    """Yields (epoch, position) of the samples of an EpochSampler, in step with it."""

    def __init__(self, positions, first_epoch, first):
        self.positions, self.epoch, self.first = positions, first_epoch, first

    def __iter__(self):
        # A generator, because MindSpore also calls this only to see whether the object can be iterated over.
        epoch = np.int64(self.epoch)
        self.epoch += 1
        for position in self.positions.of(int(epoch))[self.first :]:
            yield epoch, position

    def __len__(self):
        return len(self.positions) - self.first


class UnreadableImages:
    """Gathers the names of unreadable images from worker processes through a file: lines of name, tab, reason.

    Names are written by `escape_name`, so that each is what the file system calls the image, whatever is in it.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, image: Path | str, reason: str) -> None:
        """Add one image; workers call this.

        One append is atomic. On a full disk the name is left out, which is better than ending the run.
        """
        line = f"{escape_name(image)}\t{escape_name(' '.join(reason.split())[:200])}\n".encode()
        with suppress(OSError), open(self.path, "ab", buffering=0) as file:
            file.write(line)

    def read(self) -> dict[str, str]:
        """Return the reason of each image, each image once."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        fields = (line.split("\t", 1) for line in lines if "\t" in line)
        return {unescape_name(image): unescape_name(reason) for image, reason in fields}


@dataclass(frozen=True)
class BatchKey:
    """Says where a training batch stands in the run; its randomness is keyed by this.

    Attributes:
        positions: [B] positions of its samples in the global order of the epoch.
        update, part: the update that it belongs to, counted over the run, and its number among the update's batches.
    """

    epoch: int
    positions: np.ndarray
    update: int
    part: int
    rank: int


class TrainSamples(ABC):
    """Turns the samples of a data set into arrays for training; each task has its own."""

    outputs: tuple[str, ...]  # names of the arrays that `sample` returns

    def arrange(self, epoch: int, order: np.ndarray, unit: int) -> np.ndarray | None:
        """Return positions of an epoch's order in the order in which they are to be trained on; None: as they are.

        The samples of an update have consecutive places in it. A sample keeps the position by which its randomness is
        keyed. The result must follow from the arguments and the run's seed alone, so that every rank finds the same.

        Args:
            order: [size] sample indices by position.
            unit: number of samples of an update, on all ranks.

        Returns:
            [size // unit * unit] positions, of which some may come twice and some not at all.
        """
        return None

    @abstractmethod
    def sample(self, columns: tuple[np.ndarray, ...], epoch: int, position: int) -> tuple[np.ndarray, ...]:
        """Turn the columns of one sample into arrays of fixed shapes. Runs in a worker process."""

    @abstractmethod
    def batch(self, arrays: tuple[np.ndarray, ...], key: BatchKey) -> tuple[np.ndarray, ...]:
        """Turn the stacked arrays of a batch into what the loss takes. Runs in a thread of the training process."""


class EvalSamples(ABC):
    """Turns the samples of a data set into arrays for evaluation; each task has its own."""

    outputs: tuple[str, ...]

    def order(self, indices: list[int]) -> list[int]:
        """Return the samples of a rank in the order in which they are to come; by default it stays."""
        return indices

    @abstractmethod
    def sample(self, columns: tuple[np.ndarray, ...], index: int) -> tuple[np.ndarray, ...]:
        """Turn the columns of one sample into arrays. Runs in a worker process."""

    @abstractmethod
    def batch(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Turn the stacked arrays of a batch into what the evaluator takes. Runs in a thread."""


class SampleWorker:
    """Calls a task's `sample` for every sample of a batch, in a worker process.

    Args:
        columns: names of the columns that MindSpore hands over: the data set's columns, then the keys.
        keys: how many of them are keys.
    """

    def __init__(self, samples: TrainSamples | EvalSamples, columns: list[str], keys: int):
        self.samples, self.keys = samples, keys
        self.creator = os.getpid()
        # MindSpore compares the number of arguments with that of the columns, and adds information on the batch.
        self.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_ONLY) for name in [*columns, "batch"]])

    def __call__(self, *lists):
        """Take lists over the batch, of columns and of the keys (integers) behind them; return lists of arrays."""
        if os.getpid() != self.creator:
            keep_freed_memory()
        *lists, _batch_info = lists
        try:
            processed = [
                self.samples.sample(row[: -self.keys], *map(int, row[-self.keys :])) for row in zip(*lists, strict=True)
            ]
        except DataError as error:
            raise DataError(f"{REFUSED}{error}") from error
        outputs = tuple(list(output) for output in zip(*processed, strict=True))
        for name, arrays in zip(self.samples.outputs, outputs, strict=True):
            if len(shapes := dict.fromkeys(np.shape(array) for array in arrays)) > 1:
                raise DataError(
                    f"{REFUSED}{name} of one batch have different shapes ({', '.join(map(str, [*shapes][:2]))}); "
                    "set eval.batch_size=1"
                )
        return outputs


@cache
def keep_freed_memory() -> None:
    """Make the C library keep the memory that it frees, so that the next image's arrays need no new pages.

    Only worker processes call this, since they use the same little memory over and over; it saves 4% of their time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            library.mallopt(option, 1 << 30)


def resolve_workers(workers: int | Literal["auto"], local_ranks: int) -> int:
    """Return the number of reader processes per device; "auto" divides the machine's cores among its devices.

    MindSpore takes no more than there are cores, so a number from a larger machine's configuration is cut to that.
    """
    cores = os.cpu_count() or 1
    return max(1, cores // local_ranks) if workers == "auto" else min(workers, cores)


def configure_reading(data, memory_nodes: int | None = None) -> None:
    """Apply the data section of a configuration to MindSpore's global settings.

    Automatic prefetching is of 4 rows per stage, because a row of the last stage is a whole batch. Automatic binding is
    on where a machine has several memory nodes and libnuma, which MindSpore needs for it.

    Raises:
        DataError: the configuration asks for binding and libnuma is missing.
    """
    ds.config.set_prefetch_size(4 if data.prefetch == "auto" else data.prefetch)
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) if memory_nodes is None else memory_nodes
    if data.numa is True and not has_libnuma():
        raise DataError(
            "data.numa: true needs the system's libnuma (package libnuma1 or numactl); install it, or false"
        )
    ds.config.set_numa_enable(data.numa is True or (data.numa == "auto" and nodes > 1 and has_libnuma()))


def has_libnuma() -> bool:
    """Return whether libnuma, by which MindSpore binds processes to memory nodes, is installed."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def finish_abandoned_iterators() -> None:
    """Collect garbage, before worker processes start as copies of this one.

    An iterator of MindSpore's that nobody refers to any more, such as one that an error ended, would be in the copies,
    too. Where a copy collects it, it is to stop threads that the copy does not have: the worker crashes, and the
    process that waits for its batches stands still.
    """
    gc.collect()


def _read(iterator):
    """Yield the batches of an iterator of MindSpore's.

    Raises:
        DataError: a file cannot be opened, or a worker refused the data.
    """
    try:
        yield from iterator
    except RuntimeError as error:
        # MindSpore wraps the message into a report of many lines.
        match = re.search(f"{re.escape(REFUSED)}(.*)", str(error)) or re.search(
            r"\[ERROR\] (.*\b[Ff]ile\b.*)", str(error)
        )
        if match is None:
            raise
        raise DataError(match[1]) from error


def prefetch(batches, finish):
    """Yield finish(*batch) of each batch; another thread computes it while the batch before is in use.

    MindSpore's iterator stays in this thread, because an error that it raises in another thread ends the process.
    """
    with ThreadPoolExecutor(1) as thread:
        upcoming = None
        for batch in batches:
            current, upcoming = upcoming, thread.submit(finish, *batch)
            if current is not None:
                yield current.result()
        if upcoming is not None:
            yield upcoming.result()


class TrainBatches:
    """Yields the training batches of a task, different in every epoch.

    Each pass over the object is the next epoch. In a run that continues one cut within an epoch, the first pass is the
    rest of that epoch.

    Args:
        batches_per_update: an epoch is whole updates.
        epochs: number of epochs of the whole run.
        repeats: see epoch_order.
        first_epoch: the epoch of the first pass.
        first_batch: number of batches of this epoch that were trained on already.

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
        self.positions = EpochPositions(samples, data.size, repeats, seed, batch_size, batches_per_update, rank, ranks)
        if not len(self.positions):
            needed = batch_size * ranks * batches_per_update
            raise DataError(
                f"data folder {data.path}: {counted(data.size, 'image')} do not fill one update of {needed}; "
                "lower train.batch_size"
            )
        self.data, self.samples = data, samples
        self.batch_size, self.batches_per_update = batch_size, batches_per_update
        self.epoch, self.first_batch, self.epochs = first_epoch, first_batch, max(epochs, first_epoch + 1)
        self.rank, self.workers = rank, workers
        self.iterator = None  # MindSpore's, over as many epochs as one of its pipelines can read

    @property
    def batches_per_epoch(self) -> int:
        return len(self.positions) // self.batch_size

    def __iter__(self):
        epoch, first = self.epoch, self.first_batch
        if self.iterator is None:
            self.iterator = self._open(epoch, first)
        numbered = ((batch, self._key(epoch, number)) for number, batch in enumerate(_read(self.iterator), first))
        yield from prefetch(numbered, self.samples.batch)
        self.epoch, self.first_batch = epoch + 1, 0
        if first or self.data.fixed_order:
            self.iterator = None

    def _key(self, epoch: int, number: int) -> BatchKey:
        """Return the key of a batch by its number in the epoch."""
        first = number * self.batch_size
        positions = self.positions.of(epoch)[first : first + self.batch_size]
        update, part = divmod(epoch * self.batches_per_epoch + number, self.batches_per_update)
        return BatchKey(epoch, positions, update, part, self.rank)

    def _open(self, epoch: int, first_batch: int):
        """Open an iterator over the rest of an epoch from a batch on, or from its start over all epochs that follow."""
        first = first_batch * self.batch_size
        if self.data.fixed_order:
            sampler = ds.SubsetSampler(self.positions.indices(epoch)[first:].tolist())
        else:
            sampler = EpochSampler(self.positions, epoch, first)
        keys = ds.GeneratorDataset(
            EpochKeys(self.positions, epoch, first), ["epoch", "position"], shuffle=False, python_multiprocessing=False
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
        finish_abandoned_iterators()
        return dataset.create_tuple_iterator(num_epochs=passes, output_numpy=True)


class EvalKeys:
    """Yields the indices of an evaluation's samples, which go through the pipeline beside them."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return ((np.int64(index),) for index in self.indices)

    def __len__(self):
        return len(self.indices)


class EvalBatches:
    """Yields the evaluation batches of a task, every sample once; rank r has the samples r, r + ranks, ...

    The last batch is as small as it comes out. Each pass over the object is one over the samples. It reads nothing
    before the first pass.

    Args:
        passes: number of passes that there will be.
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
        yield from prefetch(batches, self.samples.batch)

    def _open(self):
        self.indices = self.samples.order(self.indices)
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
        finish_abandoned_iterators()
        return dataset.create_tuple_iterator(num_epochs=self.passes, output_numpy=True)
