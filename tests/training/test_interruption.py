"""Signals: noted, acted on after the update in progress, by all processes alike."""

import os
import pty
import signal
import sys
import time

import numpy as np
import pytest

from focal_twins.files.weights import read_checkpoint
from focal_twins.training import interruption
from focal_twins.training.interruption import Interruption, Stopped
from tests.conftest import PACKAGE
from tests.training.states import EVERYTHING, assert_same_end


@pytest.fixture
def python_handler():
    """Python's own handler of SIGINT, whatever ran before in this process has left."""
    left = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, left or signal.default_int_handler)


def test_the_second_request_has_the_usual_effect(monkeypatch, python_handler):
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with Interruption() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)  # the same request, by another way
        assert (stop.requested, stop.name) == (True, "SIGUSR1")
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


@pytest.mark.parametrize("launcher", [None, "mpirun"])
def test_ctrl_c_is_named_where_a_sigterm_stands_for_it(launcher):
    """At a real terminal: MindSpore makes a SIGTERM of it, or a launcher in the foreground sends one."""
    process = f"""
import os, signal, sys, time
sys.path.insert(0, {str(PACKAGE.parent)!r})
from focal_twins.training import interruption
interruption.HEARD_SECONDS = interruption.SAME_REQUEST_SECONDS = 60.0
with interruption.Interruption() as stop:
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    def listens():
        with open(f"/proc/{{stop.listener.process.pid}}/status") as lines:
            (ignored,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
        return ignored >> (signal.SIGTERM - 1) & 1  # the last thing that it does before it waits
    while not listens():
        time.sleep(0.01)
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("by", stop.name, flush=True)
"""
    launch = f"""
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {process!r}], preexec_fn=lambda: __import__("os").setpgid(0, 0))
signal.signal(signal.SIGINT, lambda *_: child.terminate())
child.wait()
"""
    program = process if launcher is None else launch
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    shown = b""
    while b"by" not in shown or not shown.endswith(b"\n"):
        try:
            shown += os.read(terminal, 1000)
        except OSError:  # the process has ended
            break
        if shown.endswith(b"ready\r\n"):
            os.write(terminal, b"\x03")
    os.waitpid(child, 0)
    os.close(terminal)
    assert b"by SIGINT (Ctrl-C)" in shown, shown.decode()


def stop_when(run, method, condition):
    """Signal this process when a method of a run is called and the condition holds."""
    original = getattr(run, method)

    def call(*arguments):
        if condition():
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    setattr(run, method, call)


def test_a_stopped_run_goes_on_as_if_it_had_not(trainer, uninterrupted):
    """Stopped within an epoch and in an evaluation, which is finished first."""
    before = signal.getsignal(signal.SIGTERM)
    run = trainer("run", *EVERYTHING)
    stop_when(run, "_update", lambda: run.state.progress.update == 9)
    with pytest.raises(Stopped) as stopped:
        run.run()
    assert str(stopped.value) == f"stopped by SIGTERM after epoch 1, update 10 of 14; saved {run.checkpoints.last}"
    assert signal.getsignal(signal.SIGTERM) is before
    run = trainer("run", *EVERYTHING, "train.resume=auto")
    assert run.state.progress.update == 10
    stop_when(run, "_evaluate", lambda: True)
    with pytest.raises(Stopped, match="after epoch 1; saved"):
        run.run()
    run = trainer("run", *EVERYTHING, "train.resume=auto")
    assert (run.state.progress.update, run.state.progress.images) == (14, 0)
    # In the last evaluation there is nothing left to stop.
    stop_when(run, "_evaluate", lambda: run.state.progress.epoch == 3)
    run.run()
    assert_same_end(uninterrupted.run, run)


def test_votes_of_other_processes_count_an_update_later(trainer):
    """What one process learns of the others is in the outcome, which all read after the next update."""
    run = trainer("run", "runtime.compile_cache=null")  # which keeps graphs of cells, and `voted` is none
    step = run.step

    def voted(*arguments):
        outcome = step(*arguments)
        if run.state.progress.update == 4:  # the fifth update
            outcome[3] = 1
        return outcome

    voted.counts_first, voted.accumulation_caveat = step.counts_first, step.accumulation_caveat
    run.step = voted
    with pytest.raises(Stopped, match=r"by a signal to another process after epoch 1, update 6 of 14"):
        run.run()
    assert np.asarray(read_checkpoint(run.checkpoints.last)["optimizer.step"]) == 6
