"""Whole runs on the digits: resuming, checkpoints, options."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.config import load_config
from src.data.image_folder import Epochs, ImageFolder, eval_dataset
from src.data.transforms import EvalTransform
from src.distributed import start
from src.errors import UserError
from src.evaluation import evaluate
from src.precision import missing_kernels_named
from src.training.checkpoint import CheckpointError
from src.training.trainer import Trainer
from src.weights import WeightsError, load_weights, read_checkpoint, select_weights
from tests.conftest import DIGITS_CONFIG, ROOT, SMALL_MODEL
from tests.reference import images


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
    draw, drawn = whole.model.draw_drop_path, []
    whole.model.draw_drop_path = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    whole.run()
    assert len({scales.asnumpy().tobytes() for scales in drawn}) == len(drawn) == 3 * 14  # anew at every update
    trainer("parts", *noise, "train.stop_after_epoch=1").run()
    again = trainer("parts", *noise, "train.resume=auto")
    assert again.state.progress.epoch == 1
    again.run()
    assert_same_state(whole.checkpoints.last, again.checkpoints.last)
    one, two = (replace(run.state.progress, seconds=0.0) for run in (whole, again))
    assert one == two
    names = tensors(whole.checkpoints.last)
    assert names["optimizer.step"] == 3 * 14
    assert names["state.loss_scale"] > 1024

    finished = trainer("parts", *noise, "train.resume=auto")
    assert finished.run() == again.run()


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
    raw, average = (select_weights(content, weights)[0] for weights in ("raw", "ema"))
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
    # Something is computed in float16: the logits differ from float32's, a little.
    plain = run.config.build_model("CPU").set_train(False)
    load_weights(plain, select_weights(read_checkpoint(run.checkpoints.last), "raw")[0])
    x = ms.Tensor(images((4, 1, 32, 32)))
    logits, expected = run.network.set_train(False)(x).asnumpy(), plain(x).asnumpy()
    assert 1e-6 < np.abs(logits - expected).max() / np.abs(expected).max() < 1e-2


def test_missing_kernels_are_named_where_precision_is_to_blame():
    error = RuntimeError("Select CPU operator[BatchMatMul] fail! Unsupported data type!")
    message = "O3 needs the operator BatchMatMul in a type that CPU has no kernel for"
    with pytest.raises(UserError, match=message), missing_kernels_named("O3", "CPU"):
        raise error
    with pytest.raises(RuntimeError, match="Select CPU operator"), missing_kernels_named("O0", "CPU"):
        raise error


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
    config = (first.output / "config.yaml").read_bytes()
    summary = json.loads((first.output / "summary.json").read_text())
    (first.output / "summary.json").unlink()
    assert trainer("first", "train.epochs=1", "train.resume=auto").run() == summary
    assert json.loads((first.output / "summary.json").read_text()) == summary
    assert (first.output / "config.yaml").read_bytes() == config
    assert {path.name: path.read_bytes() for path in first.checkpoints.path.iterdir()} == before
    # Going on elsewhere from one of its checkpoints is fine.
    elsewhere = trainer("third", f"train.resume={tmp_path / 'first/checkpoints/epoch_0001.ckpt'}", "train.epochs=2")
    elsewhere.run()
    assert_same_state(elsewhere.checkpoints.last, first.checkpoints.last)
    assert elsewhere.checkpoints.best.exists()


def test_best_is_chosen_by_the_average(trainer):
    run = trainer("run", "train.epochs=2", "ema.decay=0.9999", "ema.warmup=false")
    run.run()
    with run.state.ema.applied():
        average = evaluate(run.network, make_eval(run), run.config.eval.batch_size, run.dist, run.scoring)
    assert run.state.progress.best_top1 == average.top1
    raw = evaluate(run.network, make_eval(run), run.config.eval.batch_size, run.dist, run.scoring)
    assert raw.top1 != average.top1


def test_the_best_epoch_s_report_is_in_the_run(trainer, digits, tmp_path, capsys):
    """With what evaluation was asked for: here valid labels that are the images' own, and flips."""
    names = ImageFolder.open(digits / "val").names()
    (tmp_path / "real.json").write_text(json.dumps({name: [int(name[0])] for name in names}))
    run = trainer("run", "train.epochs=1", "eval.flip=true", f"eval.real_labels={tmp_path / 'real.json'}")
    summary = run.run()
    content = json.loads((run.output / "evaluation.json").read_text())
    assert (content["top1"], content["epoch"], content["weights"]) == (summary["best_top1"], 1, "ema")
    assert content["real"]["accuracy"] == content["top1"]
    assert (content["flip"], content["count"], content["checkpoint"]) == (True, 360, summary["checkpoint"])
    assert np.trace(content["confusion"]) == content["top1_correct"]
    assert f"real {content['top1']:.2f}%  (360 images)" in capsys.readouterr().out
    (run.output / "evaluation.json").unlink()
    run.eval_batches = list(make_eval(run))
    assert not run._evaluate()  # as good as before is not better
    assert not (run.output / "evaluation.json").exists()
    with pytest.raises(UserError, match=r"command line: eval.class_map: is for eval.py"):
        trainer("other", "eval.class_map=map.txt")


def make_eval(run):
    """One more pass over the validation images of a run."""
    folder = ImageFolder.open(Path(run.config.data.path) / "val")
    transform = EvalTransform(run.model.img_size, run.config.eval.crop_ratio, run.config.augment.interpolation)
    return Epochs(
        eval_dataset(
            folder, transform, run.config.data, batch_size=run.config.eval.batch_size, unreadable=run.unreadable
        )
    )


def test_unreadable_images_are_named_and_counted(trainer, digits, tmp_path, capsys):
    copied = tmp_path / "digits"
    shutil.copytree(digits, copied)
    broken = [next((copied / split / "3").iterdir()) for split in ("train", "val")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:30])
    summary = trainer("run", f"data.path={copied}", "train.epochs=1").run()
    assert summary["unreadable_images"] == sorted(map(str, broken))
    out = capsys.readouterr().out
    assert all(f"unreadable image {path}" in out for path in broken)
    assert "2 unreadable images" in out
    assert "(359 images)" in out


def test_pynative_and_accumulation_equal_graph_mode_and_the_large_batch(trainer):
    graph = trainer("graph", "train.epochs=1", "model.drop_path_rate=0.0")
    graph.run()
    try:
        parts = ["train.batch_size=48", "train.accumulation_steps=2", "runtime.mode=pynative"]
        run = trainer("run", *parts, "train.epochs=1", "model.drop_path_rate=0.0")
        run.run()
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert run.state.progress.update == 14
    a, b = tensors(graph.checkpoints.last), tensors(run.checkpoints.last)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_equal_one(digits, tmp_path):
    """Two processes by msrun against one with twice the batch: weights after an epoch, files and log written once."""
    options = ["--config", str(DIGITS_CONFIG), *SMALL_MODEL, f"data.path={digits}", "train.epochs=1", "data.workers=1",
               "schedule.warmup_epochs=0", "model.drop_path_rate=0.0"]  # fmt: skip
    launcher = [str(Path(sys.executable).with_name("msrun")), "--worker_num=2", "--local_worker_num=2", "--join=True",
                "--master_port=8219", f"--log_dir={tmp_path / 'logs'}", "train.py"]  # fmt: skip
    environment = os.environ | {"GLOG_v": "4", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name, command in (("two", [*launcher, *options, "train.batch_size=48"]),
                          ("one", [sys.executable, "train.py", *options, "train.batch_size=96"])):  # fmt: skip
        done = subprocess.run(
            [*command, f"runtime.output={tmp_path / name}"], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        logs = {path.name: path.read_text() for path in tmp_path.glob("logs/*.log")}
        assert done.returncode == 0, (done.stderr, logs)
    assert "trained 1 epochs" in logs["worker_0.log"]
    assert "trained" not in logs["worker_1.log"]
    one, two = (tensors(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4, err_msg=name)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["updates"] == summaries[1]["updates"] == 14
