"""This process among the others: rank, device, collectives. The only reader of launcher variables."""

import os
import shlex
from dataclasses import dataclass
from functools import cached_property

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.errors import UserError

# Names of (ranks, rank, local rank, local ranks) by launcher: Open MPI; msrun; a rank table (Ascend).
LAUNCHERS = {
    "mpirun": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "msrun": ("MS_WORKER_NUM", "RANK_ID", "DEVICE_ID", None),
    "rank table": ("RANK_SIZE", "RANK_ID", "DEVICE_ID", None),
}
DEVICES_PER_MACHINE = 8  # of an Atlas 800; assumed where a launcher does not tell


@dataclass(frozen=True)
class Launch:
    """What the launcher says of this process; the defaults are those of one started by hand."""

    launcher: str | None = None
    size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True)
class Dist:
    """The place of this process: its rank among `size`, how many share its machine, and the kind of device it uses."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device_target: str = "CPU"

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0

    @cached_property
    def _all_reduce(self) -> "_AllReduceSum":
        return _AllReduceSum()

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum over all ranks (as float32, the type every backend reduces)."""
        if self.size == 1:
            return np.asarray(values)
        return self._all_reduce(Tensor(np.asarray(values, np.float32))).asnumpy()

    def sum_counts(self, counts: np.ndarray) -> np.ndarray:
        """Elementwise sum over all ranks of counts (int64), exact up to 2^40 on at most 256 ranks.

        float32 holds 24 bits: the lower 16 and the rest are summed apart.
        """
        low, high = np.asarray(self.sum(np.stack([counts % 2**16, counts // 2**16]))).astype(np.int64)
        return low + high * 2**16

    def agree(self, value: int) -> bool:
        """Whether all ranks call this with the same integer, from 0 to 2^48.

        Numbers are equal where their mean square is the square of their mean; digit by digit, for float32 to be exact.
        """
        digits = np.array([value >> shift & 15 for shift in range(0, 48, 4)], np.int64)
        total, squares = np.asarray(self.sum(np.stack([digits, digits**2])), np.float64)
        return bool((self.size * squares == total**2).all())

    def gradient_reducer(self, parameters):
        """A cell that averages gradients over the ranks, or None on one."""
        return nn.DistributedGradReducer(parameters, mean=True, degree=self.size) if self.size > 1 else None


class _AllReduceSum(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def launched() -> Launch:
    """What the environment says of this process.

    Raises:
        UserError: a launcher that left out the rank.
    """
    for launcher, (size, rank, local_rank, local_size) in LAUNCHERS.items():
        ranks = int(os.environ.get(size, 1))
        if ranks == 1:
            continue
        if is_scheduler():
            return Launch(launcher, ranks)
        if rank not in os.environ:
            raise UserError(f"{size} is set but {rank} is not: the {launcher} launch is incomplete")
        return Launch(
            launcher,
            ranks,
            int(os.environ[rank]),
            int(os.environ.get(local_rank, 0)),
            int(os.environ.get(local_size or "", min(ranks, DEVICES_PER_MACHINE))),
        )
    return Launch()


def is_scheduler() -> bool:
    """Whether this is msrun's scheduler process, which runs the script too but only to keep the workers together."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def resolve_device(device_target: str) -> str:
    """The device to use: "auto" is Ascend where one answers, else CPU.

    Raises:
        UserError: Ascend was asked for and is not here.
    """
    if device_target == "CPU":
        return "CPU"
    try:
        available = ms.hal.is_available("Ascend")
    except (ValueError, RuntimeError):
        available = False
    if device_target == "Ascend" and not available:
        raise UserError(
            "runtime.device_target: Ascend was asked for, but MindSpore finds no Ascend device here; use CPU"
        )
    return "Ascend" if available else "CPU"


def check_device_num(device_num: int | None, script: str, arguments: list[str]) -> None:
    """Hold `--device_num` against the ranks launched.

    Raises:
        UserError: they differ; when nothing was launched, the message is the command that would.
    """
    size = launched().size
    if device_num is None or device_num == size:
        return
    if size == 1:
        command = shlex.join(["mpirun", "-n", str(device_num), "python", script, *arguments])
        raise UserError(f"--device_num {device_num} needs {device_num} processes; start them with: {command}")
    raise UserError(f"--device_num {device_num} differs from the {size} processes that were launched")


def start(runtime) -> Dist:
    """Set up device, mode and collectives for this process from the runtime section of a configuration.

    Raises:
        UserError: the device is not here, or the launch cannot work.
    """
    launch = launched()
    if is_scheduler():
        ms.set_device("CPU")
        ms.communication.init("mccl")  # returns when the workers are done
        raise SystemExit(0)
    device_target = resolve_device(runtime.device_target)
    ms.set_context(mode=ms.GRAPH_MODE if runtime.mode == "graph" else ms.PYNATIVE_MODE)
    device_id = runtime.device_id if runtime.device_id is not None else launch.local_rank
    if device_target == "Ascend":
        ms.set_device("Ascend", device_id)
        ms.device_context.ascend.op_precision.precision_mode(runtime.precision_mode)
    else:
        ms.set_device("CPU")
    if runtime.jit_level == "O2" and device_target != "Ascend":
        raise UserError("runtime.jit_level: O2 is the graph engine of Ascend; CPU has O0 and O1")
    if runtime.jit_level != "auto":
        ms.set_context(jit_config={"jit_level": runtime.jit_level})
    if launch.size > 1:
        if device_target == "CPU" and launch.launcher != "msrun":
            raise UserError(
                f"{launch.size} CPU processes need MindSpore's own launcher: "
                f"msrun --worker_num={launch.size} --local_worker_num={launch.size} --join=True train.py ..."
            )
        ms.communication.init("hccl" if device_target == "Ascend" else "mccl")
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    # One seed everywhere: every rank starts from the same weights. What must differ between ranks is keyed by rank.
    ms.set_seed(runtime.seed)
    return Dist(launch.rank, launch.size, launch.local_size, device_target)
