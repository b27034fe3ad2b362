"""Copies data to local disk before a run and results back after it, as on the OpenI platform (--run_openi).

moxing moves files where it is installed (object storage); elsewhere they are copied. One process of a machine copies;
the others wait for it.
"""

import fcntl
import json
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

from focal_twins.data.image_files import LeftOut, read_through, reason_of
from focal_twins.errors import UserError
from focal_twins.files.atomic import write_text

PLATFORM_DISK = Path("/cache")  # the fast local disk of OpenI and ModelArts machines
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
START_TIME = time.time()


class StagingError(UserError):
    """Says that a copy failed; the message names source and destination."""


def stage_in(data_url: str, local: Path | None = None) -> Path:
    """Copy a data set to local disk and unpack its archives.

    Args:
        data_url: folder or archive to copy.
        local: destination; default /cache/data on the platform, else cache/data under the working directory.

    Returns:
        The local folder that holds train/.

    Raises:
        StagingError: the copy failed, here or in the process that made it; or the data has no train folder.
    """
    local = local or (PLATFORM_DISK if PLATFORM_DISK.is_dir() else Path("cache")) / "data"
    record = local.with_name(local.name + ".staging.json")
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        # Other processes wait for this lock: it is released when its holder is done, or dead.
        with open(local.with_name(local.name + ".staging.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            outcome = _read_record(record)
            same_launch = outcome["time"] >= START_TIME
            if outcome["source"] != data_url or not (same_launch if outcome["failure"] else local.is_dir()):
                outcome = _copy_in(data_url, local)
                write_text(record, json.dumps(outcome))
    except OSError as error:
        raise StagingError(f"local folder {local}: cannot be written ({error.strerror})") from error
    if outcome["failure"]:
        raise StagingError(f"data_url {data_url}: {outcome['failure']}")
    return _dataset_root(local, data_url)


def _read_record(record: Path) -> dict:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is no record yet
        return {"source": None, "failure": None, "time": 0}


def _copy_in(data_url: str, local: Path) -> dict:
    """Copy the data; return the outcome as the record that the waiting processes read.

    The copy grows beside its final name, so that no other data set and no half copy gets mixed in.
    """
    partial = local.with_name(local.name + ".partial")
    failure = None
    try:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            copy(data_url, partial)
        except shutil.Error as error:  # of all the files that could not be copied; the others were
            _pass_over_unreadable(data_url, error)
        for archive in [path for path in partial.iterdir() if path.name.endswith(ARCHIVES)]:
            unpack(archive)
        shutil.rmtree(local, ignore_errors=True)
        partial.rename(local)
    except Exception as error:  # the waiting processes must learn of any failure
        failure = f"cannot be copied to {local} ({type(error).__name__}: {error})"
    return {"source": data_url, "failure": failure, "time": time.time()}


def _pass_over_unreadable(data_url: str, error: shutil.Error) -> None:
    """Name and count the files that could not be copied because they cannot be read; the run leaves out such images.

    Raises:
        shutil.Error: other files could not be copied either, as on a full disk.
    """
    left_out = LeftOut()
    for source, _, _ in error.args[0]:
        try:
            read_through(source)
        except OSError as reason:
            left_out.add(f"not readable ({reason_of(reason)})", str(source))
        else:
            raise error
    print(f"data_url {data_url}: left out {left_out}", flush=True)


def stage_out(output: Path, train_url: str) -> None:
    """Copy the folder of a run to its destination.

    Raises:
        StagingError: the copy failed; the run itself stays where it is.
    """
    try:
        copy(str(output), train_url)
    except (OSError, RuntimeError) as error:
        raise StagingError(f"train_url {train_url}: cannot be written ({error}); the run is in {output}") from error


def copy(source: str, destination: str | Path) -> None:
    """Copy a folder's content, or one file, into a folder. Either may be an address that only moxing understands."""
    try:
        import moxing
    except ImportError:
        moxing = None
    if moxing is not None:
        moxing.file.copy_parallel(str(source), str(destination))
    elif Path(source).is_file():
        Path(destination).mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, destination)
    else:
        shutil.copytree(source, destination, ignore=_links_to_above, dirs_exist_ok=True)


def _links_to_above(folder: str, names: list[str]) -> set[str]:
    """Return the names of links in a folder that lead to one that holds it: a copy of them would have no end."""
    inside = os.path.realpath(folder)
    links = [name for name in names if os.path.islink(os.path.join(folder, name))]
    targets = {name: os.path.realpath(os.path.join(folder, name)) for name in links}
    return {name for name, target in targets.items() if os.path.commonpath([inside, target]) == target}


def unpack(archive: Path) -> None:
    """Unpack an archive beside itself and delete it. Members that would land elsewhere are refused."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(archive.parent)  # drops absolute paths and ".."
    else:
        with tarfile.open(archive) as file:
            if not hasattr(tarfile, "data_filter"):
                raise StagingError("unpacking archives safely needs Python 3.10.12, 3.11.4 or later")
            file.extractall(archive.parent, filter="data")
    archive.unlink()


def _dataset_root(local: Path, data_url: str) -> Path:
    """Find the folder with train/: the copy itself, or a folder in it (archives often hold one)."""
    for candidate in [local, *sorted(path for path in local.iterdir() if path.is_dir())]:
        if (candidate / "train").is_dir():
            return candidate
    raise StagingError(f"data_url {data_url}: holds no train folder, nor a folder or archive with one")
