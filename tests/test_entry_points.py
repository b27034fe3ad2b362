"""train.py, eval.py and export.py as a user calls them, in good and in bad weather."""

import json
import os
import shutil
import subprocess
import sys

import mindspore as ms
import pytest
from mindspore import Tensor, nn

from focal_twins.config.load import load_config
from focal_twins.errors import UserError
from focal_twins.inference.export import verify
from focal_twins.tasks.find_task import create_task
from tests.conftest import DIGITS_CONFIG, PACKAGE, ROOT, TOY_MODEL, others_exhaustive

TINY = "focalv2_tiny_useconv_patch4_window7_224"


@pytest.fixture(scope="module")
def run(digits, shared_graphs, tmp_path_factory):
    """A run of one epoch, made by train.py in a process of its own: its folder and the options that made it."""
    output = tmp_path_factory.mktemp("runs") / "digits"
    options = ["--config", str(DIGITS_CONFIG), f"--data_url={digits}", *TOY_MODEL, "train.epochs=1",
               "schedule.warmup_epochs=0", "train.batch_size=96", "data.workers=1", shared_graphs]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "train.py", *options, f"--train_url={output}"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"GLOG_v": "4"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout  # plain lines where there is no terminal
    return output, [*options, f"runtime.output={output}"]


OTHER_FAMILIES = {
    # A map of 9 x 9 in windows of 4: padded, with neighbours and three levels.
    "focal": "img_size: 36\n  embed_dim: 16\n  depths: [1, 1]\n  num_heads: [1, 2]\n  window_size: 4\n"
             "  focal_levels: [3, 2]\n  focal_windows: [3, 1]\n  expand_sizes: [1, 1]\n",
    "twins": "img_size: 40\n  embed_dims: [16, 32]\n  depths: [2, 1]\n  num_heads: [1, 2]\n  mlp_ratios: [2.0, 2.0]\n"
             "  sr_ratios: [2, 1]\n  wss: [4, 4]\n",
}  # fmt: skip


@pytest.mark.parametrize("family", others_exhaustive(OTHER_FAMILIES, ("twins",)))
def test_other_families_train_evaluate_and_export(family, digits, run_script, tmp_path):
    config = tmp_path / f"{family}.yaml"
    config.write_text(
        f"model:\n  name: {family}\n  in_chans: 1\n  num_classes: 10\n  drop_path_rate: 0.1\n"
        f"  {OTHER_FAMILIES[family]}data:\n  path: {digits}\n  workers: 1\n  mean: [0.3]\n  std: [0.37]\n"
        "train:\n  epochs: 1\n  batch_size: 96\nschedule:\n  warmup_epochs: 0\noptimizer:\n  base_lr: 2e-3\n"
        f"  lr_batch_size: null\neval:\n  batch_size: 60\nruntime:\n  output: {tmp_path / 'run'}\n"
    )
    assert run_script("train.py", "--config", config)[::2] == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    code, out, err = run_script("eval.py", "--config", config, "--weights", "ema")
    assert (code, err) == (0, "")
    assert f"top-1 {summary['best']:.2f}%" in out
    code, out, err = run_script("export.py", "--config", config, "--output", tmp_path / "x.mindir")
    assert (code, err) == (0, "")
    assert "verified on validation images" in out


def test_train_writes_what_it_says(run):
    output, _ = run
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["epochs"], summary["updates"]) == (1, 14)
    assert (output / "checkpoints" / "best.ckpt").exists()


def test_eval_takes_the_best_and_either_weights(run, run_script, tmp_path):
    output, options = run
    seen = {}
    for weights in ("raw", "ema"):
        result = tmp_path / f"{weights}.json"
        code, out, err = run_script("eval.py", *options, "--weights", weights, "--json", result)
        assert (code, err) == (0, "")
        assert f"best.ckpt ({weights} weights): top-1" in out
        seen[weights] = json.loads(result.read_text())
        assert seen[weights]["count"] == 360
    assert seen["raw"]["loss_sum"] != seen["ema"]["loss_sum"]
    # The best top-1 of the run was measured with the averaged weights.
    assert seen["ema"]["top1"] == json.loads((output / "summary.json").read_text())["best"]
    flags = ["--pretrained", output / "checkpoints" / "last.ckpt", "--device_id=0", "--device_target", "CPU"]
    code, out, _ = run_script("eval.py", *options, *flags)
    assert code == 0
    assert "(ema weights)" in out
    # Without --json, the report is in the run's folder.
    assert json.loads((output / "eval_last_ema_val.json").read_text())["count"] == 360
    by_training = json.loads((output / "evaluation.json").read_text())
    assert by_training.pop("epoch") == 1
    for key, value in by_training.items():  # what the log tells while training is what eval.py finds
        assert seen["ema"][key] == pytest.approx(value) if key.startswith("loss") else seen["ema"][key] == value


def test_export_is_verified_against_the_checkpoint(run, run_script, digits, tmp_path):
    _, options = run
    target = tmp_path / "model.mindir"
    code, out, err = run_script("export.py", *options, "--format", "MINDIR", "--output", target, "--batch_size", "3")
    assert (code, err) == (0, "")
    assert "verified on validation images" in out
    config = load_config(DIGITS_CONFIG, [*TOY_MODEL, f"data.path={digits}"])
    model = config.build_model("CPU").set_train(False)
    images, source = create_task(config).sample_inputs(model, 3)
    assert source == "validation images"
    assert nn.GraphCell(ms.load(str(target)))(Tensor(images)).shape == (3, 10)
    with pytest.raises(UserError, match="differ from the checkpoint's"):
        verify(target, model, images, (3,))  # other, random weights
    assert images.min() >= -0.3 / 0.37 - 1e-6  # ink and ground, by the configuration's mean and deviation


REFUSALS = {
    "no configuration": (["train.py"], "give one of --config FILE and --arch NAME"),
    "misspelt file": (["train.py", "--config", "configs/no.yaml"], "configuration configs/no.yaml: no such file"),
    "misspelt name": (["train.py", "--arch", TINY[:-1]], f"did you mean configs/focalv2/{TINY}.yaml?"),
    "misspelt key": (["train.py", "--arch", TINY, "train.epoch=1"], "did you mean epochs?"),
    "unknown flag": (["train.py", "--arch", TINY, "--epochs=1"], "unrecognized arguments: --epochs=1"),
    "meaningless policy": (
        ["train.py", "--arch", TINY, "augment.auto_augment=rand-x3"],
        "command line: augment.auto_augment: 'rand-x3': unknown part 'x3'",
    ),
    "missing data": (["train.py", "--arch", TINY, "--data_url=no"], "no/train: no such folder"),
    "missing checkpoint": (["eval.py", "--arch", TINY, "--checkpoint", "no.ckpt"], "checkpoint no.ckpt: no such file"),
    "no run": (["eval.py", "--arch", TINY], "train first, or name one with --checkpoint"),
    "no Ascend": (["eval.py", "--arch", TINY, "--device_target=Ascend"], "MindSpore finds no Ascend device"),
    "AIR": (["export.py", "--arch", TINY, "--format", "AIR"], "MindSpore writes AIR on Ascend only"),
    "two batch sizes": (["export.py", "--arch", TINY, "--dynamic-batch", "--batch_size=2"], "not allowed with"),
    "no images": (["export.py", "--arch", TINY, "--batch_size=0"], "--batch_size: must be at least 1, got 0"),
    "not launched": (
        ["train.py", "--arch", TINY, "--device_num=8"],
        f"mpirun -n 8 python train.py --arch {TINY} --device_num=8",
    ),
    "export on several": (["export.py", "--arch", TINY, "--device_num=8"], "needs 8 processes"),
    "bad boolean": (["train.py", "--arch", TINY, "--run_openi=maybe"], "'maybe' is neither true nor false"),
}


@pytest.mark.parametrize(("command", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_line(run_script, command, expected):
    code, _, err = run_script(*command)
    assert code == 1
    assert expected in err
    assert err.startswith(f"{command[0]}: error: ")
    assert err.count("\n") == 1


def test_checkpoint_of_another_model_names_the_parameters(run, run_script, digits):
    output, _ = run
    command = ["eval.py", "--config", f"src/configs/{TINY}.yaml", "--data_url", digits, "--pretrained"]
    code, _, err = run_script(*command, output / "checkpoints" / "best.ckpt", "model.num_classes=10")
    assert code == 1
    assert "patch_embed.proj.weight (16, 1, 7, 7), here (96, 3, 7, 7)" in err
    code, _, err = run_script("train.py", *run[1])
    assert code == 1
    assert "holds a run" in err


def test_debug_shows_the_traceback(run_script):
    code, _, err = run_script("train.py", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_unwritable_output_is_one_line(run_script, run, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    code, _, err = run_script("train.py", *run[1], f"runtime.output={blocked}/run")
    assert code == 1
    assert f"output folder {blocked}/run: cannot be written (Not a directory)" in err
    code, _, err = run_script("export.py", *run[1], "--output", blocked / "x.mindir")
    assert code == 1
    assert "cannot be written" in err
    assert err.count("\n") == 1


def test_values_may_stand_between_flags(run_script, run, tmp_path):
    code, out, _ = run_script(
        "eval.py", *run[1], "--debug", "eval.batch_size=60", "--run_openi=false", "data.workers=2"
    )
    assert code == 0
    assert "(360 images)" in out
    assert run_script("eval.py", "--run_openi", "train.epoch=1", "--arch", TINY)[2].endswith("did you mean epochs?\n")


def test_openi_runs_stage_data_and_results(run_script, run, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("focal_twins.data.staging.PLATFORM_DISK", tmp_path)
    options = [option for option in run[1] if not option.startswith("runtime.output")]
    result = tmp_path / "bucket"
    code, _, err = run_script(
        "train.py", *options, "--run_openi=True", f"--train_url={result}", f"runtime.output={tmp_path / 'run'}"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "data" / "train" / "3").is_dir()
    assert (result / "checkpoints" / "best.ckpt").exists()


def test_export_passes_over_unreadable_images(run_script, run, digits, tmp_path):
    copied = tmp_path / "digits"
    shutil.copytree(digits / "val", copied / "val")
    for label in range(10):
        first = sorted((copied / "val" / str(label)).iterdir())[0]
        first.write_bytes(first.read_bytes()[:30])
    command = ["export.py", *run[1], "--output", str(tmp_path / "m.mindir"), "--batch_size=2"]
    code, out, _ = run_script(*command, f"data.path={copied}")
    assert (code, "verified on validation images" in out) == (0, True)
    code, out, _ = run_script(*command, "data.path=nowhere")
    assert (code, "verified on random input" in out) == (0, True)


@pytest.mark.parametrize("moment", ["importing", "finalizing"])
def test_ctrl_c_where_python_would_crash_or_swallow_it_is_one_line(moment):
    """While MindSpore is half imported, and in a finalizer that stops its workers."""
    script = f"""
import os, signal, sys, types
from importlib.machinery import ModuleSpec
from focal_twins.cli import run
class Workers:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def main(arguments):
    if "{moment}" == "finalizing":
        Workers()
        return 0
    module = sys.modules["mindspore"] = types.ModuleType("mindspore")
    module.__spec__ = ModuleSpec("mindspore", None)
    module.__spec__._initializing = True
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("initialization failed")  # as MindSpore makes of it
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run(main, "x.py"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "x.py: interrupted\n")
