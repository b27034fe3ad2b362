"""Which save a run goes on from, and what is cleared away before it does."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from focal_twins.files import ckpt
from focal_twins.files.weights import save_weights
from focal_twins.training.checkpoint import CheckpointError, CheckpointFolder, Progress, Snapshot
from focal_twins.training.run_folder import RunFolder
from tests.training.test_train_step import Linear


def snapshot(epoch, images=0, best_epoch=0):
    progress = Progress(epoch=epoch, images=images, update=10 * epoch + images // 8, best_epoch=best_epoch)
    generator = np.random.default_rng(progress.update)
    tensors = {f"w{i}": generator.standard_normal((20, 10)).astype(np.float32) for i in range(4)}
    return Snapshot(tensors, {"state.progress": json.dumps(asdict(progress))}, progress)


def damage(path):
    """Another byte in the middle of a file; its other names see it too."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Saves after three epochs, of which the second is the best."""
    result = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for epoch in (1, 2, 3):
        result.save(snapshot(epoch, best_epoch=min(epoch, 2)), is_best=epoch <= 2)
    return result


def taken(folder):
    """The save that is gone on from, its progress, and the lines about others."""
    lines = []
    path, content = folder.newest(lines.append)
    return path.name, Progress.of_texts(content), lines


def test_the_newest_save_is_last_and_the_only_one_read_whole(folder, monkeypatch):
    folder.save_within_epoch(snapshot(3, 40, best_epoch=2))
    read, whole = ckpt.read, []
    monkeypatch.setattr(ckpt, "read", lambda path: whole.append(path.name) or read(path))
    name, progress, lines = taken(folder)
    assert (name, progress.epoch, progress.images, lines) == ("last.ckpt", 3, 40, [])
    assert whole == ["last.ckpt"]


def test_a_users_copies_beside_the_saves_are_left_alone(folder):
    """Neither counted among the newest that are kept, nor taken for a save, nor in the way."""
    copies = {folder.path / f"epoch_{name}.ckpt" for name in ("0001_before_the_change", "best", "0002 (copy)")}
    for path in copies:
        path.touch()
    folder.save(snapshot(4), is_best=False)
    assert [path.name for path in folder.epochs()] == [f"epoch_000{epoch}.ckpt" for epoch in (2, 3, 4)]
    assert copies <= set(folder.path.iterdir())
    assert taken(folder)[::2] == ("last.ckpt", [])


def test_a_run_that_has_nothing_to_resume_says_so(tmp_path):
    """A mistyped folder would otherwise be trained from the start without a word."""
    for resume, told in (("auto", [f"nothing to resume in {tmp_path}: a new run begins there"]), (False, [])):
        lines = []
        assert RunFolder(tmp_path, 3, is_main=True).save_to_resume(resume, lines.append) == (None, None)
        assert lines == told


def test_a_damaged_last_is_skipped_and_named(folder):
    folder.save_within_epoch(snapshot(3, 40))
    damage(folder.last)
    name, progress, lines = taken(folder)
    assert (name, progress.epoch, progress.images) == ("epoch_0003.ckpt", 3, 0)
    assert lines == [f"skipped {folder.last}: damaged (its checksum is another)"]
    folder.last.write_bytes(folder.last.read_bytes()[:90])
    assert taken(folder)[2] == [f"skipped {folder.last}: damaged or cut short (a record ends after the file)"]
    folder.last.unlink()
    assert taken(folder)[::2] == ("epoch_0003.ckpt", [])


def test_damage_to_all_names_of_a_file_is_told_once(folder):
    damage(folder.last)  # and so to epoch_0003.ckpt
    name, progress, lines = taken(folder)
    assert (name, progress.epoch) == ("epoch_0002.ckpt", 2)
    assert [line.split(":")[0] for line in lines] == [f"skipped {folder.last}"]


def test_an_epoch_that_last_does_not_point_at_yet_is_newer(folder):
    """A crash came between writing the epoch's file and pointing best and last at it."""
    folder._write(folder.path / "epoch_0004.ckpt", snapshot(4, best_epoch=4))
    path, content = folder.newest(print)
    assert path.name == "epoch_0004.ckpt"
    folder.adopt(path, Progress.of_texts(content))
    assert folder.last.samefile(path)
    assert folder.best.samefile(path)
    # What last says within an epoch is newer than the epoch's file, and points no other name anywhere.
    folder.save_within_epoch(snapshot(4, 8, best_epoch=4))
    path, content = folder.newest(print)
    folder.adopt(path, Progress.of_texts(content))
    assert path == folder.last
    assert folder.best.samefile(folder.path / "epoch_0004.ckpt")


def test_best_is_better_than_nothing(folder):
    for path in folder.path.glob("epoch_*"):
        path.unlink()
    damage(folder.last)
    assert taken(folder)[0] == "best.ckpt"


def test_nothing_readable_is_one_line_with_all_of_it(folder):
    for path in folder.saves():
        damage(path)
    save_weights(Linear(), folder.path / "epoch_0009.ckpt")
    with pytest.raises(CheckpointError) as error:
        folder.newest(print)
    message = str(error.value)
    for part in ("last.ckpt (damaged (its checksum", "epoch_0001.ckpt (damaged", "epoch_0009.ckpt (holds no training",
                 "runtime.output=FOLDER"):  # fmt: skip
        assert part in message
    assert "\n" not in message


def test_what_killed_runs_left_is_cleared_away(tmp_path):
    run = RunFolder(tmp_path, keep_checkpoints=3, is_main=True)
    run.checkpoints.save(snapshot(1), is_best=True)
    lines = [{"epoch": 1, "update": 5}, {"epoch": 1, "weights": "raw"}, {"epoch": 2, "update": 12}]
    later = [{"epoch": 2, "update": 13}, {"epoch": 2, "weights": "raw"}, {"epoch": 3, "update": 21}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = tmp_path / "metrics.jsonl"
    path.write_text(text + "".join(json.dumps(line) + "\n" for line in later) + '{"epoch": 1, "upd')
    kept = sorted(run.checkpoints.path.iterdir())
    (tmp_path / ".summary.json.writing").touch()
    (tmp_path / ".notes").touch()
    (run.checkpoints.path / ".last.ckpt.link").touch()
    (run.checkpoints.path / ".epoch_0002.ckpt.writing").mkdir()
    (run.checkpoints.path / ".epoch_0002.ckpt.writing" / "epoch_0002.ckpt").touch()
    run.prepare(run.checkpoints.last, Progress(epoch=1, update=12))
    assert path.read_text() == text
    assert sorted(run.checkpoints.path.iterdir()) == kept
    assert (tmp_path / ".notes").exists()
    assert not (tmp_path / ".summary.json.writing").exists()
