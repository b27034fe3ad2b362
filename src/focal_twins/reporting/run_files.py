"""Reads the folder of a run back for reports."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from focal_twins.errors import UserError
from focal_twins.phrases import counted
from focal_twins.tasks.evaluation_file import SHORT_NAMES, check_keys
from focal_twins.tasks.find_task import task_of_run
from focal_twins.tasks.task import Figure, Task
from focal_twins.training.progress import duration


@dataclass(frozen=True)
class RunRecord:
    """Holds the contents of a run's files, at its end or at any time before.

    Attributes:
        updates, evaluations: the lines of metrics.jsonl, in order.
        config: config.yaml by section; empty where there is none.
        sessions: the lines of sessions.jsonl.
        summary: summary.json, if the run came to its end.
        evaluation: evaluation.json of the best epoch, as the run's task reads it, if an epoch was evaluated.
    """

    path: Path
    task: type[Task]
    updates: list[dict]
    evaluations: list[dict]
    config: dict
    sessions: list[dict]
    summary: dict | None
    evaluation: dict | None

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def metric(self) -> Figure:
        """The figure that chooses the best epoch."""
        return self.task.figures[0]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures to show, that one first."""
        return self.task.shown_figures(self.config)

    @cached_property
    def by_weights(self) -> dict[str, list[dict]]:
        """The evaluations by the kind of weights, "raw" and "ema"; a kind that was not evaluated is left out."""
        by_kind = {weights: [e for e in self.evaluations if e["weights"] == weights] for weights in SHORT_NAMES}
        return {weights: lines for weights, lines in by_kind.items() if lines}

    @property
    def best(self) -> dict | None:
        """The evaluation that chose best.ckpt, or None.

        It is the first with the highest figure among those after whole epochs, of the weights that the configuration
        chooses by (ema.best_by); of two that are equal in an epoch, that of the averaged ones.
        """
        best_by = self.config.get("ema", {}).get("best_by", "ema")
        kinds = self.by_weights.keys() if best_by == "either" else {best_by} & self.by_weights.keys() or {"raw"}
        lines = [e for e in self.evaluations if e["weights"] in kinds and e["epochs_done"] == e["epoch"]]
        return max(lines, key=lambda e: (e[self.metric.key], -e["epoch"], e["weights"] == "ema"), default=None)

    def last(self, weights: str) -> dict | None:
        """Return the newest evaluation of raw or averaged weights, or None."""
        return self.by_weights.get(weights, [None])[-1]

    @property
    def newest(self) -> dict | None:
        """The newest line of all, of an update or an evaluation."""
        return max([*self.updates[-1:], *self.evaluations[-1:]], key=lambda line: line["seconds"], default=None)

    @property
    def loss_parts(self) -> list[str]:
        """The names of the loss's parts; empty if the loss has only one."""
        return [key for key in (self.updates[-1] if self.updates else {}) if key not in UPDATE]

    @property
    def images_per_second(self) -> float | None:
        """The median training speed of the log's lines, which leave out evaluation, saves and compilation."""
        rates = [line["images_per_second"] for line in self.updates if line["images_per_second"] is not None]
        return statistics.median(rates) if rates else None

    @property
    def state(self) -> str:
        """The progress of training in words."""
        newest = self.newest
        if newest is None:
            return "begun"
        epochs = self.config.get("train", {}).get("epochs")
        done = (
            f"{newest['epochs_done']:g} of {counted(epochs, 'epoch')}"
            if epochs
            else counted(newest["epochs_done"], "epoch", "g")
        )
        finished = self.summary is not None and self.summary["updates"] == newest["update"]
        return f"{done} in {duration(newest['seconds'])}" + ("" if finished else ", not at its end")


def read_run(path: str | Path) -> RunRecord:
    """Read the folder of a run.

    Raises:
        UserError: the folder is not a run's, or a file in it is damaged.
    """
    path = Path(path)
    if not any((path / name).is_file() for name in ("config.yaml", "metrics.jsonl")):  # a new run has only the first
        raise UserError(f"{path}: no folder of a run (it has neither config.yaml nor metrics.jsonl)")
    config = _read(path / "config.yaml", yaml.safe_load) or {}
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.yaml'}: cannot be read (it has no sections)")
    task = task_of_run(config)
    needed = COMMON | {"weights"} | {figure.key for figure in task.shown_figures(config)}
    updates: list[dict] = []
    evaluations: list[dict] = []
    for number, line in enumerate(_read(path / "metrics.jsonl", _parse_lines) or [], 1):
        is_evaluation = isinstance(line, dict) and "weights" in line
        check_keys(line, needed if is_evaluation else UPDATE, f"{path / 'metrics.jsonl'}: line {number}")
        (evaluations if is_evaluation else updates).append(line)
    sessions = _read(path / "sessions.jsonl", _parse_lines) or []
    for number, session in enumerate(sessions, 1):
        check_keys(session, SESSION, f"{path / 'sessions.jsonl'}: line {number}")
    summary = _read(path / "summary.json", json.loads)
    if summary is not None:
        check_keys(summary, SUMMARY, str(path / "summary.json"))
    evaluation = _read(path / "evaluation.json", json.loads)
    if evaluation is not None:
        evaluation = task.read_evaluation(path / "evaluation.json", evaluation)
    return RunRecord(path, task, updates, evaluations, config, sessions, summary, evaluation)


# Keys that reports need in each file.
COMMON = {"epoch", "update", "epochs_done", "seconds"}
UPDATE = COMMON | {"loss", "grad_norm", "lr", "loss_scale", "images_per_second"}
SESSION = {
    "started", "after_update", "global_batch", "command", "device", "devices", "processor", "cores", "system", "python",
    "packages", "git",
}  # fmt: skip
SUMMARY = {"updates", "skipped_updates", "unreadable_images"}


def _parse_lines(text: str) -> list:
    """Parse the JSON of each line; leave out a last line without an end, which is still being written."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read and parse a file; return None where there is no such file."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
