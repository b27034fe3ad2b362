"""What else runs on the machine: processes of others count, one's own do not."""

import os
import subprocess
import sys
import time

import pytest

from focal_twins.measuring.machine import OthersLoad, descendants, process_seconds

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
# A shell that ends at once leaves its child to the system: nobody's descendant here.
ORPHAN = 'exec >/dev/null 2>&1; "$0" -c "$1" & '


def test_processes_of_others_count():
    watch = OthersLoad()
    subprocess.run(["sh", "-c", ORPHAN, sys.executable, BURN.format(1.0)], check=True)
    time.sleep(2.5)
    assert watch.share() * 2.5 * (os.cpu_count() or 1) > 0.5


def test_ones_own_processes_do_not_count(monkeypatch):
    """On a machine where nothing runs but this process and its child."""
    child = subprocess.Popen([sys.executable, "-c", BURN.format(0.5) + "\ntime.sleep(60)"])
    try:
        used = (lambda: time.process_time() + process_seconds(child.pid), time.monotonic)
        monkeypatch.setattr(
            "focal_twins.measuring.machine._processor_seconds", lambda: tuple(clock() for clock in used)
        )
        watch = OthersLoad()
        before = process_seconds(child.pid)
        for _ in range(200):
            time.sleep(0.1)
            if process_seconds(child.pid) > before + 0.3:
                break
        assert child.pid in descendants(os.getpid())
        assert watch.share() < 0.05
    finally:
        child.kill()
        child.wait()


def test_a_process_that_has_ended_has_used_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process_seconds(child.pid) == pytest.approx(0.0)
