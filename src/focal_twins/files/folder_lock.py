"""Locks a folder for one process at a time, so that two runs never write into the same one.

The lock is the operating system's, on the file .lock in the folder: it is free again as soon as its process has ended,
however it ended. It is a record lock (fcntl), not one of flock: a record lock belongs to one process and is not
inherited, so that data workers that outlive a killed trainer do not keep it, and network file systems pass it on to
their server. Closing the file anywhere in the process that holds the lock would free it: nothing else there opens it.

Some file systems have no locks: NFS without its lock service, some mounts of Lustre. There the file .lock.beat takes
the place of the lock. Its owner touches it every few seconds; a file that nobody touches any more is left over.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from focal_twins.errors import UserError

LOCK, BEAT = ".lock", ".lock.beat"
TAKEN = (errno.EAGAIN, errno.EACCES)  # what lockf answers where another process has the lock
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what it answers where the file system has none
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
BEAT_SECONDS = 10.0  # between two touches of the file
SILENT_SECONDS = 60.0  # without a touch, after which an owner counts as dead
WRITING_SECONDS = 0.2  # a new owner needs less to write who it is


@dataclass(frozen=True)
class Owner:
    """Says which process has a folder.

    Attributes:
        host: name of its machine. `processes` tells apart the containers of a machine that number processes anew.
        process: its number.
        started: when it took the folder, in UTC.
    """

    host: str
    processes: str
    process: int
    started: str

    @classmethod
    def here(cls) -> "Owner":
        """Return this process as an owner that starts now."""
        started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), _process_numbers(), os.getpid(), started)

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """Read an owner from a file; None where the file names none."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def content(self) -> bytes:
        """The content of the owner's file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def has_ended(self) -> bool:
        """True if the process is known to be gone, which can be known only where it ran."""
        if (self.host, self.processes) != (socket.gethostname(), _process_numbers()):
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # a process of another user
            return False
        return False

    def __str__(self):
        return f"process {self.process} on host {self.host}, started at {self.started},"


class FolderLock:
    """Keeps a folder for this process while its context is open.

    It makes the folder. Where the folder is still empty at the end, it removes what it made.

    Args:
        announce: called with a line where the file system has no locks.

    Raises:
        UserError: on entering: another process has the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, announce: Callable[[str], None]):
        self.folder, self.announce = folder, announce
        self.lock, self.beat = folder / LOCK, folder / BEAT
        self.made: list[Path] = []
        self.descriptor: int | None = None  # of the locked file; None where the file system has no locks
        self.owner = Owner.here()
        self.ended = threading.Event()

    def __enter__(self) -> "FolderLock":
        try:
            if self.folder.is_symlink() and not self.folder.exists():
                target = os.readlink(self.folder)
                raise UserError(
                    f"output folder {self.folder}: a link to {target}, which is not there; make that folder"
                )
            missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self.made = missing
            self._take()
        except OSError as error:
            self._remove_empty_folders()
            raise UserError(f"output folder {self.folder}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        with suppress(OSError):  # a file that stays says nothing: the lock is free, or nobody touches the file
            if self.descriptor is None:
                if Owner.read(self.beat) == self.owner:
                    self.beat.unlink()
            elif _is_open_file(self.descriptor, self.lock):
                self.lock.unlink()  # while it is locked: afterwards it may be another's
        if self.descriptor is not None:
            os.close(self.descriptor)
        self._remove_empty_folders()

    def _remove_empty_folders(self) -> None:
        with suppress(OSError):  # there is something in it
            for path in self.made:
                path.rmdir()

    def _refusal(self, owner: Owner | None) -> UserError:
        return UserError(
            f"output folder {self.folder}: {owner or 'another process'} is training there; wait for its end, or give "
            "this run another folder by runtime.output=FOLDER"
        )

    # --- the operating system's lock ---------------------------------------------------------------------------------

    def _take(self) -> None:
        """Lock the file, or let `_take_without_locks` take the folder.

        Raises:
            UserError: another process has the folder.
            OSError: the folder cannot be written.
        """
        while self.descriptor is None:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                is_empty = os.fstat(descriptor).st_size == 0
                os.close(descriptor)
                if error.errno in TAKEN:
                    time.sleep(WRITING_SECONDS)
                    raise self._refusal(Owner.read(self.lock)) from error
                if error.errno not in NO_LOCKS:
                    raise
                if is_empty:  # the file was made just now
                    self.lock.unlink(missing_ok=True)
                self._take_without_locks(os.strerror(error.errno))
                return
            if _is_open_file(descriptor, self.lock):
                self.descriptor = descriptor
            else:  # its owner came to an end and removed it after it was opened here
                os.close(descriptor)
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, self.owner.content, 0)
        except OSError as error:
            if error.errno not in NO_ROOM:  # on a full disk the lock holds without a name on it
                raise

    # --- file systems without locks ----------------------------------------------------------------------------------

    def _take_without_locks(self, reason: str) -> None:
        """Make the file that stands for the lock, and touch it until the end.

        Raises:
            UserError: a process that seems to live has the folder.
            OSError: the folder cannot be written.
        """
        while not self._make_beat():
            owner = Owner.read(self.beat)
            if owner is None:
                time.sleep(WRITING_SECONDS)  # it is being written, or it is gone
                owner = Owner.read(self.beat)
            if self._is_touched() and not (owner and owner.has_ended):
                refusal = self._refusal(owner)
                raise UserError(f"{refusal} (a process that was killed counts as ended after {SILENT_SECONDS:g} s)")
            self._remove_left_over(owner)
        self.announce(
            f"output folder {self.folder}: its file system has no locks ({reason}); the file {BEAT} keeps other runs "
            f"away, and after a kill for up to {SILENT_SECONDS:g} s those of other machines, too"
        )
        threading.Thread(target=self._touch, name="folder lock", daemon=True).start()

    def _make_beat(self) -> bool:
        """Make the file; return False if there is one. Every file system makes it for one process only."""
        try:
            with open(self.beat, "xb", buffering=0) as file:
                file.write(self.owner.content)
        except FileExistsError:
            return False
        return True

    def _is_touched(self) -> bool:
        """Tell whether the file was touched of late, by the clock of the file system."""
        probe = self.folder / f"{BEAT}.{self.owner.host}.{self.owner.process}"
        try:
            probe.touch()
            return probe.stat().st_mtime - self.beat.stat().st_mtime < SILENT_SECONDS
        except FileNotFoundError:
            return False
        finally:
            probe.unlink(missing_ok=True)

    def _remove_left_over(self, owner: Owner | None) -> None:
        """Remove the file of an owner that has ended, unless another process has just done so and made its own."""
        aside = self.folder / f"{BEAT}.{self.owner.host}.{self.owner.process}"
        try:
            os.rename(self.beat, aside)
        except FileNotFoundError:
            return
        if Owner.read(aside) == owner:
            aside.unlink()
        else:
            os.rename(aside, self.beat)

    def _touch(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            try:
                owner = Owner.read(self.beat)
                if owner is None:  # a read that failed for a moment says nothing
                    continue
                if owner != self.owner:
                    self.announce(
                        f"output folder {self.folder}: another process has taken it, because this one gave no sign for "
                        f"{SILENT_SECONDS:g} s; stop one of the two"
                    )
                    return
                os.utime(self.beat)
            except OSError:  # the next attempt may succeed
                continue


def _is_open_file(descriptor: int, path: Path) -> bool:
    """Tell whether a path is still that of an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _process_numbers() -> str:
    """Return what Linux calls the set of processes that are numbered together: it differs between containers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
