"""This process among the others: rank, device, collectives. The only reader of launcher variables."""

import os
import shlex
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.errors import UserError

# (ranks, rank, local rank) by launcher: Open MPI; msrun; a rank table (Ascend).
LAUNCHERS = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("msrun", "MS_WORKER_NUM", "RANK_ID", "DEVICE_ID"),
    ("rank table", "RANK_SIZE", "RANK_ID", "DEVICE_ID"),
)


@dataclass(frozen=True)
class Dist:
    """The place of this process: its rank among `size`, its rank on this machine, and the device it uses."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device_target: str = "CPU"
    launcher: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum over all ranks (as float32, the type every backend reduces)."""
        if self.size == 1:
            return values
        return _AllReduceSum()(Tensor(np.asarray(values, np.float32))).asnumpy()

    def gradient_reducer(self, parameters):
        """A cell that averages gradients over the ranks, or None on one."""
        return nn.DistributedGradReducer(parameters, mean=True, degree=self.size) if self.size > 1 else None


class _AllReduceSum(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def launched() -> tuple[str | None, int, int, int]:
    """(launcher, size, rank, local rank) from the environment; (None, 1, 0, 0) when started by hand."""
    for launcher, size, rank, local_rank in LAUNCHERS:
        if int(os.environ.get(size, 1)) > 1:
            if is_scheduler():
                return launcher, int(os.environ[size]), 0, 0
            if rank not in os.environ:
                raise UserError(f"{size} is set but {rank} is not: the {launcher} launch is incomplete")
            return launcher, int(os.environ[size]), int(os.environ[rank]), int(os.environ.get(local_rank, 0))
    return None, 1, 0, 0


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
    _, size, _, _ = launched()
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
    launcher, size, rank, local_rank = launched()
    if is_scheduler():
        ms.set_device("CPU")
        ms.communication.init("mccl")  # returns when the workers are done
        raise SystemExit(0)
    device_target = resolve_device(runtime.device_target)
    ms.set_context(mode=ms.GRAPH_MODE if runtime.mode == "graph" else ms.PYNATIVE_MODE)
    device_id = runtime.device_id if runtime.device_id is not None else local_rank
    if device_target == "Ascend":
        ms.set_device("Ascend", device_id)
        ms.device_context.ascend.op_precision.precision_mode(runtime.precision_mode)
    else:
        ms.set_device("CPU")
    if runtime.jit_level == "O2" and device_target != "Ascend":
        raise UserError("runtime.jit_level: O2 is the graph engine of Ascend; CPU has O0 and O1")
    if runtime.jit_level != "auto":
        ms.set_context(jit_config={"jit_level": runtime.jit_level})
    if size > 1:
        if device_target == "CPU" and launcher != "msrun":
            raise UserError(
                f"{size} CPU processes need MindSpore's own launcher: "
                f"msrun --worker_num={size} --local_worker_num={size} --join=True train.py ..."
            )
        ms.communication.init("hccl" if device_target == "Ascend" else "mccl")
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    # One seed everywhere: every rank starts from the same weights. What must differ between ranks is keyed by rank.
    ms.set_seed(runtime.seed)
    return Dist(rank, size, local_rank, device_target, launcher)
