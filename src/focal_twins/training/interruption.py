"""Handles signals that ask a run to stop: it notes them at once, and the run stops after the update in progress."""

import os
import signal
import time

STOPPED = os.EX_TEMPFAIL  # exit code of a run that a signal stopped, with everything saved: 75, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: some schedulers' warning, which mpirun forwards
SAME_REQUEST_SECONDS = 1.0  # signals within this time are one request: launcher and process group may each send one


class Stopped(Exception):
    """Says that a run stopped on a signal, with everything saved. Its message is one line for the user."""


class Interruption:
    """Notes the first of SIGNALS while its context is open; a second signal has its usual effect, at once.

    Python runs a handler between two of its instructions: a signal during a computation of the device or a wait for a
    batch is noted right afterwards. (While it runs a graph, MindSpore turns a SIGINT into a SIGTERM.) Only the main
    thread can open the context.
    """

    def __init__(self):
        self.number: int | None = None
        self.time = 0.0
        self.earlier_handlers = {}

    @property
    def requested(self) -> bool:
        """True if this process was asked to stop."""
        return self.number is not None

    @property
    def name(self) -> str:
        """The name of the signal."""
        return "a signal to another process" if self.number is None else signal.Signals(self.number).name

    def __enter__(self):
        self.number = None
        self.earlier_handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _restore(self):
        for number, handler in self.earlier_handlers.items():
            signal.signal(number, handler)
        self.earlier_handlers = {}

    def _note(self, number, frame):
        now = time.monotonic()
        if self.number is None:
            self.number, self.time = number, now
        elif now - self.time > SAME_REQUEST_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)
