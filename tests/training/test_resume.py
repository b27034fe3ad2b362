"""Runs that were interrupted, and what they go on from."""

import json

import numpy as np
import pytest

from focal_twins.errors import UserError
from tests.training.states import EVERYTHING, assert_same_end, assert_same_state, metrics, tensors


def test_interrupted_and_resumed_equals_uninterrupted(trainer, uninterrupted):
    """Weights, moments, average and loss scale, bit for bit; stochastic depth, dropout and augmentation on."""
    drawn = uninterrupted.drawn
    assert len({scales.tobytes() for scales in drawn}) == len(drawn) == 3 * 14  # anew at every update
    trainer("parts", *EVERYTHING, "train.stop_after_epoch=1").run()
    again = trainer("parts", *EVERYTHING, "train.resume=auto")
    assert again.state.progress.epoch == 1
    again.run()
    assert_same_end(uninterrupted.run, again)
    names = tensors(again.checkpoints.last)
    assert names["optimizer.step"] == 3 * 14
    assert names["state.loss_scale"] > 1024

    finished = trainer("parts", *EVERYTHING, "train.resume=auto")
    assert finished.run() == again.run()


class Cut(Exception):
    """The end of a run by force."""


def run_until(run, update):
    """Train until an update is due, and end there as by force."""
    make_update = run._update

    def cut(*arguments):
        if run.state.progress.update == update:
            raise Cut
        return make_update(*arguments)

    run._update = cut
    with pytest.raises(Cut):
        run.run()


def test_a_run_cut_within_an_epoch_equals_the_uninterrupted_one(trainer, uninterrupted, capsys):
    """Bit for bit from the last save on, with the whole recipe on; twice, the second time in the resumed epoch."""
    run_until(trainer("parts", *EVERYTHING, "train.save_interval=10"), 23)
    again = trainer("parts", *EVERYTHING, "train.resume=auto", "train.save_interval=2")
    assert again.state.progress.update == 20
    capsys.readouterr()
    run_until(again, 27)
    assert "after epoch 1 and 6 updates of the next" in capsys.readouterr().out
    last = trainer("parts", *EVERYTHING, "train.resume=auto")
    assert last.state.progress.update == 26
    last.run()
    assert_same_end(uninterrupted.run, last)


def test_a_cut_run_with_accumulation_goes_on_at_the_right_batch(trainer):
    parts = ["train.batch_size=48", "train.accumulation_steps=2", "augment.mixup=0.8"]
    run_until(trainer("run", *parts, "train.save_interval=5"), 17)
    again = trainer("run", *parts, "train.resume=auto")
    assert again.state.progress.update == 15
    assert again.train_batches.first_batch == 2
    whole = trainer("whole", *parts)
    list(whole.train_batches)
    for expected, batch in zip(list(whole.train_batches)[2:], again.train_batches, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(expected, batch, strict=True))


def test_the_cooldown_is_the_trainers(trainer):
    run = trainer("run", "train.epochs=3", "schedule.cooldown_epochs=1.5", "augment.cooldown=crop")
    assert [run.train_batches.samples.transform.mode(epoch) for epoch in range(3)] == ["all", "crop", "crop"]


@pytest.mark.exhaustive
def test_resuming_within_an_epoch_with_another_batch_repeats_at_most_part_of_an_update(trainer):
    run_until(trainer("run", "train.save_interval=5"), 16)  # saved at update 15, the first of the second epoch
    again = trainer("run", "train.resume=auto", "train.batch_size=40")
    assert again.updates_per_epoch == 35
    assert again.state.progress.update == 35 + 96 // 40
    assert again.train_batches.first_batch == 2


def test_resuming_with_another_batch_keeps_the_epochs_of_the_schedule(trainer, capsys):
    trainer("run", "train.stop_after_epoch=2").run()
    again = trainer("run", "train.resume=auto", "train.batch_size=48")
    assert again.state.progress.update == 2 * again.updates_per_epoch == 2 * 29
    again.run()
    out = capsys.readouterr().out
    assert "changed since: train.batch_size 96 -> 48" in out
    assert "epoch 3/3  update 29/29" in out
    assert again.state.progress.update == 3 * 29


def test_a_run_is_never_overwritten(trainer, tmp_path):
    first = trainer("first", "train.epochs=2", "train.keep_checkpoints=2")
    first.run()
    trainer("second", "train.epochs=2").run()
    before = {path.name: path.read_bytes() for path in first.checkpoints.path.iterdir()}
    for resume in ("false", tmp_path / "second/checkpoints/last.ckpt", tmp_path / "first/checkpoints/epoch_0001.ckpt"):
        with pytest.raises(UserError, match="holds a run"):
            trainer("first", f"train.resume={resume}")
    # A finished run stays as it is, whatever is asked of it; a lost summary comes back.
    config = (first.config.output / "config.yaml").read_bytes()
    summary = json.loads((first.config.output / "summary.json").read_text())
    (first.config.output / "summary.json").unlink()
    assert trainer("first", "train.epochs=1", "train.resume=auto").run() == summary
    assert json.loads((first.config.output / "summary.json").read_text()) == summary
    assert (first.config.output / "config.yaml").read_bytes() == config
    assert {path.name: path.read_bytes() for path in first.checkpoints.path.iterdir()} == before
    # Going on elsewhere from one of its checkpoints is fine.
    elsewhere = trainer("third", f"train.resume={tmp_path / 'first/checkpoints/epoch_0001.ckpt'}", "train.epochs=2")
    elsewhere.run()
    assert_same_state(elsewhere.checkpoints.last, first.checkpoints.last)
    assert elsewhere.checkpoints.best.exists()


def test_stopping_after_an_update_evaluates_saves_and_goes_on(trainer):
    """At the end of an epoch whatever eval.interval says, and within one, whose figures say so."""
    options = ["eval.interval=3", "ema.enabled=false", "train.epochs=2", "train.log_interval=14",
               "eval.batch_size=60"]  # fmt: skip
    run = trainer("run", *options, "train.stop_after_update=14")
    stages, at = [], run.watchdog.at
    run.watchdog.at = lambda stage, update: stages.append(stage) or at(stage, update)
    assert run.run()["best_epoch"] == 1
    assert stages.count("evaluating after") >= 360 / 60  # a sign of life with each batch
    run = trainer("run", *options, "train.stop_after_update=16", "train.resume=auto")
    earlier = (run.config.output / "summary.json").read_text()
    assert run.run()["updates"] == 16
    # The summary of an earlier end, where the run was killed before it wrote its own.
    (run.config.output / "summary.json").write_text(earlier)
    again = trainer("run", *options, "train.stop_after_update=16", "train.resume=auto")
    assert again.run()["updates"] == 16
    places = [(line["epoch"], line.get("update")) for line in metrics(run.config.output) if "top1" in line]
    assert places == [(1, 14), (2, 16)]
