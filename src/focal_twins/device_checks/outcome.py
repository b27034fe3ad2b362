"""Holds what checks found, as a table for people and as a file. It runs without MindSpore."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from focal_twins.files.atomic import write_text

PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"
HEADING = f"{'check':24} {'result':8} {'seconds':>8}  what was found"


@dataclass(frozen=True)
class Outcome:
    """Holds the result of a check: PASSED, FAILED or LEFT_OUT, what was found in words and in figures, and its time."""

    result: str
    found: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """Return the line of the table, under HEADING."""
        return f"{name:24} {self.result:8} {self.seconds:8.1f}  {self.found}"


def summary(outcomes: dict[str, Outcome]) -> str:
    """Return how many checks had which result."""
    counts = Counter(outcome.result for outcome in outcomes.values())
    return ", ".join(f"{counts[result]} {result}" for result in (PASSED, FAILED, LEFT_OUT))


def write_outcomes(path: Path, settings: dict[str, str], outcomes: dict[str, Outcome]) -> None:
    """Write the outcomes by check, with the settings that they were found with, as JSON."""
    content = {
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "settings": settings,
        "checks": {name: asdict(outcome) for name, outcome in outcomes.items()},
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """Read the outcomes that write_outcomes wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: Outcome(**outcome) for name, outcome in content["checks"].items()}
