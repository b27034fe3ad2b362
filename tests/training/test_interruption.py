"""Signals: noted, acted on after the update in progress, by all processes alike."""

import os
import signal
import time

import numpy as np
import pytest

from focal_twins.files.weights import read_checkpoint
from focal_twins.training import interruption
from focal_twins.training.interruption import Interruption, Stopped
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
    assert str(stopped.value) == (
        f"stopped by SIGTERM after epoch 1, update 10 of 14; saved {run.checkpoints.last}; go on with train.resume=auto"
    )
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
