"""Encodes the lines of metrics.jsonl as events that TensorBoard reads.

Only the encoding is tensorboardX's. Its writers hand events to a thread; when that thread ends on a full disk, adding
the eleventh event after that waits for ever. Here the bytes are appended as the lines themselves are.
"""

import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

PREFIX = "events.out.tfevents."  # TensorBoard finds its files by this prefix
POSITION_KEYS = ("epoch", "update", "epochs_done", "seconds", "weights")  # keys that are no figures of a line


def new_path(folder: Path) -> Path:
    """Return a path whose name sorts after all earlier ones: TensorBoard reads a run's files in the order of names."""
    return folder / f"{PREFIX}{int(time.time()):010d}"


def start_record() -> bytes:
    """Return the record with which a file begins."""
    return _encode(Event(wall_time=time.time(), file_version="brain.Event:2"))


def scalars(line: dict) -> dict[str, float]:
    """Return the figures of a line by their tags: train/loss, eval/top1_ema. Figures that are null are left out."""
    weights = line.get("weights")
    return {
        f"eval/{key}_{weights}" if weights else f"train/{key}": value
        for key, value in line.items()
        if key not in POSITION_KEYS and value is not None
    }


def record(line: dict, start_time: float) -> bytes:
    """Encode a line as an event, at the step of its update.

    Args:
        start_time: UNIX time from which the line's seconds count.
    """
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
    return _encode(Event(wall_time=start_time + line["seconds"], step=line["update"], summary=Summary(value=values)))


def _encode(event: Event) -> bytes:
    """Encode an event as a TFRecord: the length and the content, each followed by its checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))]
    )
