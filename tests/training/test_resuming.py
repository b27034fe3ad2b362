"""What a run that resumes says of the differences to the run it goes on from."""

import json
from dataclasses import replace

import pytest

from focal_twins.config.load import load_config
from focal_twins.files import ckpt
from focal_twins.training.checkpoint import Progress
from focal_twins.training.resuming import changed_keys, changes
from tests.conftest import DIGITS_CONFIG

THEN = Progress(epoch=2, images=960, update=38, devices=1, global_batch=96)  # 14 updates an epoch


def lines(now, updates_per_epoch, *overrides, then=THEN):
    config = load_config(DIGITS_CONFIG, ["train.resume=auto", "optimizer.lr_batch_size=512", *overrides])
    saved = load_config(DIGITS_CONFIG, ["optimizer.lr_batch_size=512"]).to_dict()
    return changes(saved, config, then, now, 1437, updates_per_epoch)


def test_nothing_changed_is_nothing_said():
    assert (
        lines(Progress(epoch=2, images=960, update=38, devices=1, global_batch=96), 14, "train.save_minutes=5.0") == []
    )


def test_keys_that_there_were_not_had_their_defaults():
    config = load_config(DIGITS_CONFIG, ["schedule.decay_rate=0.5"])
    then = config.to_dict()
    del then["schedule"]["power"], then["schedule"]["decay_rate"], then["train"]["updates"]
    assert changed_keys(then, config) == [("schedule.decay_rate", 0.1, 0.5)]


@pytest.mark.parametrize(
    ("lr_batch_size", "rate"), [("512", "times 4 (it scales with the batch)"), ("null", "as before")]
)
def test_another_number_of_devices(lr_batch_size, rate):
    now = Progress(epoch=2, images=768, update=2 * 3 + 2, devices=4, global_batch=384)
    said = lines(now, 3, f"optimizer.lr_batch_size={lr_batch_size}")
    assert said[lr_batch_size == "null" :] == [
        "changed since: devices 1 -> 4",
        f"changed since: images of an update 96 -> 384, updates of an epoch 14 -> 3, learning rate {rate}",
        "of the epoch begun, 960 images were trained on: it goes on after 768, 192 are trained on again",
    ]


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ((21, "ImageFolder:aa"), (20, "ImageFolder:bb"), "training samples 21 -> 20: they come in another order"),
        ((21, "ImageFolder:aa"), (21, "ImageFolder:bb"), "names of the training samples: some come in the places"),
        ((21, "ImageFolder:aa"), (21, "MindRecordImages:bb"), None),
        ((0, ""), (21, "ImageFolder:bb"), None),
    ],
)
def test_other_samples(then, now, said):
    """A file that was added or removed since moves all others; packing them does not."""
    then, now = (replace(THEN, samples=samples, listing=listing) for samples, listing in (then, now))
    told = lines(now, 14, then=then)
    assert [line.startswith(f"changed since: {said}") for line in told] == ([True] if said else [])


def test_saves_without_numbers_of_devices_say_what_is_known(tmp_path):
    """As they were written before these were kept."""
    texts = {"state.progress": json.dumps({"epoch": 2, "images": 960, "update": 38, "skipped": 1, "seconds": 2.5})}
    ckpt.write(tmp_path / "old.ckpt", {}, texts)
    then = Progress.of_texts(ckpt.read(tmp_path / "old.ckpt"))
    assert (then.epoch, then.update, then.skipped, then.devices, then.global_batch) == (2, 38, 1, 0, 0)
    assert (then.description, THEN.description) == ("epoch 3, after 960 images", "epoch 3, update 10")
    now = Progress(epoch=2, images=768, update=8, devices=4, global_batch=384)
    assert lines(now, 3, then=then) == [
        "of the epoch begun, 960 images were trained on: it goes on after 768, 192 are trained on again"
    ]
