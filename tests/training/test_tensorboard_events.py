"""The events of a run, read back by TensorBoard's own reader, are the lines of metrics.jsonl."""

import json
from collections import defaultdict

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from focal_twins.training.metrics_log import MetricsLog
from focal_twins.training.tensorboard_events import PREFIX


def by_tag(folder):
    """(step, value) of every figure in metrics.jsonl, by the tags that documentation promises."""
    found = defaultdict(list)
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        evaluated = "weights" in line
        for key in (
            ("top1", "top5", "loss") if evaluated else ("loss", "grad_norm", "lr", "loss_scale", "images_per_second")
        ):
            if line[key] is not None:
                tag = f"eval/{key}_{line['weights']}" if evaluated else f"train/{key}"
                found[tag].append((line["update"], float(np.float32(line[key]))))
    return dict(found)


def assert_events_are_the_lines(folder):
    """In one file, each once, in order."""
    (path,) = folder.glob(PREFIX + "*")
    found, times = defaultdict(list), []
    for event in EventFileLoader(str(path)).Load():
        times.append(event.wall_time)
        for value in event.summary.value:
            found[value.tag].append((event.step, value.tensor.float_val[0]))
    assert dict(found) == by_tag(folder)
    assert times[1:] == sorted(times[1:])
    accumulator = EventAccumulator(str(folder)).Reload()  # as the application finds and reads a run
    for tag, values in by_tag(folder).items():
        assert [(event.step, event.value) for event in accumulator.Scalars(tag)] == values


def test_events_of_a_run_that_was_killed_and_goes_on(trainer):
    """It goes on from its first epoch, though lines of the second are there: those steps are not there twice."""
    options = ["train.log_interval=3", "train.epochs=3"]
    first = trainer("run", *options, "train.stop_after_update=25")
    first.run()
    folder = first.config.output
    assert_events_are_the_lines(folder)
    (before,) = folder.glob(PREFIX + "*")
    values = by_tag(folder)
    assert max(step for step, _ in values["train/loss"]) > 15
    assert len(values["eval/top1_ema"]) == 2  # after the epoch, and where the run was ended
    for later in [first.checkpoints.last, *first.checkpoints.epochs()[1:]]:
        later.unlink()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "upda')  # being written when it was killed
    second = trainer("run", *options, "train.resume=auto")
    second.run()
    assert_events_are_the_lines(folder)
    assert len(by_tag(folder)["eval/top1_ema"]) == 3
    assert sorted(folder.glob(PREFIX + "*"))[-1].name >= before.name  # TensorBoard reads files in this order
    assert len((folder / "sessions.jsonl").read_text().splitlines()) == 2
    seconds = [line["seconds"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    assert seconds == sorted(seconds)


def test_events_are_complete_after_a_full_disk(tmp_path, capsys):
    """A folder that is not there stands for the disk: what could not be written is, once it can be."""
    folder = tmp_path / "run"
    log = MetricsLog(folder / "metrics.jsonl", enabled=True)
    log.begin(0.0)
    log.add(epoch=1, update=5, loss=1.5, grad_norm=float("inf"), lr=0.1, loss_scale=2.0, images_per_second=None)
    assert capsys.readouterr().err.count("\n") == 2  # one for each file
    assert not log.flush()
    folder.mkdir()
    log.add(epoch=1, update=8, weights="raw", top1=50.0, top5=75.0, loss=1.25)
    assert log.flush()
    assert by_tag(folder)["train/loss"] == [(5, 1.5)]
    assert "train/grad_norm" not in by_tag(folder)
    assert_events_are_the_lines(folder)


def test_only_the_main_rank_writes_events(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", enabled=False)
    log.begin(0.0)
    log.add(epoch=1, update=1, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_lines_of_a_version_without_times_are_no_events(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "update": 5, "loss": 1.0}\n')
    log = MetricsLog(tmp_path / "metrics.jsonl", enabled=True)
    log.begin(100.0)
    log.add(epoch=1, update=10, loss=0.5)
    (path,) = tmp_path.glob(PREFIX + "*")
    events = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    assert [event.step for event in events] == [10]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["seconds"] == pytest.approx(100, abs=60)
