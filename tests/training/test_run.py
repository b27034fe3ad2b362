"""Whole runs on the digits: resuming, checkpoints, options."""

import json
import resource

import mindspore as ms
import numpy as np
import pytest

from src.config import load_config
from src.distributed import start
from src.errors import UserError
from src.training.checkpoint import CheckpointError
from src.training.trainer import Trainer
from src.weights import WeightsError, load_weights, read_checkpoint, read_weights
from tests.conftest import DIGITS_CONFIG, SMALL_MODEL


@pytest.fixture
def trainer(digits, tmp_path):
    """trainer("name", overrides...) builds a run of two epochs on a network that compiles fast."""

    def build(name, *overrides):
        common = [f"data.path={digits}", f"runtime.output={tmp_path / name}", "train.epochs=3", "train.batch_size=96",
                  "schedule.warmup_epochs=1", "data.workers=1"]  # fmt: skip
        config = load_config(DIGITS_CONFIG, [*SMALL_MODEL, *common, *overrides])
        return Trainer(config, start(config.runtime))

    return build


def tensors(path):
    return {name: value.asnumpy() for name, value in read_checkpoint(path).items() if isinstance(value, ms.Tensor)}


def assert_same_state(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_interrupted_and_resumed_equals_uninterrupted(trainer):
    """Weights, moments, average and loss scale, bit for bit; stochastic depth, dropout and augmentation on."""
    noise = ["model.drop_path_rate=0.2", "model.drop_rate=0.1", "amp.growth_interval=8"]
    whole = trainer("whole", *noise)
    whole.run()
    trainer("parts", *noise, "train.stop_after_epoch=1").run()
    again = trainer("parts", *noise, "train.resume=auto")
    assert again.state.progress.epoch == 1
    again.run()
    assert_same_state(whole.checkpoints.last, again.checkpoints.last)
    assert whole.state.progress == again.state.progress
    names = tensors(whole.checkpoints.last)
    assert names["optimizer.step"] == 3 * 14
    assert names["state.loss_scale"] > 1024

    finished = trainer("parts", *noise, "train.resume=auto")
    assert finished.run() == {}


def test_checkpoints_hold_the_run(trainer, capsys):
    run = trainer("run", "train.keep_checkpoints=1", "train.epochs=2")
    summary = run.run()
    folder = run.checkpoints
    assert [path.name for path in folder.epochs()] == ["epoch_0002.ckpt"]
    assert sorted(p.name for p in folder.path.iterdir()) == ["best.ckpt", "epoch_0002.ckpt", "last.ckpt"]
    content = read_checkpoint(folder.last)
    assert json.loads(content["state.classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(content["state.progress"])["epoch"] == 2
    assert "epochs: 2" in content["state.config"]
    assert load_config(run.output / "config.yaml").to_dict() == run.config.to_dict()
    assert json.loads((run.output / "summary.json").read_text())["best_top1"] == summary["best_top1"]
    # The raw and the averaged weights are both there, and differ.
    raw, average = read_weights(folder.last), read_weights(folder.last, ema=True)
    assert raw.keys() == average.keys()
    assert not np.array_equal(raw["head.weight"], average["head.weight"])
    lines = capsys.readouterr().out
    for part in ("epoch 2/2", "loss", "lr", "img/s", "left", "ema top-1"):
        assert part in lines

    with pytest.raises(UserError, match="holds a run"):
        trainer("run")
    with pytest.raises(WeightsError, match=r"patch_embed.proj.weight \(16, 1, 7, 7\), here \(32, 1, 7, 7\)"):
        trainer("other", f"train.resume={folder.last}", "model.embed_dim=32")
    with pytest.raises(WeightsError, match="no such file"):
        trainer("other", "train.resume=nowhere.ckpt")

    plain = run.output / "plain.ckpt"
    ms.save_checkpoint(run.model, str(plain))
    with pytest.raises(CheckpointError, match="holds no training state"):
        trainer("other", f"train.resume={plain}")
    started = trainer("other", f"train.pretrained={plain}")
    np.testing.assert_array_equal(started.model.head.weight.asnumpy(), run.model.head.weight.asnumpy())


def test_a_full_disk_leaves_the_last_checkpoint_whole(trainer):
    run = trainer("run", "train.epochs=1")
    run.run()
    before = tensors(run.checkpoints.last)
    run.state.progress.epoch = 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.checkpoints.last.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written .*earlier checkpoints are intact") as error:
            run.checkpoints.save(run.state, is_best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in run.checkpoints.path.iterdir()) == ["best.ckpt", "epoch_0001.ckpt", "last.ckpt"]
    after = tensors(run.checkpoints.last)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_mixed_precision_trains_and_keeps_float32_weights(trainer, level):
    run = trainer("run", f"amp.level={level}", "train.epochs=1")
    before = run.model.head.weight.asnumpy().copy()
    run.run()
    assert not np.array_equal(before, run.model.head.weight.asnumpy())
    assert {str(p.dtype) for p in run.model.trainable_params()} == {"Float32"}
    load_weights(run.model, run.checkpoints.last)


def test_pynative_mode_and_accumulation_train(trainer):
    try:
        run = trainer("run", "runtime.mode=pynative", "train.epochs=1", "train.batch_size=48",
                      "train.accumulation_steps=2")  # fmt: skip
        run.run()
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert run.state.progress.update == 14
    assert int(run.state.optimizer.step.asnumpy()) == 14
