"""Lets processes take turns, so that they can be timed side by side on a machine whose speed drifts.

It has both ends of a protocol of JSON lines: `serve` runs in the process that works, `Worker` in the one that says
whose turn it is. It needs only the standard library, so that other interpreters can run the working end.

Every worker starts with the same number of threads on the same processors. It does not inherit them: MindSpore sets
OMP_NUM_THREADS=1 in the C library's environment when it is imported, where os.environ does not show it, and a PyTorch
started from such a process would run on one thread.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from focal_twins.errors import UserError
from focal_twins.measuring.machine import OthersLoad, descendants, process_seconds

# Variables that decide how many threads libraries use, where these run and how they wait.
THREAD_VARIABLES = re.compile(r"(OMP|GOMP|KMP)_.*|\w+_NUM_THREADS|MKL_DYNAMIC")
WAIT_POLICIES = ("passive", "active")
PROCESSORS = os.sched_getaffinity(0)  # read at the start, because a later import may bind this process to fewer


def thread_environment(threads: int, wait_policy: str | None = None) -> dict[str, str]:
    """Return the environment that this process was started with, changed to the given number of library threads.

    Args:
        wait_policy: what OpenMP's threads do between two parallel regions, see WAIT_POLICIES; None for the library's
            own policy.
    """
    kept = {name: value for name, value in os.environ.items() if not THREAD_VARIABLES.fullmatch(name)}
    chosen = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return kept | chosen | ({"OMP_WAIT_POLICY": wait_policy} if wait_policy else {})


def resident_bytes(peak: bool) -> int:
    """Return this process's resident size in bytes, now or at its peak so far.

    It does not use getrusage's peak, where a process that a large one started begins with the large one's size.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
    assert line is not None  # Linux always has this line
    return int(line[1]) * 1024


def serve(prepare: Callable[[], dict[str, Callable]]) -> None:
    """Run the functions that the other end asks for, until it closes the pipe.

    Other output of this process to standard output goes to standard error.

    Args:
        prepare: makes the functions that can be asked for, by name. Their results are sent back, so they must be JSON.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    functions = prepare()
    for line in sys.stdin:
        start, cpu = time.perf_counter(), _cpu_seconds()
        result = functions[line.strip()]()
        seconds = time.perf_counter() - start
        used = {process: amount - cpu.get(process, 0.0) for process, amount in _cpu_seconds().items()}
        answer = {
            "seconds": seconds,
            "cpu_seconds": sum(used.values()),
            "busy_children": sum(amount > seconds / 10 for process, amount in used.items() if process != os.getpid()),
            "resident": resident_bytes(False),
            "peak": resident_bytes(True),
            "processors": sorted(os.sched_getaffinity(0)),
            "result": result,
        }
        print(json.dumps(answer), file=answers, flush=True)


def _cpu_seconds() -> dict[int, float]:
    """Return the CPU seconds of this process, and of each of its descendants that still runs, by process id."""
    return {os.getpid(): time.process_time()} | {child: process_seconds(child) for child in descendants(os.getpid())}


class Worker:
    """Starts a process that serves, and calls its functions until it is closed.

    Args:
        name: name of the process in messages.
        command: interpreter, script and arguments.
        threads: number of threads for its libraries, on as many processors; None for as many as this process may use.
        wait_policy: see thread_environment.
        all_processors: let the process run on all processors in spite of `threads`, as worker processes need.
    """

    def __init__(
        self,
        name: str,
        command: list,
        threads: int | None = None,
        wait_policy: str | None = None,
        all_processors: bool = False,
    ):
        self.name = name
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
        processors = sorted(PROCESSORS)[:threads]
        try:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=thread_environment(len(processors), wait_policy),
            )
        except OSError as error:
            self.errors.close()
            raise UserError(f"{name}: {command[0]} cannot be started ({error.strerror})") from error
        if all_processors:
            processors = sorted(PROCESSORS)
        os.sched_setaffinity(self.process.pid, processors)  # while the process has only its first thread

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def call(self, function: str) -> dict:
        """Let the process run one of its functions, and measure it.

        Returns:
            "seconds" by the clock; "cpu_seconds" of all its threads and child processes, which other processes lengthen
            less; "busy_children", the number of child processes that worked on it; "resident" and "peak" memory
            afterwards, in bytes; "processors" that it may use; "result", the function's result.

        Raises:
            UserError: the process has ended; the exception, or the last line, that it wrote says why.
        """
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None and answers is not None  # the constructor makes both pipes
        try:
            print(function, file=requests, flush=True)
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines() or [f"exit code {code}"]
            exceptions = [line for line in lines if re.match(r"[\w.]+(Error|Exception): \S", line)]
            raise UserError(f"{self.name}: {(exceptions or lines)[-1]}")
        return json.loads(answer)


def take_turns(
    workers: Mapping[str, Worker], repeats: int, pause: float, after_round: Callable[[], object] = lambda: None
) -> tuple[dict[str, list[dict]], float]:
    """Measure the steps of several processes, one of each in turn, so that a machine whose speed drifts is fair to all.

    Args:
        workers: processes that serve "step", by name.
        repeats: steps of each.
        pause: seconds before each step.
        after_round: called when each has made a step.

    Returns:
        The answers to "step" (see Worker.call) by name, and the share of the cores that others took meanwhile.
    """
    steps: dict[str, list[dict]] = {name: [] for name in workers}
    load = OthersLoad()
    for _ in range(repeats):
        for name, worker in workers.items():
            time.sleep(pause)
            steps[name].append(worker.call("step"))
        after_round()
    return steps, load.share()


def step_figures(steps: list[dict], batch_size: int) -> dict:
    """Compute the figures of a process's measured steps (see Worker.call), each of a batch."""
    seconds = [step["seconds"] for step in steps]
    median = statistics.median(seconds)
    return {
        "images_per_second": batch_size / median,
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "median_cpu_seconds": statistics.median(step["cpu_seconds"] for step in steps),
        "peak_memory_bytes": steps[-1]["peak"],
    }


def time_pipeline(worker: Worker, workers: int) -> tuple[dict, float]:
    """Measure a data pipeline over some epochs after one that does not count.

    Args:
        worker: a process that serves "epoch" and "epochs".
        workers: number of processes that the pipeline was told to work with; a single one is a thread.

    Returns:
        The answer to "epochs" (see Worker.call), and the share of the cores that others took meanwhile.

    Raises:
        UserError: the process has ended, or another number of processes did the work.
    """
    worker.call("epoch")
    load = OthersLoad()
    answer = worker.call("epochs")
    others = load.share()
    busy = answer["busy_children"]
    if busy != (workers if workers > 1 else 0):
        raise UserError(f"{worker.name} worked with {busy} processes in place of {workers}")
    return answer, others


def check_same_threads(workers: dict[str, Worker]) -> dict[str, dict]:
    """Check that workers really have the same threads; each must serve a function "threads" that says what it has.

    Returns:
        For each worker "threads" and "processors".

    Raises:
        UserError: the workers differ, and so cannot be compared.
    """
    used = {}
    for name, worker in workers.items():
        answer = worker.call("threads")
        used[name] = {"threads": answer["result"], "processors": answer["processors"]}
    if len({json.dumps(reading) for reading in used.values()}) > 1:
        readings = "; ".join(
            f"{worker.name}: {used[name]['threads']} on processors {', '.join(map(str, used[name]['processors']))}"
            for name, worker in workers.items()
        )
        raise UserError(f"the processes do not use the same threads and cannot be compared: {readings}")
    return used
