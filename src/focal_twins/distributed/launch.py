"""Finds out how this process was launched, and joins it with the other processes of the launch.

Only this module reads the launchers' variables and writes those that MindSpore reads. Nothing here imports MindSpore:
a process must know its rank before, to report errors in its arguments.

Three launchers start several processes: Open MPI's mpirun, MindSpore's msrun, and, on Ascend, any program that starts
one process a device with a rank table. On Ascend MindSpore supports all three. On CPU it supports only msrun's cluster
of workers that meet at a scheduler; `join_cluster` makes such a cluster of the processes of mpirun.
"""

import atexit
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from focal_twins.errors import UserError

# Names of (ranks, rank, local rank, local ranks) by launcher.
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
MPI_PREFIXES = ("OMPI_", "PMIX_", "PRTE_", "OPAL_")  # variables that Open MPI 4 and 5 set for their processes
DEVICES_PER_MACHINE = 8  # devices of an Atlas 800; assumed where a launcher does not tell
COLLECTIVE_TIMEOUT = "MS_CPU_COMM_OP_TIMEOUT"  # seconds that a collective on CPU waits for the other processes
AS_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
# These allow more processes than cores, in Open MPI 4 and in 5.
OVERSUBSCRIBE = ("OMPI_MCA_rmaps_base_oversubscribe=1", "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe")
SOURCES = Path(__file__).resolve().parents[2]  # the folder that the package is in


@dataclass(frozen=True)
class Launch:
    """Holds what the launcher says of this process; the defaults are those of a process started by hand."""

    launcher: str | None = None
    size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_size: int = 1


def launched() -> Launch:
    """Read from the environment how this process was launched.

    Raises:
        UserError: the launcher left variables out, or set impossible numbers.
    """
    for launcher, (size, rank, local_rank, local_size) in LAUNCHERS.items():
        ranks = _read_number(size, 1)
        if ranks == 1:
            continue
        if is_scheduler():
            return Launch(launcher, ranks)
        needed = [rank] if launcher == "mpirun" else [rank, *_meeting_variables(launcher)]
        missing = [name for name in needed if name not in os.environ]
        if missing:
            raise UserError(
                f"{size} is set to {ranks} but {' and '.join(missing)} not: the {launcher} launch is incomplete; "
                f"unset {size} to run one process"
            )
        result = Launch(
            launcher,
            ranks,
            _read_number(rank, 0),
            _read_number(local_rank, 0),
            _read_number(local_size, min(ranks, DEVICES_PER_MACHINE))
            if local_size
            else min(ranks, DEVICES_PER_MACHINE),
        )
        if result.rank >= ranks:
            raise UserError(f"{rank} is {result.rank}, but the {ranks} processes of {size} count from 0")
        return result
    return Launch()


def _meeting_variables(launcher: str) -> list[str]:
    """Return the variables that tell a process where it meets the others."""
    return ["MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT"] if launcher == "msrun" else ["RANK_TABLE_FILE"]


def _read_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UserError(f"{variable} is {text!r}, not a number: the launch is broken")
    return int(text)


def is_scheduler() -> bool:
    """Return whether this is msrun's scheduler process, which runs the script only to keep the workers together."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def output_is_forwarded() -> bool:
    """Return whether mpirun reads what this process prints. Its processes have a terminal that nobody sees."""
    return "OMPI_COMM_WORLD_RANK" in os.environ


def check_device_num(device_num: int | None, program: str, arguments: list[str]) -> None:
    """Check that `--device_num` is the number of launched processes.

    Args:
        program: as it is called, without arguments: a script, or focal-twins and a command.

    Raises:
        UserError: the numbers differ; if there is one process only, the message is the command to start as many.
    """
    size = launched().size
    if device_num is None or device_num == size:
        return
    if size == 1:
        command = " ".join([*mpirun_variables(device_num), shlex.join(mpirun(device_num, program, arguments))])
        raise UserError(f"--device_num {device_num} needs {device_num} processes; start them with: {command}")
    raise UserError(f"--device_num {device_num} differs from the {size} processes that were launched")


def mpirun(ranks: int, program: str, arguments: list[str]) -> list[str]:
    """Return the command that runs a program in several processes; see check_device_num."""
    return ["mpirun", "-n", str(ranks), *called(program), *arguments]


def called(program: str) -> list[str]:
    """Return the words by which a program is called: python train.py, or focal-twins train."""
    if program.endswith(".py"):
        return ["python", program]
    return [program] if os.sep in program else program.split()


def command_again(*changed: str) -> str:
    """Return the line for a shell that starts this program again, as it was launched, with keys at other values.

    Args:
        changed: "section.key=value"; they take the place of the same keys among the arguments.
    """
    launch = launched()
    words = [*called(sys.argv[0]), *sys.argv[1:]]
    if launch.launcher == "mpirun":
        words = mpirun(launch.size, sys.argv[0], sys.argv[1:])
    elif launch.launcher == "msrun":
        words = _words_of_msrun() or words
    keys = tuple(f"{text.partition('=')[0]}=" for text in changed)
    return shlex.join([word for word in words if not word.startswith(keys)] + list(changed))


def _words_of_msrun() -> list[str] | None:
    """Return the command line of the msrun that started this process; None where there is none to read."""
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    place = next((place for place, word in enumerate(words) if os.path.basename(word) == "msrun"), None)
    return None if place is None else ["msrun", *words[place + 1 :]]


def mpirun_variables(ranks: int) -> list[str]:
    """Return the settings NAME=value that the environment lacks and mpirun needs to start so many processes here."""
    variables = [f"{name}=1" for name in AS_ROOT if os.geteuid() == 0 and os.environ.get(name) != "1"]
    if ranks > cores():
        variables += [line for line in OVERSUBSCRIBE if line.split("=", 1)[0] not in os.environ]
    return variables


def cores() -> int:
    """Return the number of physical cores of this machine, which mpirun counts as well."""
    import psutil  # a requirement of MindSpore

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def check_scheduler() -> None:
    """Check that only msrun's own scheduler listens at its port, before this process waits for its answer.

    Raises:
        UserError: another program listens there.
    """
    import psutil

    host, port = os.environ["MS_SCHED_HOST"], _read_number("MS_SCHED_PORT", 0)
    if not any(address.address == host for addresses in psutil.net_if_addrs().values() for address in addresses):
        return  # the scheduler is on another machine
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
            continue
        if connection.laddr.ip in (host, "0.0.0.0", "::") and not _is_sibling(connection.pid):
            raise UserError(
                f"port {port} of msrun's scheduler is taken by another program; choose a free one by --master_port"
            )


def _is_sibling(pid: int | None) -> bool:
    """Return whether a process was started by the same process as this one."""
    import psutil

    try:
        return pid is not None and psutil.Process(pid).ppid() == os.getppid()
    except psutil.NoSuchProcess:
        return True  # the process has ended, and its port is free


# --- the cluster of mpirun's processes on CPU ------------------------------------------------------------------------


def join_cluster(launch: Launch) -> None:
    """Make the processes of mpirun workers of a MindSpore cluster, whose scheduler rank 0 starts.

    MindSpore reads the variables set here when its collectives start. The processes use MPI only to agree on the
    scheduler's address; after that, mpirun only ends all processes when one fails.

    Raises:
        UserError: mpi4py is missing or speaks to another MPI, or the scheduler cannot start.
    """
    _choose_mpi_library()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"processes of mpirun find each other by mpi4py, which does not work here ({_one_line(error)}); "
            "pip install -r requirements.txt, or launch by msrun"
        ) from error
    world = MPI.COMM_WORLD
    if world.size != launch.size:
        library = MPI.Get_library_version().split(",")[0]
        raise UserError(
            f"mpi4py speaks to {library}, which is not the MPI of the mpirun that started this process; "
            "set MPI4PY_LIBMPI to the libmpi.so beside that mpirun"
        )
    hosts = world.gather(socket.gethostname())  # all hosts on rank 0, None elsewhere
    host, port = world.bcast(None if hosts is None else _start_scheduler(launch.size, hosts))
    MPI.Finalize()
    os.environ.update(
        MS_ROLE="MS_WORKER",
        MS_WORKER_NUM=str(launch.size),
        MS_NODE_ID=str(launch.rank),
        MS_SCHED_HOST=host,
        MS_SCHED_PORT=port,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _choose_mpi_library() -> None:
    """Make mpi4py load the library of the mpirun that started this process, where several are installed."""
    # Open MPI 5 sets this variable. For Open MPI 4, the libraries that its launcher, our parent, has loaded tell.
    folder = os.environ.get("OMPI_LIBDIR_LOC")
    if folder is None:
        try:
            maps = Path(f"/proc/{os.getppid()}/maps").read_text(encoding="utf-8")
        except OSError:
            return
        loaded = [line.split()[-1] for line in maps.splitlines() if "libopen-rte.so" in line]
        folder = os.path.dirname(loaded[0]) if loaded else None
    if folder is None:
        return
    libraries = sorted(Path(folder).glob("libmpi.so.*"))  # libmpi.so itself may be a text for linkers
    if libraries:
        os.environ.setdefault("MPI4PY_LIBMPI", str(libraries[0]))


def _start_scheduler(size: int, hosts: list[str]) -> tuple[str, str]:
    """Start the scheduler process; return its host and port.

    The scheduler ends with this process: see distributed/scheduler.py.
    """
    host = os.environ.get("MS_SCHED_HOST") or _own_address(hosts)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(MPI_PREFIXES)}
    environment |= {"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": str(size), "MS_SCHED_HOST": host}
    with tempfile.TemporaryFile("w+") as errors:
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "focal_twins.distributed.scheduler", str(os.getpid())],
            cwd=SOURCES,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # mpirun signals this process's group; the scheduler has to outlast that
        )
        assert scheduler.stdout is not None  # it is a pipe
        port = scheduler.stdout.readline().strip()
        if not port:
            scheduler.wait()
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"exit code {scheduler.returncode}"]
            raise UserError(f"MindSpore's scheduler does not start: {lines[-1]}")
    atexit.register(_kill, scheduler)
    return host, port


def _kill(scheduler: subprocess.Popen) -> None:
    scheduler.kill()
    scheduler.wait()


def _own_address(hosts: list[str]) -> str:
    """Return an address of this machine that processes on all the hosts reach."""
    others = [host for host in hosts if host != hosts[0]]
    if not others:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((others[0], 9))  # sends nothing; the system chooses this machine's address on the way there
        except OSError as error:
            raise UserError(
                f"host {others[0]} of mpirun's processes is not known here ({error.strerror}); "
                "set MS_SCHED_HOST to this machine's address"
            ) from error
        return probe.getsockname()[0]


def leave(code: int) -> None:
    """End this process at once if it is one of several that must not wait for the others.

    A process that failed must not wait for the others, because they wait for it: MindSpore's own exit waits for half a
    minute and more. The launcher sees the exit code and ends the others. A process of `join_cluster` ends at once after
    success too, and the scheduler with rank 0. Under msrun and on Ascend a process that succeeded has to exit normally,
    because there other processes wait for its message.
    """
    try:
        launch = launched()
    except UserError:  # the launch is broken, so this process is alone
        return
    in_cluster_of_mpirun = launch.launcher == "mpirun" and os.environ.get("MS_ROLE") == "MS_WORKER"
    if launch.size == 1 or (code == 0 and not in_cluster_of_mpirun):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
