"""Reads files by threads, ahead of whoever works on what was read."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


def read_ahead(
    read: Callable[[str], object], names: list[str], size: int, workers: int
) -> Iterator[tuple[slice, list]]:
    """Yield what is read of files, so many at a time, and which of the names these are; the next are read meanwhile.

    Args:
        workers: number of threads that read.
    """
    with ThreadPoolExecutor(workers) as threads:

        def begin(first: int) -> list:
            return [threads.submit(read, name) for name in names[first : first + size]]

        upcoming = begin(0)
        for first in range(0, len(names), size):
            loaded, upcoming = [future.result() for future in upcoming], begin(first + size)
            yield slice(first, first + size), loaded
