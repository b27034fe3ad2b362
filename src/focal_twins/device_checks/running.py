"""Runs checks so that one that fails, crashes or hangs does not end the others."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from focal_twins.device_checks.outcome import FAILED, Outcome, read_outcomes


def run_here(check: Callable[[], Outcome]) -> Outcome:
    """Run a check in this process; an exception is a failure that says its first line."""
    start = time.perf_counter()
    try:
        outcome = check()
    except Exception as error:  # of whatever kind: the other checks have to run
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")] or [""]
        outcome = Outcome(FAILED, f"{type(error).__name__}: {lines[0]}", {"error": str(error)[-4000:]})
    return replace(outcome, seconds=time.perf_counter() - start)


def run_apart(name: str, command: list[str], seconds: float) -> Outcome:
    """Run a check in a process of its own: a kernel that fails can leave the device of a process unusable.

    Args:
        command: runs the check of this name and writes its outcome to the file that follows.
        seconds: that it may take.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcome.json"
        process = subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Outcome(FAILED, f"not done after {seconds:.0f} s (--seconds)", seconds=seconds)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if path.is_file():
            return replace(read_outcomes(path)[name], seconds=time.perf_counter() - start)
    code = process.returncode
    ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = (output.strip().splitlines() or ["no message"])[-1]
    return Outcome(FAILED, f"{ending}: {last}", {"error": output[-4000:]}, time.perf_counter() - start)


def command_of_this_script(arguments: list[str]) -> list[str]:
    """Return the command that runs the script of this process with other arguments."""
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *arguments]
