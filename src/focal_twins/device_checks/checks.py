"""Checks a device: what is installed, steps of small networks, overflow, collectives, export, speed.

A check is a function of a `Device` that returns an `Outcome`. It may raise: whoever runs it makes a failure of that.
"""

import hashlib
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.device_checks.figures import (
    BOUNDS,
    LEVELS,
    Figures,
    create_step,
    differences,
    step_figures,
    take_step,
)
from focal_twins.device_checks.networks import NETWORKS, create_network, fill, images, training_loss
from focal_twins.device_checks.outcome import FAILED, LEFT_OUT, PASSED, Outcome
from focal_twins.distributed.ranks import Dist
from focal_twins.inference.export import verify, write_graph
from focal_twins.measuring.roofline import ASCEND_BANDWIDTH, ASCEND_TFLOPS, inference_costs
from focal_twins.models import create_model
from focal_twins.models.device_options import DEVICE_DEFAULTS, set_device_options
from focal_twins.models.precision import apply_precision
from focal_twins.tasks.losses import Losses
from focal_twins.tasks.task import Signature, TensorSpec

NEEDS_ASCEND = Outcome(LEFT_OUT, "needs an Ascend")
SMALL = "focalv2"  # the network of the checks that need but one
OVERFLOWING_SCALE, SCALE = 2.0**40, 1024.0  # float16 ends at 2^16
REDUCED_SIZES = (1, 1000, 2**22)  # float32 in a reduction; the last are 16 MiB
TIMED_MODEL, TIMED_BATCH, TIMED_CALLS = "focalv2_tiny_useconv_patch4_window7_224", 64, 20


@dataclass(frozen=True)
class Device:
    """Describes what is checked.

    Attributes:
        dist: this process among the ranks, and the kind of device.
        cpu_figures: see figures.read_figures.
    """

    dist: Dist
    cpu_figures: dict[str, Figures] = field(repr=False)

    @property
    def target(self) -> str:
        """The kind of device, "CPU" or "Ascend"."""
        return self.dist.device_target


def check_versions(device: Device) -> Outcome:
    """Say what is installed, and multiply two matrices."""
    versions = {"mindspore": ms.__version__, "python": platform.python_version(), "numpy": np.__version__}
    if device.target == "Ascend":
        versions |= {"cann": cann_version(), "npu-smi": output_of("npu-smi", "info")}
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    product = ops.MatMul(transpose_b=True)(Tensor(values), Tensor(values)).asnumpy()
    right = np.array_equal(product, values @ values.T)  # small whole numbers: exact in float16 too
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "npu-smi")
    return Outcome(
        PASSED if right else FAILED, named if right else f"a product of matrices is wrong; {named}", versions
    )


def cann_version() -> str:
    """Return the version that CANN's installation states, or where none was found."""
    home = os.environ.get("ASCEND_HOME_PATH") or "/usr/local/Ascend/ascend-toolkit/latest"
    for path in sorted(Path(home).rglob("ascend_toolkit_install.info")) or sorted(Path(home).glob("version.cfg")):
        return " ".join(path.read_text(encoding="utf-8", errors="replace").split())
    return f"no version in {home} (ASCEND_HOME_PATH)"


def output_of(*command: str) -> str:
    """Return what a command prints, or why it does not."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"


def check_step(name: str, level: str, device: Device) -> Outcome:
    """Compare outputs, losses and gradient norms of two updates of a small network with the CPU's."""
    expected = device.cpu_figures.get(f"{name}/{level}")
    if expected is None:
        return Outcome(FAILED, "the file of the CPU's figures has none of this check; --write-figures makes them anew")
    found = step_figures(name, level, device.target)
    bounds = BOUNDS[level]
    apart = differences(found, expected)
    kind = max(apart, key=lambda key: apart[key] / bounds[key])
    too_far = [key for key in apart if not apart[key] <= bounds[key]]  # NaN is too far as well
    named = [f"{key} differs by {apart[key]:.1e} (bound {bounds[key]:.0e})" for key in too_far or [kind]]
    return Outcome(FAILED if too_far else PASSED, ", ".join(named), {"found": found, "differences": apart})


def check_overflow(device: Device) -> Outcome:
    """Take an update with a loss scale that overflows in float16, and one with a scale that does not."""
    model = fill(create_network(SMALL, device.target))
    losses, inputs = training_loss(SMALL, model, apply_precision(model, "O1"))
    step = create_step(model, losses, device.target, OVERFLOWING_SCALE)
    before = digest(model)
    skipped = not take_step(step, inputs)[2]
    unchanged, scale = digest(model) == before, float(step.loss_scale.value.asnumpy())
    step.loss_scale.value.set_data(Tensor(SCALE, ms.float32))
    finite = bool(take_step(step, inputs)[2])
    faults = {
        f"an update that overflows was not skipped (scale {OVERFLOWING_SCALE:.0f})": skipped,
        "a skipped update changed the weights": unchanged,
        f"the scale is {scale:.0f} after an overflow and not half": scale == OVERFLOWING_SCALE / 2,
        f"an update with scale {SCALE:.0f} was skipped": finite,
        f"an update with scale {SCALE:.0f} changed no weight": digest(model) != before,
    }
    faulty = [fault for fault, is_right in faults.items() if not is_right]
    way = "the overflow register" if device.target == "Ascend" else "infinity (a CPU has no overflow register)"
    right = f"seen by {way}: the update is skipped, the scale halved"
    return Outcome(FAILED if faulty else PASSED, "; ".join(faulty) or right)


def digest(model: nn.Cell) -> int:
    """Return 48 bits of a hash of all weights."""
    content = hashlib.sha256()
    for parameter in model.trainable_params():
        content.update(parameter.asnumpy().tobytes())
    return int.from_bytes(content.digest()[:6], "big")


class MeanSquare(Losses):
    """Computes the mean square of what a linear layer makes of a batch [B, 8]."""

    names = ("loss",)

    def __init__(self):
        super().__init__()
        self.layer = nn.Dense(8, 4, weight_init="ones")

    def construct(self, batch):
        return ops.square(self.layer(batch)).mean().reshape(1), None


def check_collectives(device: Device) -> Outcome:
    """Sum and gather over the ranks, and take an update after which all ranks have the same weights."""
    dist = device.dist
    if dist.size == 1:
        return Outcome(LEFT_OUT, "one rank: start this check by mpirun -n 2 or msrun")
    faults, figures = [], {}
    expected = dist.size * (dist.size + 1) / 2
    for size in REDUCED_SIZES:
        values = np.full(size, dist.rank + 1, np.float32)
        start = time.perf_counter()
        total = dist.sum(values)
        figures[f"first reduction of {size} values, s"] = time.perf_counter() - start
        if not np.array_equal(total, np.full(size, expected, np.float32)):
            faults.append(f"a sum of {size} values is wrong")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        dist.sum(values)
        seconds.append(time.perf_counter() - start)
    rate = values.nbytes / statistics.median(seconds) / 1e9
    figures["reduction, GB/s, copies from and to the host included"] = rate
    gathered = dist.gather(np.arange(dist.rank + 1))
    if gathered is not None and [len(array) for array in gathered] != list(range(1, dist.size + 1)):
        faults.append("gathered arrays are not those of the ranks")

    losses = MeanSquare()
    layer = losses.layer
    reducer = dist.gradient_reducer(layer.trainable_params())
    step = create_step(layer, losses, device.target, SCALE, reducer, dist.size)
    before = digest(layer)
    outcome = take_step(step, (Tensor(np.full((2, 8), dist.rank + 1, np.float32)),))
    if not outcome[2] or digest(layer) == before:
        faults.append("an update over the ranks was skipped")
    if not dist.agree(np.array([digest(layer)])).all():
        faults.append("the ranks have different weights after an update")
    right = f"{dist.size} ranks: sums, gathering and an update agree; {values.nbytes >> 20} MiB at {rate:.2f} GB/s"
    return Outcome(FAILED if faults else PASSED, "; ".join(faults) or right, figures)


def check_export(file_format: str, device: Device) -> Outcome:
    """Write a file of a small network; where it can be opened here, compare its outputs with the network's."""
    if file_format == "AIR" and device.target != "Ascend":
        return NEEDS_ASCEND
    model = fill(create_network(SMALL, device.target)).set_train(False)
    samples = images()[:1]
    signature = Signature((TensorSpec("images", samples.shape),), (TensorSpec("logits", (1, model.num_classes)),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network.{file_format.lower()}"
        write_graph(model, path, signature, file_format)
        written = f"{path.stat().st_size / 1e3:.0f} kB"
        if file_format == "AIR":
            return Outcome(PASSED, f"{written} written; CANN's own tools (atc, msame) run it")
        return Outcome(PASSED, f"{written} written and opened: {verify(path, model, samples, (1,))}")


def check_speed(device: Device) -> Outcome:
    """Time inference of a published model in float16 against what the peaks of a 910 allow. No speed fails."""
    if device.target != "Ascend":
        return NEEDS_ASCEND
    model = set_device_options(create_model(TIMED_MODEL), **DEVICE_DEFAULTS["Ascend"])
    return speed_of(apply_precision(model, "O1"), (TIMED_BATCH, 3, *model.img_size), TIMED_CALLS)


def speed_of(network: nn.Cell, shape: tuple[int, ...], calls: int) -> Outcome:
    """Time a network's calls, after one that compiles, against the roofline of a 910."""
    cost = inference_costs(network, shape, ASCEND_TFLOPS * 1e12, ASCEND_BANDWIDTH * 1e12)["total"]
    batch = Tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    seconds = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        network(batch).asnumpy()
        seconds.append(time.perf_counter() - start)
    rates = {
        "measured": shape[0] / statistics.median(seconds[1:]),
        "roofline, each operator alone": shape[0] / cost.alone,
        "roofline, elementwise work fused": shape[0] / cost.fused,
    }
    named = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return Outcome(PASSED, f"images a second: {named}", rates | {"first call, s": seconds[0]})


CHECKS: dict[str, Callable[[Device], Outcome]] = {
    "versions": check_versions,
    **{f"step/{name}/{level}": partial(check_step, name, level) for name in NETWORKS for level in LEVELS},
    "overflow": check_overflow,
    "collectives": check_collectives,
    "export/MINDIR": partial(check_export, "MINDIR"),
    "export/AIR": partial(check_export, "AIR"),
    "speed": check_speed,
}
OF_RANKS = ("collectives",)  # the checks that several processes make together
