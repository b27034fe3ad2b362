"""Handles signals that ask a run to stop: it notes them at once, and the run stops after the update in progress."""

import os
import select
import signal
import subprocess
import sys
import time

STOPPED = os.EX_TEMPFAIL  # exit code of a run that a signal stopped, with everything saved: 75, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: some schedulers' warning, which mpirun forwards
SAME_REQUEST_SECONDS = 1.0  # signals within this time are one request: launcher and process group may each send one

HEARD_SECONDS = 0.2  # longest wait for what the listener has to say
# Joins a process group, and writes the time when that gets a SIGINT. It ends with its standard input.
LISTENER = """
import os, signal, sys, time
try:
    os.setpgid(0, int(sys.argv[1]))
except OSError:
    pass
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"%f\\n" % time.monotonic()))
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
sys.stdin.read()
"""


class Stopped(Exception):
    """Says that a run stopped on a signal, with everything saved. Its message is one line for the user."""


class CtrlCListener:
    """Listens for Ctrl-C at the terminal, where this process may get a SIGTERM for it.

    MindSpore makes a SIGTERM of a SIGINT that comes while it runs a graph. And only the process group in the foreground
    gets Ctrl-C, which is mpirun's; mpirun sends its processes a SIGTERM. A small process in that group listens for the
    original. There is none without a terminal, or in the background.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        group = _foreground_group()
        if group is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LISTENER, str(group)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )

    def heard_at(self, moment: float) -> bool:
        """Return whether Ctrl-C was pressed at about a moment of time.monotonic()."""
        if self.process is None or self.process.stdout is None:
            return False
        if not select.select([self.process.stdout], [], [], HEARD_SECONDS)[0]:
            return False
        times = os.read(self.process.stdout.fileno(), 4096).split()
        return any(abs(float(heard) - moment) < SAME_REQUEST_SECONDS for heard in times)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _foreground_group() -> int | None:
    """Return the terminal's process group in the foreground if it is this process's or its launcher's."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None
    try:
        group = os.tcgetpgrp(terminal)
    except OSError:
        return None
    finally:
        os.close(terminal)
    return group if group in (os.getpgrp(), os.getpgid(os.getppid())) else None


class Interruption:
    """Notes the first of SIGNALS while its context is open; a second signal has its usual effect, at once.

    Python runs a handler between two of its instructions: a signal during a computation of the device or a wait for a
    batch is noted right afterwards. Only the main thread can open the context.

    Args:
        names_it: whether this process says which signal it was, see CtrlCListener.
    """

    def __init__(self, names_it: bool = True):
        self.names_it = names_it
        self.listener = CtrlCListener()
        self.number: int | None = None
        self.time = 0.0
        self.earlier_handlers: dict = {}

    @property
    def requested(self) -> bool:
        """True if this process was asked to stop."""
        return self.number is not None

    @property
    def name(self) -> str:
        """The name of the signal; SIGINT for Ctrl-C, whatever this process got for it."""
        if self.number is None:
            return "a signal to another process"
        if self.number == signal.SIGTERM and self.listener.heard_at(self.time):
            self.number = signal.SIGINT
        return "SIGINT (Ctrl-C)" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def __enter__(self):
        self.number = None
        if self.names_it:
            self.listener.start()
        self.earlier_handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()
        self.listener.stop()

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
