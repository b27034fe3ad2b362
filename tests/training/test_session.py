"""What sessions.jsonl says of the code."""

import subprocess

import pytest

from focal_twins.training import session


def git(folder, *arguments):
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A git clone with one commit, in which the code is."""
    (tmp_path / "file").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(session, "ROOT", tmp_path)
    return tmp_path


def test_the_commit_and_whether_files_differ_from_it(clone):
    commit = git(clone, "rev-parse", "HEAD")
    assert session._commit() == {"commit": commit, "modified": False}
    (clone / "new").touch()  # data and runs lie beside the code
    assert session._commit() == {"commit": commit, "modified": False}
    (clone / "file").write_text("2")
    assert session._commit() == {"commit": commit, "modified": True}


def test_code_without_a_clone_of_its_own_has_no_commit(clone, monkeypatch, tmp_path_factory):
    """Within another project's clone, the commit would be that one's."""
    (clone / "vendored").mkdir()
    monkeypatch.setattr(session, "ROOT", clone / "vendored")
    assert session._commit() is None
    monkeypatch.setattr(session, "ROOT", tmp_path_factory.mktemp("unpacked"))
    assert session._commit() is None
    monkeypatch.setenv("PATH", "")
    assert session._commit() is None
