"""Reads files by threads, ahead of whoever works on what was read."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def read_ahead(read: Callable[[Any], object], sources: list, size: int, workers: int) -> Iterator[tuple[slice, list]]:
    """Yield what is read of sources, so many at a time, and which of them these are; the next are read meanwhile.

    Args:
        workers: number of threads that read.
    """
    with ThreadPoolExecutor(workers) as threads:

        def begin(first: int) -> list:
            return [threads.submit(read, source) for source in sources[first : first + size]]

        upcoming = begin(0)
        for first in range(0, len(sources), size):
            loaded, upcoming = [future.result() for future in upcoming], begin(first + size)
            yield slice(first, first + size), loaded
