"""One process at a time has a folder, however the one before it ended, and whether or not the file system has locks."""

import errno
import fcntl
import json
import os
import time
from dataclasses import replace

import pytest

from focal_twins.errors import UserError
from focal_twins.files import folder_lock
from focal_twins.files.folder_lock import BEAT, LOCK, FolderLock, Owner
from tests.processes import holding


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has none, as the kernel answers for NFS without its lock service."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)


def refusal(folder) -> str:
    with pytest.raises(UserError) as error, FolderLock(folder, pytest.fail):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_second_process_is_told_who_has_the_folder(tmp_path):
    folder = tmp_path / "run"
    with holding(folder) as process:
        owner = Owner.read(folder / LOCK)
        assert (owner.process, owner.host) == (process.pid, Owner.here().host)
        named = f"process {process.pid} on host {owner.host}, started at {owner.started}, is training there"
        assert named in refusal(folder)
        (tmp_path / "link").symlink_to(folder)
        assert named in refusal(tmp_path / "link")
        process.communicate("")  # it ends
        with FolderLock(folder, pytest.fail):
            pass


def test_a_kill_frees_the_folder_at_once_though_a_child_lives(tmp_path):
    """Data workers are such children: they notice only after a while that the trainer is gone."""
    with holding(tmp_path, leaves_child=True) as process:
        process.kill()
        process.wait()
        with FolderLock(tmp_path, pytest.fail):
            assert json.loads((tmp_path / LOCK).read_bytes())["process"] == os.getpid()
            os.killpg(process.pid, 0)  # the child is still there
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_folder_that_nothing_was_put_into(tmp_path):
    folder = tmp_path / "a" / "b"
    with FolderLock(folder, pytest.fail):
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    with FolderLock(folder, pytest.fail):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with FolderLock(folder, pytest.fail):
        (folder / LOCK).unlink()  # somebody tidies up, and another takes the folder
        (folder / LOCK).touch()
    assert (folder / LOCK).exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == f"output folder {tmp_path / 'file'}: cannot be written (File exists)"
    (tmp_path / "link").symlink_to("gone")
    assert refusal(tmp_path / "link").endswith("a link to gone, which is not there; make that folder")
    assert "cannot be written (Not a directory)" in refusal(tmp_path / "file" / "run")


def test_a_file_stands_for_the_lock_where_there_is_none(without_locks, tmp_path):
    told = []
    with FolderLock(tmp_path, told.append):
        assert "its file system has no locks (No locks available)" in told[0]
        assert [path.name for path in tmp_path.iterdir()] == [BEAT]
        assert f"process {os.getpid()} on host" in refusal(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [BEAT]
    assert (list(tmp_path.iterdir()), len(told)) == ([], 1)


@pytest.mark.parametrize(
    ("change", "age", "refused"),
    [
        ({}, 0, True),
        ({"process": 2**22 + 1}, 0, False),  # killed, on this machine: no process has this number
        ({"process": 2**22 + 1, "host": "elsewhere"}, 0, True),
        ({"process": 2**22 + 1, "processes": "pid:[1]"}, 0, True),  # another container of this machine
        ({"host": "elsewhere"}, folder_lock.SILENT_SECONDS + 1, False),
        ({}, folder_lock.SILENT_SECONDS + 1, False),  # the number is another process's by now
    ],
)
def test_files_left_over_are_told_from_living_owners(without_locks, tmp_path, change, age, refused):
    (tmp_path / BEAT).write_bytes(replace(Owner.here(), **change).content)
    os.utime(tmp_path / BEAT, (time.time() - age,) * 2)
    if refused:
        assert "is training there" in refusal(tmp_path)
        return
    with FolderLock(tmp_path, str):
        assert Owner.read(tmp_path / BEAT).process == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_touched_and_a_loss_is_told(without_locks, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.01)
    told, beat = [], tmp_path / BEAT
    with FolderLock(tmp_path, told.append):
        os.utime(beat, (0, 0))
        wait_until(lambda: beat.stat().st_mtime > 0)
        beat.write_bytes(replace(Owner.here(), host="elsewhere").content)
        wait_until(lambda: len(told) == 2)
    assert "another process has taken it" in told[1]
    assert beat.exists()  # it is the other's


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
