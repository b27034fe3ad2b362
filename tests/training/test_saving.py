"""Saves: when, in the background, and what happens when there is no room."""

import json
import subprocess
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.weights import read_checkpoint
from focal_twins.training.checkpoint import CheckpointError, CheckpointFolder, Progress
from focal_twins.training.metrics_log import MetricsLog
from focal_twins.training.run_folder import RunFolder
from focal_twins.training.saving import Saver
from tests.training.states import metrics
from tests.training.test_checkpoint import snapshot


def saved(folder):
    """The progress in last.ckpt."""
    return Progress.of_texts(read_checkpoint(folder.last))


def test_saves_come_by_updates_and_by_the_clock(tmp_path):
    now = [0.0]
    folder = CheckpointFolder(tmp_path, keep=1)
    saver = Saver(folder, interval=10, minutes=2.0, background=False, clock=lambda: now[0])
    assert not saver.is_due(9)
    assert saver.is_due(10)
    assert saver.is_due(11)  # until there is one
    saver.save_within_epoch(snapshot(0, 88))
    assert not saver.is_due(12)
    now[0] = 119.0
    assert not saver.is_due(13)
    now[0] = 120.0
    assert saver.is_due(14)
    saver.save_epoch(snapshot(1), is_best=True)
    assert not saver.is_due(15)
    assert not Saver(folder, None, None, False).is_due(10)


def test_training_goes_on_while_a_save_is_written(tmp_path, monkeypatch):
    """One at a time; the next, and the end, wait for it."""
    folder = CheckpointFolder(tmp_path, keep=3)
    written, may_write = [], threading.Event()
    original = folder.save_within_epoch

    def slow(taken):
        may_write.wait()
        original(taken)
        written.append(taken.progress.images)

    folder.save_within_epoch = slow
    saver = Saver(folder, 1, None, background=True)
    saver.save_within_epoch(snapshot(0, 8))
    assert (saver.is_due(2), written) == (True, [])
    threading.Timer(0.2, may_write.set).start()
    saver.save_within_epoch(snapshot(0, 16))
    assert written[0] == 8
    saver.finish()
    assert written == [8, 16]
    assert saved(folder).images == 16


def test_a_failed_save_is_reported_and_tried_again(tmp_path, capsys):
    folder = CheckpointFolder(tmp_path / "file" / "checkpoints", keep=1)
    (tmp_path / "file").touch()  # in the way
    for background in (False, True):
        saver = Saver(folder, 1, None, background, last_good="elsewhere")
        saver.save_within_epoch(snapshot(0, 8))
        while saver.thread is not None and saver.thread.is_alive():
            time.sleep(0.01)
        assert saver.is_due(2)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "last.ckpt: cannot be written (Not a directory)" in err
        assert saver.is_due(3)
        assert capsys.readouterr().err == ""
        saver.save_within_epoch(snapshot(0, 16))
        with pytest.raises(CheckpointError, match=r"the last save failed: .*last good save: elsewhere"):
            saver.finish()
        assert capsys.readouterr().err == ""
    folder.save_within_epoch = lambda taken: taken.nothing
    saver.save_within_epoch(snapshot(0, 8))
    with pytest.raises(AttributeError):  # a defect is no full disk
        saver.finish()


def test_metrics_are_complete_after_a_failure(tmp_path, capsys):
    folder = tmp_path / "run"
    log = MetricsLog(folder / "metrics.jsonl", enabled=True)
    log.add(epoch=1, update=5, loss=0.1 + 0.2)
    log.add(epoch=1, update=10, loss=float("nan"))
    assert capsys.readouterr().err.count("\n") == 1
    assert not log.flush()
    folder.mkdir()
    log.add(epoch=1, weights="raw", top1=50.0)
    assert log.flush()
    assert metrics(folder) == [
        {"epoch": 1, "update": 5, "loss": 0.1 + 0.2},
        {"epoch": 1, "update": 10, "loss": None},
        {"epoch": 1, "weights": "raw", "top1": 50.0},
    ]
    MetricsLog(tmp_path / "metrics.jsonl", enabled=False).add(epoch=1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_a_run_could_not_write_is_tried_again(tmp_path, capsys):
    """Names that folders have stand for the disk."""
    run = RunFolder(tmp_path, keep_checkpoints=1, is_main=True)
    names = ["sessions.jsonl", "evaluation.json"]
    for name in names:
        (tmp_path / name).mkdir()
    run.note_session({"started": "now"})
    run.keep_evaluation({"top1": 50.0}, {"confusion": np.array([[1, 0], [1, 0]])})
    with pytest.raises(UserError, match="could not be completed"):
        run.finish({"updates": 1})
    assert [line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines()] == [
        str(tmp_path / name) for name in names
    ]
    for name in names:
        assert not run.write_pending()
        (tmp_path / name).rmdir()
    assert run.write_pending()
    assert (tmp_path / "sessions.jsonl").read_text() == '{"started": "now"}\n'
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"top1": 50.0, "confusion": [[1, 0], [1, 0]]}
    run.finish({"updates": 1})
    assert (tmp_path / "sessions.jsonl").read_text().count("\n") == 1


def test_a_save_that_failed_on_the_main_rank_is_an_error_on_all(trainer):
    """Else the others would exit as if all were saved, and a launcher takes the first exit code."""
    run = trainer("run")
    rank = SimpleNamespace(is_main=False, sum=lambda values: values + 1)  # another than the main one, which failed
    rank.on_main = lambda action, failure: Dist.on_main(rank, action, failure)
    run.saver, run.dist = None, rank
    with pytest.raises(UserError, match="the last save failed"):
        run._await_saves()


def test_an_error_does_not_cut_the_save_in_progress(trainer):
    """The process may be ended right after (focal_twins.distributed.launch.leave)."""
    run = trainer("run", "train.save_interval=2")
    write = run.checkpoints.save_within_epoch

    def slow(snapshot):
        time.sleep(1)
        write(snapshot)

    def fail():
        raise UserError("something else")

    run.checkpoints.save_within_epoch = slow
    at_updates(run, {2: fail})
    with pytest.raises(UserError, match="something else"):
        run.run()
    assert saved(run.checkpoints).update == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system of its own can be mounted by root alone: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk):
    """Leave no room on a disk; returns the file that takes it."""
    path = disk / "filler"
    with open(path, "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    return path


def at_updates(run, actions):
    """Have actions called before updates are made, by the number of updates done."""
    make_update = run._update

    def call(*arguments):
        actions.get(run.state.progress.update, lambda: None)()
        return make_update(*arguments)

    run._update = call


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_full_disk_costs_neither_the_run_nor_the_save_before(trainer, small_disk, capsys, background):
    options = [f"runtime.output={small_disk / 'run'}", "train.epochs=2", "train.save_interval=5",
               "train.log_interval=1", "train.keep_checkpoints=1", f"train.async_save={background}"]  # fmt: skip
    run = trainer("run", *options)
    seen = []

    def look():
        run.saver.wait()
        seen.append((saved(run.checkpoints).update, sorted(path.name for path in run.checkpoints.path.iterdir())))

    def make_room():
        look()
        (small_disk / "filler").unlink()

    at_updates(run, {6: lambda: (run.saver.wait(), fill(small_disk)), 12: make_room})
    run.run()
    assert seen == [(5, ["last.ckpt"])]
    err = capsys.readouterr().err.splitlines()
    failed = [line for line in err if "last.ckpt: cannot be written (No space left on device)" in line]
    assert len(failed) == 1
    assert failed[0].startswith("warning: ")
    assert all(line.startswith("warning: ") for line in err)
    assert saved(run.checkpoints).epoch == 2
    assert [line["update"] for line in metrics(run.config.output) if "lr" in line] == list(range(1, 29))


def test_a_disk_that_stays_full_is_an_error_at_the_end(trainer, small_disk, capsys):
    options = [f"runtime.output={small_disk / 'run'}", "train.epochs=1", "train.save_interval=5"]
    run = trainer("run", *options)
    at_updates(run, {6: lambda: (run.saver.wait(), fill(small_disk))})
    with pytest.raises(CheckpointError, match=r"the last save failed.*last\.ckpt \(epoch 1, update 5\)") as error:
        run.run()
    assert "\n" not in str(error.value)
    assert saved(run.checkpoints).update == 5
    (small_disk / "filler").unlink()
    again = trainer("run", *options, "train.resume=auto")
    assert again.state.progress.update == 5
    # Of a run whose saves are whole, other files can fail.
    again.checkpoints.save(again.state.snapshot(), is_best=True)
    fill(small_disk)
    with pytest.raises(UserError, match=r"summary\.json: cannot be written"):
        again._finish()


def test_divergence_ends_the_run_and_keeps_the_last_good_save(trainer):
    run = trainer("run", "train.save_interval=2", "train.max_skipped_updates=4", "train.log_interval=1")
    make_update = run._update

    def spoiled(batches, rate):
        done = run.state.progress.update
        if done == 2 or done >= 7:  # one skipped update does not end a run
            batches = [(np.full_like(images, np.nan), targets) for images, targets in batches]
        return make_update(batches, rate)

    run._update = spoiled
    with pytest.raises(UserError) as error:
        run.run()
    message = str(error.value)
    assert "\n" not in message
    # Known when the next update has been started; none of these overwrote the save.
    for part in ("update 11 (epoch 1, update 11 of 14) makes 4 in a row", "loss scale 64;", "base_lr",
                 f"last good save: {run.checkpoints.last} (epoch 1, update 6)"):  # fmt: skip
        assert part in message
    progress = saved(run.checkpoints)
    assert (progress.update, progress.skipped) == (6, 1)
    lines = {line["update"]: line for line in metrics(run.config.output)}
    assert [lines[update]["loss_scale"] for update in (2, 3, 4, 8, 9)] == [1024, 1024, 512, 512, 256]
    assert (lines[3]["loss"], lines[7]["loss"] is None, lines[8]["loss"]) == (None, False, None)
    again = trainer("run", "train.resume=auto", "train.epochs=1")
    assert again.run()["skipped_updates"] == 1
    assert json.loads((run.config.output / "summary.json").read_text())["updates"] == 14
