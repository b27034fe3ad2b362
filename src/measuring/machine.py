"""What else runs on this machine while something is measured. Linux; only the standard library."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # a second, in which the kernel counts CPU time
QUIET = 0.05  # share of the cores that others may take for a measurement to count as undisturbed


def descendants(process: int) -> list[int]:
    """The processes that a process started, and that these started, as far as they still run."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            started = [int(child) for child in children.read_text().split()]
        except OSError:  # the thread has ended
            continue
        found += [other for child in started for other in (child, *descendants(child))]
    return found


def process_seconds(process: int) -> float:
    """CPU time that a process has used, in seconds; of one that has ended, 0."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS  # in user and in system mode


class OthersLoad:
    """Watches how much of the cores others take: processes that this one did not start, and the host's other guests.

    Of a child process that has ended, what it used since the watch began counts as this process' own once it was
    waited for.
    """

    def __init__(self):
        self.busy, self.total = _processor_seconds()
        self.own = _own_seconds()

    def share(self) -> float:
        """Since the watch began, as a share of all cores: from 0 to 1."""
        busy, total = _processor_seconds()
        if total == self.total:
            return 0.0
        return min(1.0, max(0.0, busy - self.busy - (_own_seconds() - self.own)) / (total - self.total))


def idle_load(seconds: float = 2.0) -> float:
    """The share of all cores that others take while this process waits."""
    watch = OthersLoad()
    time.sleep(seconds)
    return watch.share()


def _processor_seconds() -> tuple[float, float]:
    """CPU time since the machine started, of all cores: in use, or taken by the host (steal), and in all."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, idle, waiting, interrupts, soft_interrupts, steal = map(int, first[1:9])
    busy = user + nice + system + interrupts + soft_interrupts + steal
    return busy / TICKS, (busy + idle + waiting) / TICKS


def _own_seconds() -> float:
    """CPU time of this process, of those that it started, and of those of them that have ended."""
    times = os.times()
    running = sum(map(process_seconds, descendants(os.getpid())))
    return times.user + times.system + times.children_user + times.children_system + running
