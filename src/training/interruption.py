"""Signals that ask a run to stop: noted at once, acted on after the update in progress."""

import os
import signal
import time

STOPPED = os.EX_TEMPFAIL  # exit code of a run that a signal stopped, with everything saved: 75, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: some schedulers' warning, which mpirun forwards
SAME_REQUEST_SECONDS = 1.0  # a launcher and the process group it is in may each deliver one


class Stopped(Exception):
    """A run that stopped on a signal, with everything saved. Its message is one line for the user."""


class Interruption:
    """While the context is open, the first of SIGNALS is only noted; a second one has its usual effect, at once.

    Python runs a handler between two of its instructions: a signal that comes while the device computes or a batch is
    awaited is noted right afterwards. (While it runs a graph, MindSpore makes a SIGTERM of a SIGINT.) Only the main
    thread can open the context.
    """

    def __init__(self):
        self.number: int | None = None
        self.time = 0.0
        self.earlier = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.number is not None

    @property
    def name(self) -> str:
        """The signal, in words."""
        return "a signal to another process" if self.number is None else signal.Signals(self.number).name

    def __enter__(self):
        self.number = None
        self.earlier = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _restore(self):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        self.earlier = {}

    def _note(self, number, frame):
        now = time.monotonic()
        if self.number is None:
            self.number, self.time = number, now
        elif now - self.time > SAME_REQUEST_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)
