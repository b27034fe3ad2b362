"""Several processes equal one, and end together."""

import json
import re
import shutil
import signal
import socket
import threading
import time

import numpy as np
import psutil
import pytest

from focal_twins.files.weights import STATE_PREFIX, read_checkpoint, select_weights, write_checkpoint
from focal_twins.training.checkpoint import Progress
from tests.conftest import DIGITS_CONFIG, ROOT, SOURCES, TOY_MODEL
from tests.processes import end, mpirun, msrun, rank_process, remaining, run, start, train_command
from tests.training.states import assert_same_state, metrics, tensors

GLOBAL_BATCH = 96
# The recipe without mixing and noise, which belong to a rank.
RECIPE = ["train.log_interval=1", "model.drop_path_rate=0.0", "augment.auto_augment=rand-m9-mstd0.5-inc1",
          "augment.erasing=0.25"]  # fmt: skip
TEN_UPDATES = [*RECIPE, "train.epochs=2", "train.stop_after_update=10"]
ENDLESS = [*RECIPE, "train.epochs=500", "eval.interval=500", f"train.batch_size={GLOBAL_BATCH // 2}"]


@pytest.fixture(scope="module")
def ten_updates(shared_graphs):
    """ten_updates(data, folder, ranks) is the command of a rank among so many."""

    def command(data, folder, ranks=1):
        return train_command(data, folder, *TEN_UPDATES, shared_graphs, f"train.batch_size={GLOBAL_BATCH // ranks}")

    return command


def listed(folder):
    """The files of a run, without the time in the name of its events."""
    return sorted(re.sub(r"(tfevents)\.\d+", r"\1", str(path.relative_to(folder))) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def alone(ten_updates, digits, tmp_path_factory):
    """Ten updates of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = run(["python", *ten_updates(digits, folder)])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("msrun", 2),
        pytest.param("mpirun", 3, marks=pytest.mark.slow),
        pytest.param("mpirun", 2, marks=pytest.mark.exhaustive),
        pytest.param("mpirun", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_ten_updates_of_several_processes_are_those_of_one(launcher, ranks, ten_updates, digits, alone, tmp_path):
    folder = tmp_path / "run"
    command = ten_updates(digits, folder, ranks)
    if launcher == "mpirun":
        done = run(mpirun(ranks, *command))
        outputs = [done.stdout]
    else:
        done = run(msrun(ranks, free_port(), tmp_path / "logs", *command))
        outputs = [(tmp_path / "logs" / f"worker_{rank}.log").read_text() for rank in range(ranks)]
    assert done.returncode == 0, (done.stderr, outputs)
    # One log, from the main rank; one set of files.
    assert [text.count("trained to epoch 1, update 10") for text in outputs] == [1] + [0] * (len(outputs) - 1)
    assert listed(folder) == listed(alone)
    losses = [[line["loss"] for line in metrics(run_folder) if "loss_scale" in line] for run_folder in (folder, alone)]
    assert len(losses[1]) == 10
    np.testing.assert_allclose(*losses, rtol=1e-5)  # the main rank's are means over all
    here, there = (tensors(run_folder / "checkpoints" / "last.ckpt") for run_folder in (folder, alone))
    assert here.keys() == there.keys()
    for name in there:
        if not name.startswith(STATE_PREFIX):
            np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert not remaining(str(folder))


STATE_OF_EACH_RANK = """
import sys
import zlib
from focal_twins.config.load import load_config
from focal_twins.distributed.ranks import start
from focal_twins.distributed.launch import leave
from focal_twins.training.trainer import Trainer

config = load_config(sys.argv[1], sys.argv[2:])
trainer = Trainer(config, start(config))
trainer.run()
state = {parameter.name: zlib.crc32(parameter.asnumpy().tobytes()) for parameter in trainer.state.parameters()}
print("state of a rank:", sorted(state.items()), flush=True)
trainer.dist.barrier()
leave(0)
"""


def test_weights_moments_and_averages_are_the_same_on_all_ranks(digits, tmp_path):
    """Only the main rank saves; the others could drift away unseen."""
    program = tmp_path / "state.py"
    program.write_text(STATE_OF_EACH_RANK)
    arguments = train_command(digits, tmp_path / "run", "train.batch_size=24", "train.stop_after_update=5")[2:]
    done = run(mpirun(2, program, *arguments), PYTHONPATH=SOURCES)
    states = re.findall("state of a rank: (.*)", done.stdout)
    assert len(states) == 2, done.stderr
    assert states[0] == states[1]
    assert "'ema." in states[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_evaluation_of_101_images_on_three_ranks_counts_each_once(digits, alone, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(digits / "train", data / "train")
    images = sorted((digits / "val").rglob("*.png"))[::3][:101]
    for image in images:
        copy = data / "val" / image.relative_to(digits / "val")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    reports = []
    for ranks in (1, 3):
        report = tmp_path / f"report_{ranks}.json"
        command = ["eval.py", "--config", DIGITS_CONFIG, *TOY_MODEL, f"data.path={data}", "eval.batch_size=16",
                   "--checkpoint", alone / "checkpoints" / "last.ckpt", "--json", report]  # fmt: skip
        done = run(mpirun(ranks, *command))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("(101 images") == 1
        reports.append(json.loads(report.read_text()))
    sums = [[report.pop(key) for key in ("loss", "loss_sum")] for report in reports]  # of numbers in another order
    assert reports[0] == reports[1]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.fixture
def started():
    """started(command) is a job whose updates have begun, with its errors in a list that fills, and what fills it.

    Of a test that fails, no job is left.
    """
    jobs = []

    def begin(command):
        job = start(command)
        jobs.append(job)
        for line in job.stdout:
            if " update 3/" in line:
                break
        lines = []
        threads = [threading.Thread(target=lambda: lines.extend(job.stderr)), threading.Thread(target=job.stdout.read)]
        for thread in threads:
            thread.start()
        return job, lines, threads

    yield begin
    for job in jobs:
        if job.poll() is None:
            end(job)


def ended(job, threads, seconds):
    """The exit code of a job that has to end in time."""
    try:
        code = job.wait(seconds)
    finally:
        if job.poll() is None:
            end(job)
        for thread in threads:
            thread.join()
    return code


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_rank_that_dies_ends_the_job_with_the_cause_named(killed, digits, shared_graphs, tmp_path, started):
    job, errors, threads = started(
        mpirun(2, *train_command(digits, tmp_path / "run", *ENDLESS, shared_graphs, "data.workers=2"))
    )
    rank_process(job, killed).kill()
    assert ended(job, threads, 60) != 0
    assert f"rank {killed}" in "".join(errors)
    assert "signal 9" in "".join(errors)
    assert not remaining(str(tmp_path))


def test_a_rank_that_fails_ends_the_job(ten_updates, digits, tmp_path):
    """Rank 1 cannot find its images: its line, and nothing that goes on waiting."""
    command = [*mpirun(1, *ten_updates(digits, tmp_path / "run", 2)), ":", "-n", "1",
               *mpirun(1, *ten_updates(tmp_path / "nowhere", tmp_path / "run", 2))[3:]]  # fmt: skip
    done = run(command, timeout=150)
    assert done.returncode == 1
    assert "train.py: error: rank 1: " in done.stderr
    assert "nowhere" in done.stderr
    assert not remaining(str(tmp_path))


def test_different_configurations_are_one_line(ten_updates, digits, tmp_path):
    command = [*mpirun(1, *ten_updates(digits, tmp_path / "run", 2)), ":", "-n", "1",
               *mpirun(1, *ten_updates(digits, tmp_path / "run", 3))[3:]]  # fmt: skip
    done = run(command, timeout=150)
    assert done.returncode == 1
    assert done.stderr.count("train.py: error:") == 1
    assert "the processes differ in train.batch_size (48 here)" in done.stderr
    assert not (tmp_path / "run").exists()


def test_different_weights_under_one_name_are_one_line(ten_updates, digits, alone, tmp_path):
    """As a file does that was copied to one machine and not, or not yet, to the other."""
    weights = select_weights(read_checkpoint(alone / "checkpoints" / "last.ckpt"), "raw")[0]
    for folder, changed in (("here", {}), ("there", {"head.bias": weights["head.bias"] + 1})):
        (tmp_path / folder).mkdir()
        write_checkpoint(tmp_path / folder / "weights.ckpt", weights | changed)
    command = [ROOT / "train.py", *ten_updates(digits, tmp_path / "run", 2)[1:], "train.pretrained=weights.ckpt"]
    done = run([*mpirun(1, *command)[:1], "-n", "1", "--wdir", str(tmp_path / "here"), *mpirun(1, *command)[3:], ":",
                "-n", "1", "--wdir", str(tmp_path / "there"), *mpirun(1, *command)[3:]], timeout=150)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("train.py: error:") == 1
    assert "the processes start from different weights" in done.stderr


@pytest.mark.parametrize("launcher", ["mpirun", pytest.param("msrun", marks=pytest.mark.exhaustive)])
def test_a_taken_port_is_one_line(launcher, ten_updates, digits, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = ten_updates(digits, tmp_path / "run", 2)
        if launcher == "mpirun":
            done = run(mpirun(2, *command), timeout=60, MS_SCHED_PORT=str(port))
            output = done.stderr
        else:
            done = run(msrun(2, port, tmp_path / "logs", *command), timeout=150)
            output = (tmp_path / "logs" / "worker_0.log").read_text()
    assert done.returncode == 1
    assert output.count("train.py: error:") == 1
    assert str(port) in output


def test_a_signal_stops_all_ranks_after_one_update_and_the_run_goes_on(
    digits, shared_graphs, tmp_path, trainer, capsys, started
):
    """Told to one rank alone, in the middle of an epoch; then resumed, and compared with a run without a stop.

    One process goes on, too, and says what changes.
    """
    whole = ["train.epochs=2", "train.log_interval=1", "train.batch_size=24", "data.workers=1", shared_graphs]
    straight = tmp_path / "straight"
    assert run(mpirun(2, *train_command(digits, straight, *whole))).returncode == 0
    job, errors, threads = started(mpirun(2, *train_command(digits, tmp_path / "run", *whole)))
    rank_process(job, 1).send_signal(signal.SIGTERM)
    assert ended(job, threads, 60) == 75
    assert "train.py: stopped by a signal to another process after epoch" in "".join(errors)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    done = run(mpirun(2, *train_command(digits, tmp_path / "run", *whole, "train.resume=auto")))
    assert done.returncode == 0, done.stderr
    assert_same_state(*(folder / "checkpoints" / "last.ckpt" for folder in (tmp_path / "run", straight)))
    assert metrics(tmp_path / "run") == metrics(straight)

    images = Progress.of_texts(read_checkpoint(tmp_path / "other" / "checkpoints" / "last.ckpt")).images
    capsys.readouterr()
    again = trainer("other", "train.resume=auto", "train.batch_size=40", "optimizer.lr_batch_size=512")
    again._announce()
    out = capsys.readouterr().out
    assert "changed since: devices 2 -> 1" in out
    assert "images of an update 48 -> 40, updates of an epoch 29 -> 35, learning rate times 0.833333" in out
    assert again.state.progress.images == images // 40 * 40


def test_the_rank_that_others_wait_for_is_named(digits, shared_graphs, tmp_path, started):
    job, errors, threads = started(
        mpirun(2, *train_command(digits, tmp_path / "run", *ENDLESS, shared_graphs, "train.stall_seconds=2"))
    )
    other = rank_process(job, 1)
    other.suspend()
    deadline = time.monotonic() + 60
    while not any("rank 1 gives no sign" in line for line in errors) and time.monotonic() < deadline:
        time.sleep(0.2)
    other.resume()
    while not any("training moves again" in line for line in errors) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sum("rank 1 gives no sign" in line for line in errors) == 1, errors
    assert any("training moves again" in line for line in errors)
    # mpirun forwards it to all that its processes started; without the scheduler, they could not go on for long.
    scheduler = next(
        child for child in rank_process(job, 0).children() if "focal_twins.distributed.scheduler" in child.cmdline()
    )
    other.suspend()
    job.send_signal(signal.SIGUSR1)
    time.sleep(1)
    assert scheduler.status() != psutil.STATUS_ZOMBIE
    other.resume()
    assert ended(job, threads, 60) == 75
