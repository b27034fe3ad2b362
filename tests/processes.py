"""Training and evaluation in processes of their own, one or several."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.conftest import DIGITS_CONFIG, PACKAGE, ROOT, TOY_MODEL

BIN = Path(sys.executable).parent
# mpirun as root, and with more processes than cores (Open MPI 5; 4 takes the other name).
ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def mpirun(ranks: int, *command) -> list[str]:
    """A command in several processes by Open MPI."""
    return [str(BIN / "mpirun"), "-n", str(ranks), sys.executable, *map(str, command)]


def msrun(ranks: int, port: int, logs: Path, *command) -> list[str]:
    """The same by MindSpore's launcher, whose logs of the processes go to a folder."""
    return [str(BIN / "msrun"), f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True",
            f"--master_port={port}", f"--log_dir={logs}", *map(str, command)]  # fmt: skip


def train_command(data: Path, output: Path, *overrides: str) -> list[str]:
    """train.py on digits with a network that compiles fast."""
    return ["train.py", "--config", str(DIGITS_CONFIG), *TOY_MODEL, f"data.path={data}", f"runtime.output={output}",
            "data.workers=1", "schedule.warmup_epochs=0", *overrides]  # fmt: skip


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Start a command at the project's root, with its output in pipes."""
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | ALLOWED | {"GLOG_v": "4", "PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip


def run(command: list[str], timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run a command to its end; nothing of it is left after the timeout."""
    process = start(command, **environment)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def end(process: subprocess.Popen) -> None:
    """Kill a command with all its processes."""
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()
    process.communicate()


# Takes a folder as train.py does, until its standard input ends; a child of it may outlive it.
HOLDER = """
import os, sys, time
from pathlib import Path
from focal_twins.files.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), print):
    if sys.argv[2] == "True" and os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(60)
    print("has it", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(folder: Path, leaves_child: bool = False) -> Iterator[subprocess.Popen]:
    """A process that has a run's folder; it and its child end with the context."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(leaves_child)], cwd=PACKAGE.parent, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "has it\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rank_process(process: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of a rank among those of an mpirun command: the first of its line that knows its rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        parent = child.parent()
        is_rank = child.environ().get("OMPI_COMM_WORLD_RANK") == str(rank)
        if is_rank and parent is not None and "OMPI_COMM_WORLD_RANK" not in parent.environ():
            return child
    raise AssertionError(f"no process of rank {rank}")


def remaining(mark: str, patience: float = 10) -> list[psutil.Process]:
    """Processes whose command line holds a text, after a little time to end."""
    deadline = time.monotonic() + patience
    while True:
        found = [
            process for process in psutil.process_iter(["cmdline"]) if mark in " ".join(process.info["cmdline"] or [])
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
