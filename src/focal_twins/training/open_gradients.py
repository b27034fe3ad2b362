"""Drops gradients that an error interrupted, which MindSpore would keep open."""

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore.common.api import _pynative_executor


def drop_open_gradients() -> None:
    """Drop gradients that were begun operator by operator (PyNative mode) and not ended.

    MindSpore 2.10 does not end a gradient whose function raises. It then takes every later gradient of the process for
    a gradient of that one, and fails where such a function indexes a tensor by an integer.
    """
    _pynative_executor.clear_res()


@contextmanager
def no_open_gradients() -> Iterator[None]:
    """Drop, where the context ends by an error, the gradients that it interrupted: a later step works again."""
    try:
        yield
    except BaseException:  # Ctrl-C in a notebook as well
        if ms.get_context("mode") == ms.PYNATIVE_MODE:
            drop_open_gradients()
        raise
