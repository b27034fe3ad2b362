"""Whole runs on the digits: checkpoints, options."""

import json
import resource
import shutil

import mindspore as ms
import numpy as np
import pytest

from focal_twins.config.load import load_config
from focal_twins.data.open_images import open_images
from focal_twins.data.pipeline import EvalBatches
from focal_twins.errors import UserError
from focal_twins.files.weights import WeightsError, load_weights, read_checkpoint, select_weights
from focal_twins.models import create_model
from focal_twins.models.layers import LayerNorm
from focal_twins.models.precision import apply_precision, level_on, missing_kernels_named
from focal_twins.tasks.task import evaluate
from focal_twins.training.checkpoint import CheckpointError
from tests.conftest import others_exhaustive
from tests.processes import holding, train_command
from tests.reference import images
from tests.training.states import tensors


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
    assert load_config(run.config.output / "config.yaml").to_dict() == run.config.to_dict()
    assert json.loads((run.config.output / "summary.json").read_text())["best"] == summary["best"]
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

    plain = run.config.output / "plain.ckpt"
    ms.save_checkpoint(run.model, str(plain))
    with pytest.raises(CheckpointError, match="holds no training state"):
        trainer("other", f"train.resume={plain}")
    started = trainer("other", f"train.pretrained={plain}")
    np.testing.assert_array_equal(started.model.head.weight.asnumpy(), run.model.head.weight.asnumpy())


def test_a_folder_that_another_process_trains_into_is_left_alone(run_script, digits, tmp_path):
    """Every file of it; and a run that cannot begin leaves no folder."""
    folder = tmp_path / "run"
    with holding(folder) as process:
        (folder / "metrics.jsonl").write_text("{}\n")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        code, out, err = run_script(*train_command(digits, folder, "train.resume=auto"))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"output folder {folder}: process {process.pid} on host " in err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    code, _, err = run_script(*train_command(tmp_path / "nowhere", tmp_path / "new" / "run"))
    assert (code, err.count("\n"), (tmp_path / "new").exists()) == (1, 1, False)


def test_a_full_disk_leaves_the_last_checkpoint_whole(trainer):
    run = trainer("run", "train.epochs=1")
    run.state.progress.epoch = 1
    run.checkpoints.save(run.state.snapshot(), is_best=True)
    before = tensors(run.checkpoints.last)
    run.state.progress.epoch = 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.checkpoints.last.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written .*earlier checkpoints are intact") as error:
            run.checkpoints.save(run.state.snapshot(), is_best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in run.checkpoints.path.iterdir()) == ["best.ckpt", "epoch_0001.ckpt", "last.ckpt"]
    after = tensors(run.checkpoints.last)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("level", others_exhaustive(("O1", "O2", "O3"), ("O1",)))
def test_mixed_precision_trains_and_keeps_float32_weights(trainer, level):
    run = trainer("run", f"amp.level={level}", "train.epochs=1")
    before = run.model.head.weight.asnumpy().copy()
    run.run()
    assert not np.array_equal(before, run.model.head.weight.asnumpy())
    assert {str(p.dtype) for p in run.model.trainable_params()} == {"Float32"}
    # Something is computed in float16: the logits differ from float32's, a little.
    plain = run.config.build_model("CPU").set_train(False)
    load_weights(plain, select_weights(read_checkpoint(run.checkpoints.last), "raw")[0])
    x = ms.Tensor(images((4, 1, 16, 16)))
    logits, expected = run.network.set_train(False)(x).asnumpy(), plain(x).asnumpy()
    assert 1e-6 < np.abs(logits - expected).max() / np.abs(expected).max() < 1e-2


def test_automatic_precision_is_float32_where_float16_is_slower(trainer, capsys):
    run = trainer("run", "amp.level=auto")
    assert run.network is run.model
    run._announce()
    assert capsys.readouterr().out.rstrip().endswith("amp O0")
    assert "level: auto" in run.config.to_yaml()
    assert (level_on("Ascend", "auto"), level_on("CPU", "O1")) == ("O1", "O1")


def test_norms_in_mixed_precision_are_the_operators():
    """By products their means would be in float16."""
    model = create_model("twins_svt_small", img_size=32, depths=[1, 1, 1, 1])
    norms = [cell for _, cell in model.cells_and_names() if isinstance(cell, LayerNorm)]
    assert {norm.gradient for norm in norms} == {"products"}
    apply_precision(model, "O1")
    assert {norm.gradient for norm in norms} == {"operator"}


def test_missing_kernels_are_named_where_precision_is_to_blame():
    error = RuntimeError("Select CPU operator[BatchMatMul] fail! Unsupported data type!")
    message = "O3 needs the operator BatchMatMul in a type that CPU has no kernel for"
    with pytest.raises(UserError, match=message), missing_kernels_named("O3", "CPU"):
        raise error
    with pytest.raises(RuntimeError, match="Select CPU operator"), missing_kernels_named("O0", "CPU"):
        raise error


def test_best_is_chosen_by_the_average(trainer):
    run = trainer("run", "train.epochs=2", "ema.decay=0.9999", "ema.warmup=false")
    run.run()
    with run.state.ema.applied():
        average = evaluate(run.network, make_eval(run), run.evaluator).figures
    assert run.state.progress.best == average["top1"]
    raw = evaluate(run.network, make_eval(run), run.evaluator).figures
    assert raw["top1"] != average["top1"]


def test_the_best_epoch_s_report_is_in_the_run(trainer, digits, tmp_path, capsys):
    """With what evaluation was asked for: here valid labels that are the images' own, and flips."""
    names = open_images(digits, "val").names
    (tmp_path / "real.json").write_text(json.dumps({name: [int(name[0])] for name in names}))
    run = trainer("run", "train.epochs=1", "eval.flip=true", f"eval.real_labels={tmp_path / 'real.json'}")
    summary = run.run()
    content = json.loads((run.config.output / "evaluation.json").read_text())
    assert (content["top1"], content["epoch"], content["weights"]) == (summary["best"], 1, "ema")
    assert content["real"]["accuracy"] == content["top1"]
    assert (content["flip"], content["count"], content["checkpoint"]) == (True, 360, summary["checkpoint"])
    assert np.trace(content["confusion"]) == content["top1_correct"]
    assert f"real {content['top1']:.2f}%  (360 images)" in capsys.readouterr().out
    (run.config.output / "evaluation.json").unlink()
    run.eval_batches = list(make_eval(run))
    assert not run._keep_if_best(run._evaluate())  # as good as before is not better
    assert not (run.config.output / "evaluation.json").exists()
    with pytest.raises(UserError, match=r"command line: eval.class_map: is for eval.py"):
        trainer("other", "eval.class_map=map.txt")


def make_eval(run):
    """One more pass over the validation images of a run."""
    data = open_images(run.config.data.path, "val")
    samples = run.task.eval_samples(run.model, data, run.folder.unreadable(0))
    return EvalBatches(data, samples, batch_size=run.config.eval.batch_size)


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
    parts = ["train.batch_size=48", "train.accumulation_steps=2", "runtime.mode=pynative",
             "runtime.compile_cache=null"]  # fmt: skip
    run = trainer("run", *parts, "train.epochs=1", "model.drop_path_rate=0.0")
    run.run()
    assert run.state.progress.update == 14
    a, b = tensors(graph.checkpoints.last), tensors(run.checkpoints.last)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4, err_msg=name)
