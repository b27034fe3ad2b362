"""Runs killed at any moment: nothing unreadable, nothing left behind, and the same end as if they had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from focal_twins.files import ckpt
from focal_twins.training.checkpoint import CheckpointFolder
from tests.conftest import DIGITS_CONFIG, ROOT, TOY_MODEL
from tests.training.states import RECIPE, assert_same_state, metrics

# Everything that has a state, and a save in progress much of the time.
OPTIONS = [*RECIPE, "model.drop_rate=0.1", "amp.growth_interval=8", "train.batch_size=96", "train.save_interval=2",
           "train.log_interval=1", "train.async_save=true", "data.workers=2", "schedule.warmup_epochs=1"]  # fmt: skip
UPDATES_PER_EPOCH = 14


@pytest.fixture
def train(digits, shared_graphs):
    """train(folder, options...) starts train.py in a process group of its own."""
    command = [sys.executable, "train.py", "--config", str(DIGITS_CONFIG), *TOY_MODEL, *OPTIONS, shared_graphs,
               f"data.path={digits}", "train.resume=auto"]  # fmt: skip
    return lambda folder, *options: subprocess.Popen(
        [*command, f"runtime.output={folder}", *options], cwd=ROOT, env=os.environ | {"GLOG_v": "4"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def members(group):
    """The processes of a group that are not dead."""
    table = subprocess.run(["ps", "-eo", "pgid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()]
    return [int(pid) for pgid, pid, state in rows if int(pgid) == group and not state.startswith("Z")]


def survivors(group, seconds):
    """The processes of a group that are not dead after so many seconds: a killed one still frees its memory."""
    deadline = time.monotonic() + seconds
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return members(group)


def await_updates(process, count):
    """Read the log of a run until so many updates were made, or its end; returns whether they were."""
    for line in process.stdout:
        count -= "  update " in line
        if count <= 0:
            return True
    return False


def unfinished(folder):
    """Temporary files in a run."""
    return [path.name for path in folder.rglob(".*") if path.name.endswith((".writing", ".link"))]


def kill(process, checkpoints, in_save, moments):
    """Kill a run with its workers: at a random moment, or in the next save, if one comes within seconds."""
    deadline = time.monotonic() + (5 if in_save else moments.uniform(0, 0.3))
    while time.monotonic() < deadline:
        if in_save and unfinished(checkpoints):
            time.sleep(moments.uniform(0, 0.004))
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_run_ends_as_the_uninterrupted_one(train, tmp_path, pytestconfig):
    kills = pytestconfig.getoption("--kills")
    epochs = max(4, kills // 2)
    length = f"train.epochs={epochs}"
    whole = train(tmp_path / "whole", length)
    assert whole.communicate()[0]
    assert whole.returncode == 0
    moments = random.Random(kills)
    output, done, within_saves = tmp_path / "killed", 0, 0
    checkpoints = output / "checkpoints"
    longest = (epochs - 2) * UPDATES_PER_EPOCH // kills
    while done < kills:
        process = train(output, length)
        # The last kill comes when there is an epoch's save beside a later one.
        count = moments.randint(1, longest) if done < kills - 1 else UPDATES_PER_EPOCH + 5
        assert await_updates(process, count), "the run ended before it could be killed"
        kill(process, checkpoints, done % 2 == 0, moments)
        assert not survivors(process.pid, 10)
        done += 1
        within_saves += bool(unfinished(output))
        for path in checkpoints.glob("*.ckpt"):
            ckpt.read(path)
    # On top, the newest save is damaged: the one before must do.
    damaged = CheckpointFolder(checkpoints, 3).newest(print)[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    process = train(output, length)
    log = process.communicate()[0]
    assert process.returncode == 0, log
    assert f"skipped {damaged}: damaged or cut short" in log
    print(f"{kills} kills, {within_saves} of them while a file was written")
    assert not unfinished(output)
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    for name in names:
        assert_same_state(checkpoints / name, tmp_path / "whole" / "checkpoints" / name)
        progress = [
            json.loads(ckpt.read_texts(folder / "checkpoints" / name)["state.progress"]) | {"seconds": 0}
            for folder in (output, tmp_path / "whole")
        ]
        assert progress[0] == progress[1]
    assert metrics(output) == metrics(tmp_path / "whole")


def test_data_workers_end_with_a_killed_process(train, tmp_path):
    process = train(tmp_path / "run", "train.epochs=50")
    assert await_updates(process, 1)
    assert len(members(process.pid)) > 2  # two workers and what watches over them
    process.kill()
    process.stdout.close()
    process.wait()
    orphans = survivors(process.pid, 60)
    if orphans:
        os.killpg(process.pid, signal.SIGKILL)
    assert not orphans
