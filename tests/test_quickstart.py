"""The quickstart's promise: the accuracy that its configuration reaches on the held-out digits."""

import subprocess
import sys

import pytest

from tests.conftest import DIGITS_CONFIG, ROOT


@pytest.mark.slow
def test_quickstart_configuration_reaches_its_accuracy(digits, tmp_path, run_script):
    command = ["--config", str(DIGITS_CONFIG), f"data.path={digits}", f"runtime.output={tmp_path}"]
    subprocess.run([sys.executable, "train.py", *command], cwd=ROOT, check=True, capture_output=True)
    code, out, _ = run_script("eval.py", *command)
    assert code == 0
    assert "(ema weights)" in out
    assert float(out.split("top-1 ")[1].split("%")[0]) >= 98.5


def test_quickstart_configuration_is_a_focal_network():
    """Three stages, two levels in each, several windows in the first two, and no flips."""
    from src.config import load_config

    config = load_config(DIGITS_CONFIG)
    model = config.build_model("CPU")
    attentions = [stage.blocks[0].attn for stage in model.layers]
    assert [attention.num_windows for attention in attentions] == [16, 4, 1]
    assert [attention.levels for attention in attentions] == [2, 2, 2]
    assert config.augment.hflip == config.augment.vflip == 0
