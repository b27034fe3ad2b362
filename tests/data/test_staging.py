"""Copying data and results around a run."""

import os
import subprocess
import sys
import tarfile
import types
import zipfile

import pytest

from focal_twins.data.staging import StagingError, stage_in, stage_out
from tests.conftest import PACKAGE


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_folder_is_copied_once(source, tmp_path):
    local = tmp_path / "disk" / "data"
    assert stage_in(str(source), local) == local
    assert (local / "train/a/1.png").read_text() == "train/a/1.png"
    (source / "train/a/1.png").write_text("changed")
    stage_in(str(source), local)
    assert (local / "train/a/1.png").read_text() == "train/a/1.png"


def test_another_data_set_replaces_the_first(source, tmp_path):
    local = tmp_path / "data"
    stage_in(str(source), local)
    (tmp_path / "other" / "train" / "dog").mkdir(parents=True)
    stage_in(str(tmp_path / "other"), local)
    assert [path.name for path in (local / "train").iterdir()] == ["dog"]


def test_a_damaged_archive_is_one_line(source, tmp_path):
    packed = tmp_path / "bucket"
    packed.mkdir()
    with tarfile.open(packed / "imagenet.tar.gz", "w:gz") as archive:
        archive.add(source, "imagenet")
    content = (packed / "imagenet.tar.gz").read_bytes()
    (packed / "imagenet.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(StagingError, match="cannot be copied") as error:
        stage_in(str(packed), tmp_path / "disk" / "data")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "disk" / "data").exists()


def test_addresses_reach_moxing_unchanged(tmp_path, monkeypatch):
    copies = []
    moxing = types.SimpleNamespace(file=types.SimpleNamespace(copy_parallel=lambda *pair: copies.append(pair)))
    monkeypatch.setitem(sys.modules, "moxing", moxing)
    stage_out(tmp_path, "s3://bucket/run")
    assert copies == [(str(tmp_path), "s3://bucket/run")]


SAFE_TAR = pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python is too old to unpack tar safely")


@pytest.mark.parametrize("kind", [pytest.param("imagenet.tar.gz", marks=SAFE_TAR), "imagenet.zip"])
def test_archives_are_unpacked(source, tmp_path, kind):
    packed = tmp_path / "bucket"
    packed.mkdir()
    if kind.endswith("zip"):
        with zipfile.ZipFile(packed / kind, "w") as archive:
            for path in source.rglob("*.png"):
                archive.write(path, f"imagenet/{path.relative_to(source)}")
    else:
        with tarfile.open(packed / kind, "w:gz") as archive:
            archive.add(source, "imagenet")
    root = stage_in(str(packed), tmp_path / "data")
    assert root == tmp_path / "data" / "imagenet"
    assert (root / "val/a/3.png").exists()
    assert not (tmp_path / "data" / kind).exists()


def test_archives_cannot_write_elsewhere(tmp_path):
    packed = tmp_path / "bucket"
    packed.mkdir()
    (tmp_path / "secret").write_text("x")
    with tarfile.open(packed / "evil.tar", "w") as archive:
        archive.add(tmp_path / "secret", "../escaped")
    with pytest.raises(StagingError, match="cannot be copied"):
        stage_in(str(packed), tmp_path / "disk" / "data")
    assert not (tmp_path / "disk" / "escaped").exists()


def test_failures_are_one_line_and_shared(source, tmp_path):
    """A process that waited for a copy which failed fails with it; a later run tries again."""
    local = tmp_path / "data"
    with pytest.raises(StagingError, match=r"data_url .*nowhere: cannot be copied"):
        stage_in(str(tmp_path / "nowhere"), local)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(StagingError, match="cannot be copied"):
        stage_in(str(tmp_path / "nowhere"), local)
    (tmp_path / "nowhere" / "train").mkdir()
    call = f"stage_in({str(tmp_path / 'nowhere')!r}, Path({str(local)!r}))"
    script = f"from focal_twins.data.staging import stage_in; from pathlib import Path; {call}"
    subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, check=True)
    with pytest.raises(StagingError, match="holds no train folder"):
        stage_in(str(source / "train"), tmp_path / "other")


def test_processes_that_start_together_copy_once(source, tmp_path):
    local = tmp_path / "data"
    script = (
        "import focal_twins.data.staging as s, sys; from pathlib import Path; real = s.copy\n"
        "def copy(*a): print('copied'); real(*a)\n"
        f"s.copy = copy; print(s.stage_in({str(source)!r}, Path({str(local)!r})))"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", script], cwd=PACKAGE.parent, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = [job.communicate()[0] for job in jobs]
    assert sum("copied" in output for output in outputs) == 1
    assert all(str(local) in output for output in outputs)


def test_results_are_copied_out(tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "summary.json").write_text("{}")
    stage_out(output, str(tmp_path / "bucket" / "run"))
    assert (tmp_path / "bucket" / "run" / "summary.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match=r"cannot be written .*; the run is in"):
        stage_out(output, str(tmp_path / "file" / "run"))


def test_files_that_cannot_be_read_are_left_out_and_named(source, tmp_path, capsys):
    (source / "train" / "a" / "2.png").symlink_to("nowhere")
    os.mkfifo(source / "train" / "b" / "3.png")
    (source / "train" / "b" / "up").symlink_to("../..")  # a copy of what it leads to would have no end
    local = stage_in(str(source), tmp_path / "disk" / "data")
    found = sorted(str(path.relative_to(local)) for path in local.rglob("*.png"))
    assert found == ["train/a/1.png", "train/b/2.png", "val/a/3.png"]
    out = capsys.readouterr().out
    assert f"data_url {source}: left out 1 not readable (No such file or directory) ({source}/train/a/2.png); " in out
    assert f"1 not readable (not a regular file) ({source}/train/b/3.png)" in out


def test_files_that_could_be_read_must_be_copied(source, tmp_path, monkeypatch):
    """What fails for them is the copy, as on a full disk."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StagingError, match="No space left on device"):
        stage_in(str(source), tmp_path / "disk" / "data")
