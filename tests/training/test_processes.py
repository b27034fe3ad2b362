"""Several processes equal one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import DIGITS_CONFIG, ROOT, SMALL_MODEL
from tests.training.states import tensors


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
