"""Runs the scheduler process, at which the workers of a MindSpore cluster on CPU meet.

msrun starts its scheduler itself, by running the user's script with MS_ROLE=MS_SCHED; for mpirun, rank 0 starts
`python -m focal_twins.distributed.scheduler PARENT`, which prints the port it chose and ends when its parent does.
"""

import ctypes
import os
import signal
import socket
import sys

from focal_twins.errors import UserError

PR_SET_PDEATHSIG = 1  # Linux's prctl: the signal to get when the parent ends


def claim_port() -> str:
    """Return the port of MS_SCHED_PORT or, without it, choose a free one and set MS_SCHED_PORT.

    Raises:
        UserError: the port is taken.
    """
    host, port = os.environ["MS_SCHED_HOST"], os.environ.get("MS_SCHED_PORT", "0")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise UserError(
                f"address {host}:{port} of MindSpore's scheduler cannot be used ({error.strerror}); choose another by "
                "msrun --master_port=N or, for mpirun, MS_SCHED_PORT (unset: a free one)"
            ) from error
        os.environ["MS_SCHED_PORT"] = str(probe.getsockname()[1])
    return os.environ["MS_SCHED_PORT"]


def serve() -> None:
    """Keep the workers together until all of them have left."""
    import mindspore as ms

    ms.set_device("CPU")
    ms.communication.init("mccl")


def end_with(parent: int) -> None:
    """Make the kernel end this process when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        sys.exit(1)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    try:
        import mindspore  # noqa: F401  (imported before the port is chosen, because the port must be used at once)

        print(claim_port(), flush=True)
    except UserError as error:
        sys.exit(str(error))
    serve()
