"""The estimate of communication: its arithmetic by hand, and its bound against a published measurement."""

import pytest

from scripts.communication_cost import (
    Cluster,
    all_reduce_seconds,
    compute_seconds,
    ring_bytes,
    scaling_efficiency,
)

CLUSTER = Cluster(link=30e9, network=12.5e9, efficiency=0.5)


@pytest.mark.parametrize(("members", "expected"), [(1, 0), (2, 100), (4, 150), (8, 175), (512, 199.609375)])
def test_a_ring_moves_almost_twice_the_sum(members, expected):
    assert ring_bytes(100, members) == expected


def test_time_within_and_between_servers():
    size = 120e6
    assert all_reduce_seconds(size, 1, CLUSTER) == 0
    assert all_reduce_seconds(size, 8, CLUSTER) == pytest.approx(2 * 7 / 8 * 120e6 / 15e9)
    # Each of eight devices carries an eighth of the sum, 15 MB, around the ring of eight servers.
    between = 2 * 7 / 8 * 15e6 / 6.25e9
    assert all_reduce_seconds(size, 64, CLUSTER) == pytest.approx(2 * 7 / 8 * 120e6 / 15e9 + between)


def test_time_of_the_arithmetic():
    """A training step is three forward passes of two operations per multiply-accumulate."""
    assert compute_seconds(1e9, 100, 0.25) == pytest.approx(6e11 / 64e12)


@pytest.mark.parametrize(("devices", "published"), [(8, 16600 / (8 * 2115)), (16, 32768 / (16 * 2115))])
def test_nothing_hidden_is_a_lower_bound(devices, published):
    """MindSpore's ResNet-50 on the Ascend 910 (https://mindspore.cn/docs/en/r1.7/note/benchmark.html): 2115, 16600 and
    32768 images a second on 1, 8 and 16, at 256 images per device. 25.6 M parameters, 4.1 G multiply-accumulates."""
    compute = 256 / 2115
    assert compute == pytest.approx(compute_seconds(4.1e9, 256, 0.2), rel=0.03)  # so 20% of the peak is what they reach
    communication = all_reduce_seconds(25.6e6 * 4, devices, Cluster(30e9, 12.5e9, 0.7))
    assert published - 0.06 < scaling_efficiency(compute, communication) < published


def test_script_prints_every_published_model(run_script):
    code, out, err = run_script("scripts.communication_cost")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert len(lines) >= 15 + 3
    cells = lines["twins_svt_large"].replace("|", " ").replace("%", "").split()
    assert [float(cell) for cell in cells[1:5]] == [396.8, 694.4, 222, 33.1]  # MB, MB, ms, ms on 8 devices
    assert float(cells[5]) == pytest.approx(100 * 222 / (222 + 33.1), abs=0.1)
    assert out.splitlines()[-1] == "images of an update: 1,024 on 8, 8,192 on 64, 65,536 on 512 devices"


REFUSALS = {
    "unknown model": (["focal_large_patch4_window7_224"], "focal_large_patch4_window7_224: no published figures"),
    "part of a server": (["--devices", "12"], "--devices: at most 8, or whole servers of 8, got 12"),
    "no batch": (["--batch-size", "0"], "--batch-size: must be above 0, got 0"),
    "more than the peak": (["--utilisation", "1.5"], "--utilisation: is a share, at most 1, got 1.5"),
}


@pytest.mark.parametrize(("arguments", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_script_refuses_in_one_line(run_script, arguments, expected):
    code, out, err = run_script("scripts.communication_cost", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert expected in err
