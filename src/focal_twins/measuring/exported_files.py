"""Times exported files in turns: ONNX files by onnxruntime, MINDIR files by MindSpore, with equal threads.

It reads of a file what the JSON file beside it says; a process of its own loads and runs the file.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from focal_twins.errors import UserError
from focal_twins.measuring.machine import busy_note
from focal_twins.measuring.turns import Worker, check_same_threads, step_figures, take_turns
from focal_twins.phrases import counted

RUNTIMES = {".onnx": "onnxruntime", ".mindir": "MindSpore"}


def input_shape(path: Path, batch_size: int | None) -> list[int]:
    """Return the shape of the input of an exported file, for a number of images or, by default, its own (or one).

    Raises:
        UserError: there is no such file, it is not described, nothing runs it here, or it takes another number.
    """
    description = path.with_name(f"{path.name}.json")
    if path.suffix not in RUNTIMES:
        raise UserError(f"--exported {path}: only {' and '.join(RUNTIMES)} files can be run here")
    try:
        own, *sides = json.loads(description.read_text(encoding="utf-8"))["input"]["shape"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--exported {path}: {description.name} beside it cannot be read; export again") from error
    if own is not None and batch_size not in (None, own):
        raise UserError(f"--batch-size {batch_size}: {path} takes {own} at a time")
    return [batch_size or own or 1, *sides]


def time_exported(
    paths: Sequence[Path],
    script: Path,
    batch_size: int | None,
    repeats: int,
    warmup: int,
    pause: float,
    threads: int,
    wait_policy: str | None = None,
) -> list[dict]:
    """Measure the time that exported files take for a batch, one call of each in turn.

    Args:
        paths: .onnx and .mindir files.
        script: serves the step of a file (scripts/benchmark_exported.py).
        batch_size: see input_shape.
        repeats, warmup: measured calls of each file, and calls before them.
        pause: seconds before each measured call.
        threads, wait_policy: see Worker.

    Returns:
        For each file its figures, see step_figures, and what it is.

    Raises:
        UserError: see input_shape and Worker.
    """
    shapes = {path: input_shape(path, batch_size) for path in paths}
    workers: dict[str, Worker] = {}
    try:
        for path, shape in shapes.items():
            command = [sys.executable, script, "--file", path, "--images", *shape]
            workers[str(path)] = Worker(path.name, command, threads, wait_policy)
        for _ in range(1 + warmup):
            for worker in workers.values():
                worker.call("step")
        used = check_same_threads(workers)
        steps, others = take_turns(workers, repeats, pause)
    finally:
        for worker in workers.values():
            worker.close()
    return [
        {
            "file": str(path),
            "runtime": RUNTIMES[path.suffix],
            "bytes": path.stat().st_size,
            "images": shape,
            **used[str(path)],
            "load_of_others": others,
            **step_figures(steps[str(path)], shape[0]),
        }
        for path, shape in shapes.items()
    ]


def table(results: Sequence[dict]) -> str:
    """Return the measurements of time_exported as a table, and a line on the threads and the machine."""
    lines = ["| file | runtime | size | images | median (fastest to slowest) | images/s | peak memory |"]
    lines.append("|---|---|---|---|---|---|---|")
    for result in results:
        milliseconds = [result[f"{key}_seconds"] * 1e3 for key in ("median", "fastest", "slowest")]
        cells = [
            Path(result["file"]).name,
            result["runtime"],
            f"{result['bytes'] / 1e6:.1f} MB",
            "x".join(map(str, result["images"])),
            "{:.1f} ms ({:.1f} to {:.1f})".format(*milliseconds),
            f"{result['images_per_second']:.1f}",
            f"{result['peak_memory_bytes'] / 2**20:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    first = results[0]
    lines.append(f"{counted(first['threads'], 'thread')} each; others took {first['load_of_others']:.1%} of the cores")
    lines[-1] += busy_note(first["load_of_others"])
    return "\n".join(lines)
