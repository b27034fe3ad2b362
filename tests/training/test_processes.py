"""Several processes equal one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.training.checkpoint import Progress
from src.weights import read_checkpoint
from tests.conftest import DIGITS_CONFIG, ROOT, SMALL_MODEL
from tests.training.states import metrics, tensors

MSRUN = [str(Path(sys.executable).with_name("msrun")), "--worker_num=2", "--local_worker_num=2", "--join=True"]
ENVIRONMENT = os.environ | {"GLOG_v": "4", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_two_processes_equal_one(digits, tmp_path):
    """Two processes by msrun against one with twice the batch: weights after an epoch, files and log written once."""
    options = ["--config", str(DIGITS_CONFIG), *SMALL_MODEL, f"data.path={digits}", "train.epochs=1", "data.workers=1",
               "schedule.warmup_epochs=0", "model.drop_path_rate=0.0"]  # fmt: skip
    launcher = [*MSRUN, "--master_port=8219", f"--log_dir={tmp_path / 'logs'}", "train.py"]
    for name, command in (("two", [*launcher, *options, "train.batch_size=48"]),
                          ("one", [sys.executable, "train.py", *options, "train.batch_size=96"])):  # fmt: skip
        done = subprocess.run(
            [*command, f"runtime.output={tmp_path / name}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        logs = {path.name: path.read_text() for path in tmp_path.glob("logs/*.log")}
        assert done.returncode == 0, (done.stderr, logs)
    assert "trained 1 epochs" in logs["worker_0.log"]
    assert "trained" not in logs["worker_1.log"]
    one, two = (tensors(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4, err_msg=name)
    # The loss in the log is the mean over the devices.
    figures = [metrics(tmp_path / name) for name in ("one", "two")]
    assert len(figures[0]) == len(figures[1]) == 3
    for a, b in zip(*figures, strict=True):
        assert a.keys() == b.keys()
        assert all(b[key] == pytest.approx(a[key], rel=1e-2) for key in a if isinstance(a[key], float))
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["updates"] == summaries[1]["updates"] == 14


def worker(launcher, rank):
    """The process of a rank that msrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ProcessLookupError):  # gone meanwhile
            continue
        if parent == launcher and {b"MS_ROLE=MS_WORKER", f"RANK_ID={rank}".encode()} <= set(environment):
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_signal_to_one_process_stops_all_and_another_number_goes_on(digits, tmp_path, trainer, capsys):
    """Two processes, the second of which gets a SIGTERM, end after the same update; one goes on from there."""
    options = [*SMALL_MODEL, f"data.path={digits}", "train.epochs=3", "data.workers=1", "schedule.warmup_epochs=1"]
    log = tmp_path / "logs" / "worker_0.log"
    launcher = subprocess.Popen(
        [*MSRUN, "--master_port=8221", f"--log_dir={log.parent}", "train.py", "--config", str(DIGITS_CONFIG), *options,
         "train.batch_size=48", "train.epochs=300", "train.log_interval=1", f"runtime.output={tmp_path / 'run'}"],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (log.exists() and "update 5/14" in log.read_text()):
        assert launcher.poll() is None and time.monotonic() < deadline, log.exists() and log.read_text()
        time.sleep(0.1)
    os.kill(worker(launcher.pid, 1), signal.SIGTERM)
    launcher.communicate(timeout=200)
    assert launcher.returncode != 0
    progress = Progress.of_texts(read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    assert (progress.devices, progress.global_batch) == (2, 96)
    assert "stopped by a signal to another process after epoch" in log.read_text()
    assert "go on with train.resume=auto" in log.read_text()
    capsys.readouterr()
    again = trainer(
        "run", "train.resume=auto", "train.epochs=300", "train.batch_size=80", "optimizer.lr_batch_size=512"
    )
    again._announce()
    out = capsys.readouterr().out
    assert "changed since: devices 2 -> 1" in out
    assert "images of an update 96 -> 80, updates of an epoch 14 -> 17, learning rate times 0.833333" in out
    begun = progress.images // 80 * 80
    assert again.state.progress.images == begun
    if progress.images != begun:
        assert f"{progress.images} images were trained on: it goes on after {begun}, " in out
