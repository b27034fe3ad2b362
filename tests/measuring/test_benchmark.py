"""scripts/benchmark.py, and the memory that it measures."""

import json
import os
import subprocess
import sys

import pytest

from scripts import benchmark as benchmark_script
from scripts.benchmark import exponent
from tests.conftest import ROOT


def benchmark(tmp_path, *arguments):
    """The figures of one measurement."""
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *arguments, "--json", str(tmp_path / "x.json")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"GLOG_v": "4"}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = json.loads((tmp_path / "x.json").read_text())
    return result


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["focal_small_patch4_window7_224", "twins_pcpvt_large"])
def test_a_published_depth_trains(name, tmp_path):
    """Some 400 and 700 weights, see test_a_step_of_many_weights_compiles in tests/training/test_train_step.py."""
    narrow = ["embed_dim=24"] if name.startswith("focal") else ["embed_dims=[8,16,40,64]"]
    flags = ["--mode", "train", "--batch-size", "2", "--img-size", "64", "--warmup", "0", "--repeats", "1"]
    result = benchmark(tmp_path, "--model", name, *flags, *narrow)
    assert result["mode"] == "train"
    assert result["images_per_second"] > 0


def test_a_large_image_fits_into_6_gigabytes(tmp_path):
    """Its first stage, of the largest maps, is what takes most; one block of it is as much as two."""
    flags = ["--img-size", "896", "--batch-size", "1", "--warmup", "0", "--repeats", "1", "depths=[1,1,1,1]"]
    result = benchmark(tmp_path, "--model", "focal_tiny_patch4_window7_224", *flags)
    assert result["images"] == [1, 3, 896, 896]
    assert 1e9 < result["peak_memory_bytes"] < 6e9


SMALL = ["--model", "twins", "--img-size", "32", "--batch-size", "2", "--warmup", "0", "embed_dims=[8,8]",
         "num_heads=[1,1]", "mlp_ratios=[1.0,1.0]", "depths=[1,1]", "sr_ratios=[2,1]"]  # fmt: skip


def test_a_training_step_is_measured(tmp_path):
    result = benchmark(tmp_path, "--mode", "train", "--repeats", "1", *SMALL)
    assert result["mode"] == "train"
    assert result["images_per_second"] > 0


def test_profile_and_rates(tmp_path):
    result = benchmark(tmp_path, "--repeats", "2", *SMALL, "--profile", "--count", "--memory", "--kernels", "none")
    operators = {operator["operator"]: operator for operator in result["operators"]}
    assert operators["Softmax"]["calls"] == 2
    times = [operator["seconds"] for operator in result["operators"]]
    assert times == sorted(times, reverse=True)
    assert result["fastest_seconds"] <= result["median_seconds"] <= result["slowest_seconds"] < 10
    held = result["alive_at_peak"]
    assert [tensor["bytes"] for tensor in held] == sorted((tensor["bytes"] for tensor in held), reverse=True)
    assert 0 < sum(tensor["bytes"] for tensor in held) < result["peak_memory_bytes"]
    assert result["threads"] == len(result["processors"]) == len(os.sched_getaffinity(0))
    assert 0 <= result["load_of_others"] <= 1
    assert 0 < result["multiply_accumulates_per_second"] < result["ceiling_multiply_accumulates_per_second"]


def test_exponents_of_growth():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1, 4, 16], [5, 10, 20]) == pytest.approx(0.5)


def test_a_comparison_waits_for_a_quiet_machine(run_script, monkeypatch):
    monkeypatch.setattr(benchmark_script, "idle_load", lambda: 0.4)
    monkeypatch.setattr(benchmark_script, "measure", lambda *_: pytest.fail("was measured all the same"))
    flags = ["--model", "twins", "--reference", "timm", "--reference-python", "python"]
    code, out, err = run_script("scripts.benchmark", *flags)
    assert (code, out) == (1, "")
    assert "other processes take 40% of the processors" in err
    assert "--allow-load" in err


def test_bad_input_is_one_line(run_script):
    for arguments, expected in (
        (["--model", "focal_tny"], "did you mean focal"),
        ([], "give one of --model NAME and --exported FILE ..."),
        (["--exported", "x.onnx", "--amp", "O1"], "files are measured as they are; leave out --amp"),
        (["--exported", "x.air"], "only .onnx and .mindir files can be run here"),
        (["--exported", "x.onnx"], "x.onnx.json beside it cannot be read; export again"),
        (["--model", "focal", "--img-size", "3"], "img_size"),
        (["--model", "focal", "--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--model", "focal", "--repeats", "0"], "--repeats: must be at least 1"),
        (["--model", "focal", "--warmup", "-1"], "--warmup: must be at least 0"),
        (["--model", "focal", "--threads", "999"], "--threads: must be 1 to"),
        (["--model", "focal", "--pause", "-1"], "--pause: must be at least 0"),
        (["--model", "focal", "--reference-compile"], "--reference-compile: needs --reference"),
        (["--model", "focal", "--sizes", "64", "64"], "--sizes: 64 64 has a value twice"),
        (["--model", "focal", "--mode", "test"], "invalid choice: 'test'"),
        (["--model", "focal", "--batch-sizes", "2", "0"], "--batch-size: must be at least 1"),
        (["--model", "focal", "--sizes", "64", "--depths", "2"], "one of --sizes, --batch-sizes and --depths"),
        (["--model", "focal", "--reference", "there"], "--reference-python"),
        (["--model", "focal", "--reference", "there", "--reference-python", "python"], "not the official repository"),
        (
            ["--model", "twins", "--reference", "timm", "--reference-python", "no/python", "--allow-load"],
            "no/python cannot be started",
        ),
    ):
        code, out, err = run_script("scripts.benchmark", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert expected in err
