"""scripts/benchmark.py, and the memory that it measures."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def benchmark(tmp_path, *arguments):
    """The figures of one measurement, in a process of its own, for peak memory is the process'."""
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *arguments, "--json", str(tmp_path / "x.json")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"GLOG_v": "4"}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    return json.loads((tmp_path / "x.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["focal_small_patch4_window7_224", "twins_pcpvt_large"])
def test_a_published_depth_trains(name, tmp_path):
    """Some 400 and 700 weights: loops over them in the graph would exceed the compiler's call depth."""
    narrow = ["embed_dim=24"] if name.startswith("focal") else ["embed_dims=[8,16,40,64]"]
    flags = ["--mode", "train", "--batch-size", "2", "--img-size", "64", "--warmup", "0", "--repeats", "1"]
    result = benchmark(tmp_path, "--model", name, *flags, *narrow)
    assert result["mode"] == "train"
    assert result["images_per_second"] > 0


@pytest.mark.slow
def test_a_large_image_fits_into_6_gigabytes(tmp_path):
    flags = ["--img-size", "896", "--batch-size", "1", "--warmup", "0", "--repeats", "1"]
    result = benchmark(tmp_path, "--model", "focal_tiny_patch4_window7_224", *flags)
    assert result["images"] == [1, 3, 896, 896]
    assert 1e9 < result["peak_memory_bytes"] < 6e9


def test_bad_input_is_one_line(run_script):
    for arguments, expected in (
        (["--model", "focal_tny"], "did you mean focal"),
        (["--model", "focal", "--img-size", "3"], "img_size"),
        (["--model", "focal", "--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--model", "focal", "--repeats", "0"], "--repeats: must be at least 1"),
        (["--model", "focal", "--mode", "test"], "invalid choice: 'test'"),
    ):
        code, out, err = run_script("scripts.benchmark", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert expected in err
