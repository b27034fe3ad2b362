"""Builds the kernels of this folder once for each machine, and finds what was built.

The library is compiled by the system's C++ compiler for the processor at hand and kept in a cache folder, under a name
that follows from the sources, the compiler, its options and the processor. The kernels are called by MindSpore
(models/compiled.py has the layers); here only their file is made and loaded.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")
# Of -ffast-math only what keeps infinity and NaN.
OPTIONS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC",
    "-shared", "-pthread",
)  # fmt: skip


class BuildError(Exception):
    """Says in one line why there are no kernels on this machine."""


def load_kernels(threads: int) -> Path | None:
    """Return the library of kernels, which is built where there is none, and let it run on a number of threads.

    Where it cannot be built, one line says why, once in a process, and the result is None.
    """
    path = _library()
    if path is not None:
        ctypes.CDLL(str(path)).focal_twins_set_threads(threads)
    return path


@cache
def _library() -> Path | None:
    try:
        path = build(cache_folder())
        ctypes.CDLL(str(path))  # stays loaded: MindSpore closes what it opened when a graph is freed
    except (BuildError, OSError, RuntimeError) as error:  # the last where the user has no home
        reason = str(error).splitlines()[0]
        print(f"kernels: {reason}; MindSpore's own operators are used (runtime.kernels)", file=sys.stderr, flush=True)
        return None
    return path


def cache_folder() -> Path:
    """Return the folder where libraries are kept: focal_twins in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "focal_twins"


def build(folder: Path, compiler: str | None = None) -> Path:
    """Return the library for this machine in a folder, after compiling it if it is not there.

    Of several processes one compiles and the others wait. The file appears whole.

    Args:
        compiler: its command; None for the first of COMPILERS that there is.

    Raises:
        BuildError: no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    if ":" in str(folder):  # which MindSpore reads as the end of the path
        raise BuildError(f"the cache folder {folder} has a colon in its name")
    found = next(filter(None, map(shutil.which, [compiler] if compiler else COMPILERS)), None)
    if found is None:
        raise BuildError(f"no C++ compiler ({compiler or ', '.join(COMPILERS)})")
    path = folder / f"kernels-{_digest(found)}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "kernels.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(".writing")
            try:
                _compile(found, unfinished)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
    return path


def _compile(compiler: str, output: Path) -> None:
    done = subprocess.run(
        [compiler, *OPTIONS, "-o", str(output), *map(str, sorted(SOURCES.glob("*.cpp")))],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{compiler} fails: {lines[0] if lines else f'exit code {done.returncode}'}")


def _digest(compiler: str) -> str:
    """Return a short hash of all that the library is made of and for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace").stdout
    digest = hashlib.sha256(repr((os.path.realpath(compiler), version, OPTIONS, processor())).encode())
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def processor() -> tuple[str, ...]:
    """Return what tells processors apart for which one compiler makes different code."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine(), platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU part", "Features")
    return platform.machine(), *sorted({line for line in lines if line.split(":")[0].strip() in wanted})
