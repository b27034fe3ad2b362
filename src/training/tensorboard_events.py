"""Lines of metrics.jsonl as TensorBoard reads them.

Only the encoding is tensorboardX's. Its writers hand events to a thread; when that ends for want of disk space, whoever
adds the eleventh event after it waits for ever. Here the bytes are appended as the lines themselves are.
"""

import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

PREFIX = "events.out.tfevents."  # by which TensorBoard knows its files
PLACES = ("epoch", "update", "epochs_done", "seconds", "weights")  # that tell where a line belongs


def new_path(folder: Path) -> Path:
    """A name that comes after all earlier ones: TensorBoard reads a run's files in the order of their names."""
    return folder / f"{PREFIX}{int(time.time()):010d}"


def start_record() -> bytes:
    """What a file begins with."""
    return _record(Event(wall_time=time.time(), file_version="brain.Event:2"))


def scalars(line: dict) -> dict[str, float]:
    """The figures of a line by their tags: train/loss, eval/top1_ema. Those that are null are left out."""
    weights = line.get("weights")
    return {
        f"eval/{key}_{weights}" if weights else f"train/{key}": value
        for key, value in line.items()
        if key not in PLACES and value is not None
    }


def record(line: dict, began: float) -> bytes:
    """The event of a line, at the step of its update.

    Args:
        began: UNIX time from which its seconds count.
    """
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
    return _record(Event(wall_time=began + line["seconds"], step=line["update"], summary=Summary(value=values)))


def _record(event: Event) -> bytes:
    """TFRecord framing: the length and the content, each followed by its checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))]
    )
