"""Sets up this process among the others: rank, device, collectives."""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.config.load import Config, flatten
from focal_twins.distributed.launch import (
    COLLECTIVE_TIMEOUT,
    Launch,
    check_scheduler,
    is_scheduler,
    join_cluster,
    launched,
)
from focal_twins.distributed.scheduler import claim_port, serve
from focal_twins.errors import UserError
from focal_twins.models.matmul_precision import has_bfloat16_units, set_matmul_precision

# Settings that may differ between machines, and so between processes.
OF_THE_MACHINE = ("data.path", "data.workers", "data.prefetch", "data.numa", "runtime.device_id")
OWN_CACHE = (
    "warning: MS_COMPILER_CACHE_ENABLE=1: MindSpore runs the graphs of an earlier process, whatever sources, "
    "configuration and shapes are now; unset it, and use runtime.compile_cache=FOLDER"
)
NO_BFLOAT16 = (
    "runtime.matmul_precision: this processor does not multiply bfloat16 numbers; products are computed in float32"
)
GATHERED_VALUES = 2**22  # float32 that one collective of `gather` brings to each rank: 16 MiB
COLLECTIVE_SECONDS = 600  # ranks may be further apart than MindSpore's 30 on CPU, e.g. in reading or compiling


@dataclass(frozen=True)
class Dist:
    """Describes this process: its rank among `size`, how many share its machine, and the kind of device it uses."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device_target: str = "CPU"

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes logs and files."""
        return self.rank == 0

    @cached_property
    def _all_reduce(self) -> "_AllReduceSum":
        return _AllReduceSum()

    @cached_property
    def _all_gather(self) -> "_AllGather":
        return _AllGather()

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum elementwise over all ranks (as float32, the type every backend reduces)."""
        if self.size == 1:
            return np.asarray(values)
        with collective_failures_named():
            return self._all_reduce(Tensor(np.asarray(values, np.float32))).asnumpy()

    def sum_counts(self, counts: np.ndarray) -> np.ndarray:
        """Sum counts (int64) elementwise over all ranks, exactly up to 2^40 on at most 256 ranks.

        float32 holds 24 bits: the lower 16 and the rest are summed apart.
        """
        low, high = np.asarray(self.sum(np.stack([counts % 2**16, counts // 2**16]))).astype(np.int64)
        return low + high * 2**16

    def from_main(self, values: np.ndarray) -> np.ndarray:
        """Bring the main rank's numbers ([n] float64) to all, bit for bit. All ranks call this with as many numbers."""
        if self.size == 1:
            return np.asarray(values, np.float64)
        parts = np.ascontiguousarray(values, np.float64).view(np.uint16) * self.is_main  # float32 holds 16 bits exactly
        return np.asarray(self.sum(parts)).astype(np.uint16).view(np.float64)

    def agree(self, values: np.ndarray) -> np.ndarray:
        """Tell for each integer from 0 to 2^48 ([n] int64) whether all ranks call this with the same one ([n] bool).

        Numbers are equal where their mean square is the square of their mean; digit by digit, so float32 is exact.
        """
        digits = np.asarray(values, np.int64)[:, None] >> np.arange(0, 48, 4) & 15  # [n, 12]
        total, squares = np.asarray(self.sum(np.stack([digits, digits**2])), np.float64)
        return (self.size * squares == total**2).all(axis=1)

    def check_same_settings(self, settings: dict[str, object]) -> None:
        """Check that all ranks have the same settings, except those that may differ between machines.

        Raises:
            UserError: on every rank, naming the settings that differ.
        """
        if self.size == 1:
            return
        settings = {key: value for key, value in settings.items() if key not in OF_THE_MACHINE}
        names = sorted(settings)
        # Ranks that know different names cannot compare value by value.
        differing = ["the kinds of settings"]
        if self.agree(np.array([_digest(names)])).all():
            same = self.agree(np.array([_digest(settings[name]) for name in names]))
            differing = [
                f"{name} ({settings[name]} here)" for name, equal in zip(names, same, strict=True) if not equal
            ]
        if differing:
            raise UserError(
                f"the processes differ in {', '.join(differing)}; start all of them with the same files and arguments"
            )

    def gather(self, array: np.ndarray) -> list[np.ndarray] | None:
        """Bring each rank's array, of any shape and type (except objects), to the main rank, bit for bit.

        Bytes travel in pairs, as whole numbers in float32: every backend's collectives carry those as they are. They go
        in pieces of a fixed size, so that a rank holds little beside its own bytes; the main one holds all of them.

        Returns:
            On the main rank, the arrays in the order of ranks; None on the others.
        """
        if self.size == 1:
            return [np.asarray(array)]
        file = io.BytesIO()
        np.save(file, np.asarray(array), allow_pickle=False)  # with type and shape
        own = np.frombuffer(file.getbuffer(), np.uint8)
        lengths = self._gather_values(np.array([len(own)], np.int64).view(np.uint16))  # [ranks, 4]
        lengths = [int(length) for length in np.ascontiguousarray(lengths).view(np.int64)[:, 0]]
        # Values of each rank in a piece; powers of two, for every size is another graph.
        piece = min(max(GATHERED_VALUES // self.size, 1), 1 << (max(lengths) // 2).bit_length())
        received = [bytearray() for _ in lengths]
        for start in range(0, max(lengths), 2 * piece):
            values = np.zeros(2 * piece, np.uint8)
            part = own[start : start + 2 * piece]
            values[: len(part)] = part
            gathered = self._gather_values(values.view(np.uint16))
            if self.is_main:
                for content, length, row in zip(received, lengths, gathered, strict=True):
                    content += row.tobytes()[: max(length - start, 0)]
        if not self.is_main:
            return None
        return [np.load(io.BytesIO(content), allow_pickle=False) for content in received]

    def _gather_values(self, values: np.ndarray) -> np.ndarray:
        """Gather [n] uint16 of each rank as [ranks, n] on all ranks."""
        with collective_failures_named():
            gathered = self._all_gather(Tensor(values.astype(np.float32))).asnumpy()
        return gathered.reshape(self.size, -1).astype(np.uint16)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(np.zeros(1))

    def on_main(self, action: Callable[[], object], failure: str) -> None:
        """Do something on the main rank; all ranks call this together, and fail together.

        Args:
            failure: what the other ranks say if it fails.

        Raises:
            UserError: on every rank, if the action raises one on the main rank.
        """
        error: UserError | None = None
        try:
            if self.is_main:
                action()
        except UserError as raised:
            error = raised
        if self.sum(np.array([error is not None], np.float32))[0]:
            raise error or UserError(failure)

    def gradient_reducer(self, parameters):
        """Return a cell that averages gradients over the ranks, or None on one rank."""
        return nn.DistributedGradReducer(parameters, mean=True, degree=self.size) if self.size > 1 else None


class _AllReduceSum(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


class _AllGather(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_gather = ops.AllGather()

    def construct(self, x):
        return self.all_gather(x)


def _digest(value: object) -> int:
    """Return 48 bits of a hash of a value's repr."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:6], "big")


@contextmanager
def collective_failures_named() -> Iterator[None]:
    """Turn failures of collectives, which MindSpore reports as failing operators, into errors that name the cause.

    Raises:
        UserError: another process has ended, or is too late.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(name in str(error) for name in ("AllReduce", "AllGather")):
            raise
        raise UserError(
            "the other processes do not answer: one has ended (see its output) or was longer than "
            f"{os.environ.get(COLLECTIVE_TIMEOUT, 'allowed')} s behind (set by {COLLECTIVE_TIMEOUT} on CPU)"
        ) from error


def resolve_device(device_target: str) -> str:
    """Return the device to use: "auto" is Ascend where one answers, else CPU.

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


def start(config: Config) -> Dist:
    """Set up device, mode and collectives for this process, as the runtime section of the configuration says.

    Raises:
        UserError: the device is not here, the launch cannot work, or the ranks have different configurations.
    """
    runtime = config.runtime
    if is_scheduler():
        if launched().size > 1:
            claim_port()
            serve()  # returns when the workers are done
        raise SystemExit(0)
    launch = launched()
    if launch.rank == 0 and os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1":
        print(OWN_CACHE, file=sys.stderr, flush=True)
    if runtime.compile_cache:  # it turns MindSpore's on where it uses it
        ms.set_context(enable_compile_cache=False)
    device_target = resolve_device(runtime.device_target)
    ms.set_context(mode=ms.GRAPH_MODE if runtime.mode == "graph" else ms.PYNATIVE_MODE)
    if device_target == "Ascend":
        device_id = runtime.device_id if runtime.device_id is not None else launch.local_rank
        _check_devices(launch, device_id)
        ms.set_device("Ascend", device_id)
        ms.device_context.ascend.op_precision.precision_mode(runtime.precision_mode)
        if runtime.matmul_precision != "float32":
            raise UserError("runtime.matmul_precision: bfloat16 is for CPU; Ascend has amp.level")
    else:
        ms.set_device("CPU")
        if runtime.matmul_precision == "bfloat16" and launch.rank == 0 and not has_bfloat16_units():
            print(NO_BFLOAT16, file=sys.stderr, flush=True)
        set_matmul_precision(runtime.matmul_precision)
    if runtime.jit_level == "O2" and device_target != "Ascend":
        raise UserError("runtime.jit_level: O2 is the graph engine of Ascend; CPU has O0 and O1")
    if runtime.jit_level != "auto":
        ms.set_context(jit_config={"jit_level": runtime.jit_level})
    if launch.size > 1:
        _start_collectives(launch, device_target)
    # One seed everywhere: every rank starts from the same weights. Streams that differ between ranks are keyed by rank.
    ms.set_seed(runtime.seed)
    dist = Dist(launch.rank, launch.size, launch.local_size, device_target)
    dist.check_same_settings(flatten(config.to_dict()))
    return dist


def _check_devices(launch: Launch, device_id: int) -> None:
    available = ms.hal.device_count("Ascend")
    if launch.local_size > available:
        raise UserError(
            f"{launch.local_size} processes were launched on this machine, which has {available} Ascend devices; "
            "launch one for each device (and see ASCEND_RT_VISIBLE_DEVICES)"
        )
    if device_id >= available:
        raise UserError(f"runtime.device_id: {device_id} is not among the {available} Ascend devices of this machine")


def _start_collectives(launch: Launch, device_target: str) -> None:
    if device_target == "CPU":
        if launch.launcher == "rank table":
            raise UserError(
                f"RANK_SIZE is {launch.size}: a rank table is for Ascend; launch CPU processes by mpirun or msrun"
            )
        os.environ.setdefault(COLLECTIVE_TIMEOUT, str(COLLECTIVE_SECONDS))
        if launch.launcher == "mpirun":
            join_cluster(launch)
        else:
            check_scheduler()
    try:
        ms.communication.init("hccl" if device_target == "Ascend" else "mccl")
    except RuntimeError as error:
        raise UserError(
            f"the {launch.size} processes of {launch.launcher} do not come together: {str(error).splitlines()[0]}"
        ) from error
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
