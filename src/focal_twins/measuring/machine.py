"""Measures how busy other processes keep this machine during a measurement.

It runs on Linux and needs only the standard library.
"""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # ticks a second, in which the kernel counts CPU time
QUIET = 0.05  # share of the cores that others may take for a measurement to count as undisturbed


def descendants(process: int) -> list[int]:
    """List the child processes of a process, their children and so on, as far as they still run."""
    result = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            direct = [int(child) for child in children.read_text().split()]
        except OSError:  # the thread has ended
            continue
        result += [process for child in direct for process in (child, *descendants(child))]
    return result


def process_seconds(process: int) -> float:
    """Return the CPU time that a process has used, in seconds; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS  # in user and in system mode


class OthersLoad:
    """Watches how much of the cores others take: processes that this one did not start, and the host's other guests.

    The CPU time of a child process that has ended counts as this process's own once it was waited for.
    """

    def __init__(self):
        self.busy, self.total = _processor_seconds()
        self.own = _own_seconds()

    def share(self) -> float:
        """Return the share of all cores, from 0 to 1, that others took since the watch began."""
        busy, total = _processor_seconds()
        if total == self.total:
            return 0.0
        return min(1.0, max(0.0, busy - self.busy - (_own_seconds() - self.own)) / (total - self.total))


def idle_load(seconds: float = 2.0) -> float:
    """Wait some seconds and return the share of all cores that others took meanwhile."""
    watch = OthersLoad()
    time.sleep(seconds)
    return watch.share()


def busy_note(share: float) -> str:
    """Return what a line on a measurement ends with: a warning where others took more of the cores than QUIET."""
    return ": NOT A QUIET MACHINE" if share > QUIET else ""


def _processor_seconds() -> tuple[float, float]:
    """Return the seconds of all cores since the machine started: busy (in use, or taken by the host) and in total."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, idle, waiting, interrupts, soft_interrupts, steal = map(int, first[1:9])
    busy = user + nice + system + interrupts + soft_interrupts + steal
    return busy / TICKS, (busy + idle + waiting) / TICKS


def _own_seconds() -> float:
    """Return the CPU seconds of this process and of its descendants, those that have ended included."""
    times = os.times()
    running = sum(map(process_seconds, descendants(os.getpid())))
    return times.user + times.system + times.children_user + times.children_system + running
