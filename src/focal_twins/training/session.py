"""Describes the process that trains a run, for the run's folder: time, command, code, machine and packages."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from focal_twins.distributed.launch import called
from focal_twins.distributed.ranks import Dist
from focal_twins.training.checkpoint import Progress

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mindspore", "numpy", "pillow", "simplejpeg", "scipy", "safetensors", "pydantic", "tensorboardX")
GIT_SECONDS = 10  # longest wait for git: the folder may be on a slow file system


def session(dist: Dist, progress: Progress, updates_per_epoch: int) -> dict:
    """Return the line of sessions.jsonl about this process, which begins to train at `progress`."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "after_update": progress.update,
        "updates_per_epoch": updates_per_epoch,
        "global_batch": progress.global_batch,
        "command": shlex.join([*called(sys.argv[0]), *sys.argv[1:]]),
        "device": dist.device_target,
        "devices": dist.size,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name))},
        "git": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> dict | None:
    """Return the commit of this code and whether files differ from it; None outside of a git clone of its own."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        location, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout
            for command in (["rev-parse", "--show-toplevel", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    folder, commit = location.splitlines()
    return {"commit": commit, "modified": bool(changes.strip())} if Path(folder).resolve() == ROOT else None
