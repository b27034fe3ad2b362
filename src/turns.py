"""Processes that take turns, so that what they do can be timed side by side on a machine whose speed drifts.

Both ends of a protocol of JSON lines: `serve` in the process that works, `Worker` in the one that says whose turn it
is. Only the standard library, so that other interpreters can run the working end.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from src.errors import UserError


def resident_bytes(peak: bool) -> int:
    """This process' resident size, now or at its peak so far.

    Not getrusage's peak: a process started from a large one begins with the other's there.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
    assert line is not None  # Linux has it
    return int(line[1]) * 1024


def serve(prepare: Callable[[], dict[str, Callable]]) -> None:
    """Do what the other end asks for, until it closes the pipe.

    Args:
        prepare: makes the functions that can be asked for, by name; what one returns is told, so it must be JSON.

    Whatever else writes to standard output goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    functions = prepare()
    for line in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = functions[line.strip()]()
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - start_cpu,
            "resident": resident_bytes(False),
            "peak": resident_bytes(True),
            "result": result,
        }
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A process that serves, until it is closed.

    Args:
        name: what messages call it.
        command: interpreter, script and arguments.
    """

    def __init__(self, name: str, command: list):
        self.name = name
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
        try:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
            )
        except OSError as error:
            self.errors.close()
            raise UserError(f"{name}: {command[0]} cannot be started ({error.strerror})") from error

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def call(self, function: str) -> dict:
        """Let it do one thing.

        Returns:
            "seconds" by the clock, "cpu_seconds" of all its threads, which other processes lengthen less; "resident"
            and "peak" memory afterwards, in bytes; "result", what it returned.

        Raises:
            UserError: the process has ended; the exception, or the last line, that it wrote says why.
        """
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None and answers is not None  # pipes, see above
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
