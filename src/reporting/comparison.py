"""Runs beside each other: their curves in the same charts, and a table of what they came to and what they differ in."""

from dataclasses import dataclass, replace
from pathlib import Path

from src.config.load import flatten
from src.errors import UserError
from src.pages.charts import Chart, Series, render
from src.pages.page import Column, Section, page, table
from src.reporting.curves import LOSS, OF_UPDATES, metric_chart
from src.reporting.run_files import SHORT_NAMES, RunRecord, read_run
from src.tasks.task import Figure, Task
from src.training.progress import duration

# Units of time, each with its seconds and the seconds from which on it is taken.
TIME_UNITS = (("hours", 3600, 3 * 3600), ("minutes", 60, 300), ("seconds", 1, 0))
# Where a run lies, and how it was started, is not what it was.
NO_DIFFERENCE = ("name", "runtime.output", "train.resume")
ABSENT = "-"
LONGEST = 60  # characters of a value that are printed


@dataclass(frozen=True)
class Comparison:
    """Runs with the names that tell them apart."""

    runs: dict[str, RunRecord]

    @classmethod
    def of(cls, folders: list[str]) -> "Comparison":
        """Read runs.

        Raises:
            UserError: one that is none, a damaged file of one, or the same twice.
        """
        records = [read_run(folder) for folder in folders]
        paths = [record.path.resolve() for record in records]
        if len(set(paths)) < len(paths):
            twice = next(folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1)
            raise UserError(f"{twice}: is given twice")
        tasks = {record.task.name: record.path for record in records}
        if len(tasks) > 1:
            (task, path), (other, beside), *_ = tasks.items()
            raise UserError(f"{path} is a run of {task} and {beside} of {other}: they have no figure in common")
        return cls(dict(zip(short_names(paths), records, strict=True)))

    @property
    def task(self) -> type[Task]:
        """The task of all runs."""
        return next(iter(self.runs.values())).task

    @property
    def metric(self) -> Figure:
        """The figure that all runs are judged by."""
        return self.task.figures[0]

    def figures(self) -> list[list]:
        """A row for each run, of `columns`."""
        return [[name, *_figures(record)] for name, record in self.runs.items()]

    def columns(self) -> list[Column]:
        """The columns of the figures."""
        metric = self.metric
        unit = f", {metric.unit}" if metric.unit else ""
        return [
            Column("run"),
            Column("epochs", ".4g"),
            Column(f"best {metric.title}{unit}", metric.format),
            Column("of weights"),
            Column("at epoch"),
            Column(f"last raw{unit}", metric.format),
            Column(f"last EMA{unit}", metric.format),
            Column("time"),
            Column("images/s", ",.1f"),
        ]

    def differences(self) -> list[list]:
        """A row for each key of the configuration that is not the same in all runs: the key, and its values."""
        configs = [flatten(record.config) for record in self.runs.values()]
        keys = [key for key in {key: None for config in configs for key in config} if key not in NO_DIFFERENCE]
        rows = [[key, *(config.get(key, ABSENT) for config in configs)] for key in keys]
        return [[key, *map(_as_text, values)] for key, *values in rows if any(value != values[0] for value in values)]

    def charts(self) -> list[Chart]:
        """The curves of all runs. Averaged weights are whole lines, raw weights broken ones."""
        longest = max((run.newest["seconds"] for run in self.runs.values() if run.newest), default=0)
        unit, seconds = next((unit, seconds) for unit, seconds, least in TIME_UNITS if longest >= least)
        chosen_by, key = metric_chart(self.metric), self.metric.key
        return [
            replace(chosen_by, series=self._evaluations(key, "epochs_done")),
            replace(
                chosen_by,
                title=f"{chosen_by.title} against time",
                x_label=unit,
                series=self._evaluations(key, "seconds", seconds),
            ),
            *(
                replace(LOSS, title="Loss of validation images", series=self._evaluations(figure.key, "epochs_done"))
                for figure in self.task.figures
                if figure.key == "loss"
            ),
            replace(LOSS, title="Loss of training batches", series=self._updates("loss")),
            *(replace(chart, series=self._updates(key)) for key, chart in OF_UPDATES.items()),
        ]

    def _updates(self, key: str) -> list[Series]:
        return [
            Series(name, [line["epochs_done"] for line in run.updates], [line[key] for line in run.updates], color)
            for color, (name, run) in enumerate(self.runs.items())
        ]

    def _evaluations(self, key: str, against: str, unit: int = 1) -> list[Series]:
        return [
            Series(
                f"{name}, {SHORT_NAMES[weights]}",
                [line[against] / unit for line in lines],
                [line[key] for line in lines],
                color,
                dashed=weights == "raw",
            )
            for color, (name, run) in enumerate(self.runs.items())
            for weights, lines in run.by_weights.items()
        ]

    def page(self) -> str:
        """All of it as HTML."""
        differences = self.differences()
        drawn = "".join(map(render, self.charts()))
        return page(
            "Comparison of runs",
            ", ".join(self.runs),
            [
                Section("Figures", table(self.columns(), self.figures(), name="figures")),
                Section(
                    "Differences",
                    table(["key", *self.runs], differences, name="differences")
                    if differences
                    else "<p>The configurations are the same.</p>",
                ),
                Section("Curves", f'<div class="charts">{drawn}</div>' if drawn else "<p>Nothing was logged yet.</p>"),
            ],
        )

    def text(self) -> str:
        """The tables to be printed."""
        columns = self.columns()
        figures = [[_printed(v, c.format) for v, c in zip(row, columns, strict=True)] for row in self.figures()]
        lines = aligned([[column.title for column in columns], *figures])
        differences = [[_shortened(value) for value in row] for row in self.differences()]
        if differences:
            return lines + "\n\n" + aligned([["key", *self.runs], *differences])
        return lines + "\n\nthe configurations are the same"


def _figures(run: RunRecord) -> list:
    best, newest = run.best or {}, run.newest or {}
    lasts = [(run.last(weights) or {}).get(run.metric.key) for weights in ("raw", "ema")]
    return [
        newest.get("epochs_done"),
        best.get(run.metric.key),
        SHORT_NAMES.get(best.get("weights", "")),
        best.get("epoch"),
        *lasts,
        duration(newest["seconds"]) if newest else None,
        run.images_per_second,
    ]


def short_names(paths: list[Path]) -> list[str]:
    """The last parts of paths, as many of them as tell all apart."""
    deepest = max(len(path.parts) for path in paths)
    for count in range(1, deepest + 1):
        names = [str(Path(*path.parts[-count:])) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def aligned(rows: list[list[str]]) -> str:
    """Rows of texts as lines with columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _as_text(value: object) -> str:
    return "null" if value is None else str(value)


def _printed(value: object, spec: str) -> str:
    return ABSENT if value is None else format(value, spec) if spec and not isinstance(value, str) else str(value)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
