"""Estimate what a data parallel step communicates and how it scales: python scripts/communication_cost.py [NAME ...]

The estimate is based on the authors' figures of size and cost, for servers of eight Ascend 910: nothing here has run on
one. docs/distributed.md lists the assumptions and their sources; every assumption is an option.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # Python puts only scripts/ there

from focal_twins.cli import Parser, run
from focal_twins.errors import UserError

GRADIENT_BYTES = 4  # gradients are float32 at every precision level
TRAINING_FLOPS = 3 * 2  # forward, and backward at twice its cost; an addition for every multiplication
PEAK_FLOPS = 256e12  # peak of an Ascend 910 in float16


@dataclass(frozen=True)
class Cluster:
    """Describes a cluster of servers with several devices each.

    Attributes:
        link: bytes a second out of a device to its neighbour in the server.
        network: bytes a second out of a device to another server.
        efficiency: share of these that large messages reach.
        server: number of devices of a server.
    """

    link: float
    network: float
    efficiency: float
    server: int = 8


def ring_bytes(size: float, members: int) -> float:
    """Return the bytes that leave each member of a ring that sums `size` bytes.

    They go once around to reduce, and once around to gather.
    """
    return 2 * (members - 1) / members * size


def all_reduce_seconds(size: float, devices: int, cluster: Cluster) -> float:
    """Return the seconds to sum `size` bytes over all devices.

    The bytes are reduced within a server, then over the servers, then gathered within a server. Every device carries
    its share, size / server, between servers. Latency is left out: messages here are large.
    """
    local = min(devices, cluster.server)
    within = ring_bytes(size, local) / cluster.link
    between = ring_bytes(size / local, devices // local) / cluster.network
    return (within + between) / cluster.efficiency


def compute_seconds(multiply_accumulates: float, batch_size: int, utilisation: float) -> float:
    """Return the seconds of a step's arithmetic on one device.

    Args:
        multiply_accumulates: number for the forward pass of one image.
        utilisation: share of the peak that training reaches.
    """
    return TRAINING_FLOPS * multiply_accumulates * batch_size / (PEAK_FLOPS * utilisation)


def scaling_efficiency(compute: float, communication: float) -> float:
    """Return the share of linear scaling that is left when no communication is hidden behind arithmetic."""
    return compute / (compute + communication)


def row(name: str, parameters: float, macs: float, options, cluster: Cluster) -> str:
    """Format one line of the table: a model of so many parameters and multiply-accumulates an image."""
    size = parameters * GRADIENT_BYTES
    compute = compute_seconds(macs, options.batch_size, options.utilisation)
    line = f"{name:40} {size / 1e6:6.1f} {ring_bytes(size, cluster.server) / 1e6:6.1f} {compute * 1e3:9.0f} |"
    for devices in options.devices:
        communication = all_reduce_seconds(size, devices, cluster)
        line += f" {communication * 1e3:6.1f} {scaling_efficiency(compute, communication):5.1%} |"
    return line


def main(arguments: list[str]) -> None:
    options = Parser(prog="communication_cost.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("names", nargs="*", metavar="NAME", help="default: every model with published figures")
    options.add_argument("--devices", nargs="+", type=int, default=[8, 64, 512], metavar="N", help="8 64 512")
    options.add_argument("--batch-size", type=int, default=128, metavar="B", help="images per device: 128")
    options.add_argument("--utilisation", type=float, default=0.2, metavar="U", help="of 256 TFLOPS: 0.2")
    options.add_argument("--link", type=float, default=30, metavar="GB/S", help="within a server: 30")
    options.add_argument("--network", type=float, default=12.5, metavar="GB/S", help="between servers: 12.5")
    options.add_argument("--efficiency", type=float, default=0.7, metavar="E", help="of both: 0.7")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = options.parse_args(arguments)
    for key in ("batch_size", "utilisation", "link", "network", "efficiency"):
        if getattr(options, key) <= 0:
            raise UserError(f"--{key.replace('_', '-')}: must be above 0, got {getattr(options, key)}")
    for key in ("utilisation", "efficiency"):
        if getattr(options, key) > 1:
            raise UserError(f"--{key}: is a share, at most 1, got {getattr(options, key)}")
    cluster = Cluster(options.link * 1e9, options.network * 1e9, options.efficiency)
    for devices in options.devices:
        if devices < 1 or (devices > cluster.server and devices % cluster.server):
            raise UserError(f"--devices: at most {cluster.server}, or whole servers of {cluster.server}, got {devices}")

    from focal_twins.measuring.published import PUBLISHED

    for name in options.names:
        if name not in PUBLISHED:
            raise UserError(f"{name}: no published figures; there are for {', '.join(PUBLISHED)}")
    print(
        f"estimate: float32 gradients, one ring of {options.link:g} GB/s within a server of {cluster.server}, "
        f"{options.network:g} GB/s per device between servers, {options.efficiency:.0%} of both reached, "
        f"{options.utilisation:.0%} of {PEAK_FLOPS / 1e12:g} TFLOPS, nothing hidden"
    )
    headings = "".join(f" {devices:4} devices   |" for devices in options.devices)
    print(f"{'':40} {'MB of':>6} {'MB out':>6} {'ms at':>9} |{headings}")
    print(f"{'':40} {'grads':>6} {'of 8':>6} {'batch ' + str(options.batch_size):>9} |", end="")
    print(f" {'ms':>6} {'left':>6} |" * len(options.devices))
    for name in options.names or PUBLISHED:
        published = PUBLISHED[name]
        print(row(name, published.parameters * 1e6, published.multiply_accumulates * 1e9, options, cluster))
    batches = ", ".join(f"{devices * options.batch_size:,} on {devices}" for devices in options.devices)
    print(f"images of an update: {batches} devices")


if __name__ == "__main__":
    sys.exit(run(main, "communication_cost.py"))
