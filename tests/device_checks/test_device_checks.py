"""What a person with an Ascend runs, on the CPU, operator by operator: what passes here, and what is seen to fail."""

import json
import re
import sys

import numpy as np
import pytest

from focal_twins.device_checks import checks, figures
from focal_twins.device_checks.checks import CHECKS, Device, check_overflow, speed_of
from focal_twins.device_checks.figures import BOUNDS, CPU_FIGURES, LEVELS, differences, read_figures
from focal_twins.device_checks.networks import NETWORKS, create_network, fill
from focal_twins.device_checks.outcome import read_outcomes
from focal_twins.device_checks.running import run_apart, run_here
from focal_twins.distributed.ranks import Dist
from focal_twins.models.device_options import DEVICE_DEFAULTS, set_device_options
from focal_twins.models.precision import apply_precision
from tests.conftest import ROOT, others_exhaustive
from tests.processes import run

HERE = Device(Dist(), read_figures(CPU_FIGURES))
EACH_TIME = ("focalv2", "twins_svt", "upernet", "mask_rcnn")
ON_CPU = ("runtime.device_target=CPU", "runtime.mode=pynative")


def test_every_network_has_figures_at_every_level():
    assert set(HERE.cpu_figures) == {f"{name}/{level}" for name in NETWORKS for level in LEVELS}
    for found in HERE.cpu_figures.values():
        assert all(np.isfinite(values).all() and np.any(values) for values in found.values())
        assert found["loss"][1] != found["loss"][0]  # the update has changed the weights


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", others_exhaustive(NETWORKS, EACH_TIME))
def test_steps_are_those_of_the_stored_figures(name, level):
    outcome = CHECKS[f"step/{name}/{level}"](HERE)
    assert outcome.result == "passed", outcome.found


def test_steps_are_the_same_with_the_operators_of_an_ascend(monkeypatch):
    """So a device that computes as well as a CPU passes, whose convolutions, norms and GELU are other operators."""

    def of_ascend(name, device_target):
        return set_device_options(create_network(name, device_target), **DEVICE_DEFAULTS["Ascend"])

    monkeypatch.setattr(figures, "create_network", of_ascend)
    assert CHECKS["step/focalv2/O0"](HERE).result == "passed"


def test_mixed_precision_is_told_from_float32():
    """The bounds of O0 see products in float16 in every network; those of O1 leave room for them."""
    for name in NETWORKS:
        apart = differences(HERE.cpu_figures[f"{name}/O1"], HERE.cpu_figures[f"{name}/O0"])
        assert any(apart[kind] > bound for kind, bound in BOUNDS["O0"].items()), (name, apart)
        assert all(apart[kind] < bound / 2 for kind, bound in BOUNDS["O1"].items()), (name, apart)


def test_a_figure_that_differs_fails_alone(run_script, tmp_path):
    """One wrong digit in the file fails its check; the others pass or are left out, and the exit code says it."""
    content = json.loads(CPU_FIGURES.read_text())
    content["figures"]["twins_pcpvt/O0"]["gradient_norm"][1] *= 1.01
    broken, output = tmp_path / "figures.json", tmp_path / "found.json"
    broken.write_text(json.dumps(content))
    names = ("versions", "step/twins_pcpvt", "export/AIR", "collectives")
    arguments = ("--only", *names, "--in-process", "--figures", broken, "--output", output)
    code, out, err = run_script("scripts/check_ascend.py", *ON_CPU, *arguments)
    assert (code, err) == (1, "")
    results = {name: outcome.result for name, outcome in read_outcomes(output).items()}
    assert results == {
        "versions": "passed", "step/twins_pcpvt/O0": "FAILED", "step/twins_pcpvt/O1": "passed",
        "collectives": "left out", "export/AIR": "left out",
    }  # fmt: skip
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(results)
    assert re.search(r"FAILED .* gradient_norm differs by \d\.\de-03 \(bound 1e-04\)$", out, re.MULTILINE)
    assert lines[-1] == f"2 passed, 1 FAILED, 2 left out; send back this table and {output}"


def test_checks_run_in_processes_of_their_own(tmp_path):
    command = [sys.executable, "scripts/check_ascend.py", *ON_CPU, "--only", "versions", "--output"]
    done = run([*command, str(tmp_path / "found.json")])
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 passed, 0 FAILED, 0 left out" in done.stdout
    assert read_outcomes(tmp_path / "found.json")["versions"].figures["mindspore"]


@pytest.mark.parametrize(
    ("program", "seconds", "found"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, "ended by SIGSEGV: no message"),
        ("raise SystemExit('the device is gone')", 60, "exit code 1: the device is gone"),
        ("import time; time.sleep(600)", 0.5, "not done after 0 s"),
    ],
)
def test_a_process_that_crashes_or_hangs_is_a_failure(program, seconds, found):
    outcome = run_apart("speed", [sys.executable, "-c", program], seconds)
    assert outcome.result == "FAILED" and found in outcome.found


def test_an_exception_is_a_failure():
    def check():
        raise RuntimeError("----\nUnsupported op [X]\nlong story")

    outcome = run_here(check)
    assert (outcome.result, outcome.found) == ("FAILED", "RuntimeError: Unsupported op [X]")


def test_overflow_is_seen(monkeypatch):
    outcome = check_overflow(HERE)
    assert outcome.result == "passed" and "infinity" in outcome.found
    monkeypatch.setattr(checks, "OVERFLOWING_SCALE", 2.0)  # with which nothing overflows
    outcome = check_overflow(HERE)
    assert outcome.result == "FAILED" and "was not skipped" in outcome.found


def test_an_export_is_written_and_opened():
    outcome = CHECKS["export/MINDIR"](HERE)
    assert outcome.result == "passed" and "written and opened" in outcome.found


def test_speed_is_told_beside_the_roofline():
    network = apply_precision(fill(create_network("twins_svt", "Ascend")), "O1")
    rates = speed_of(network, (2, 3, 32, 32), calls=1).figures
    measured, alone, fused = (rates[key] for key in list(rates)[:3])
    assert 0 < measured < alone < fused  # a CPU is slower than a 910 could be


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "stpe"], "--only stpe: no such check; there are versions, step/focal/O0"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--figures", "nowhere.json"], "nowhere.json: no such file"),
        (["--figures", ROOT / "README.md"], "holds no figures of a CPU"),
        (["runtime.device=CPU"], "runtime.device"),
    ],
)
def test_bad_input_is_one_line(run_script, arguments, expected):
    code, out, err = run_script("scripts/check_ascend.py", "--in-process", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert expected in err


def test_the_names_of_the_checks_are_listed(run_script):
    assert run_script("scripts/check_ascend.py", "--list")[1].split() == list(CHECKS)
