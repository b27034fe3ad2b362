"""Compares runs: draws their curves in the same charts, and tabulates their results and how they were configured."""

from dataclasses import dataclass, replace
from pathlib import Path

from focal_twins.config.load import flatten
from focal_twins.errors import UserError
from focal_twins.pages.charts import Chart, Series, render
from focal_twins.pages.page import Column, Section, page, table
from focal_twins.reporting.curves import LOSS, UPDATE_CHARTS, metric_chart
from focal_twins.reporting.run_files import RunRecord, read_run
from focal_twins.tasks.evaluation_file import SHORT_NAMES
from focal_twins.tasks.task import Figure, Task
from focal_twins.training.progress import duration

# Units of time, each with its length in seconds and the duration in seconds from which on it is used.
TIME_UNITS = (("hours", 3600, 3 * 3600), ("minutes", 60, 300), ("seconds", 1, 0))
# Keys that say where a run lies and how it was started: they differ between equal runs.
IGNORED_KEYS = ("name", "runtime.output", "train.resume")
ABSENT = "-"
MAX_PRINTED_LENGTH = 60  # characters of a value that are printed


@dataclass(frozen=True)
class Comparison:
    """Compares runs by short names that tell them apart."""

    runs: dict[str, RunRecord]

    @classmethod
    def of(cls, folders: list[str]) -> "Comparison":
        """Read the folders of runs.

        Raises:
            UserError: a folder is not a run or has a damaged file, is given twice, or the runs are of different tasks.
        """
        records = [read_run(folder) for folder in folders]
        paths = [record.path.resolve() for record in records]
        if len(set(paths)) < len(paths):
            repeated = next(folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1)
            raise UserError(f"{repeated}: is given twice")
        tasks = {record.task.name: record.path for record in records}
        if len(tasks) > 1:
            (task, path), (other_task, other_path), *_ = tasks.items()
            raise UserError(
                f"{path} is a run of {task} and {other_path} of {other_task}: they have no figure in common"
            )
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
        """Return a row of figures for each run, under the headings of `columns`."""
        return [[name, *_figures_of_run(record)] for name, record in self.runs.items()]

    def columns(self) -> list[Column]:
        """Return the columns of the figures."""
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
        """Return a row for each key of the configuration that is not the same in all runs: the key, and its values."""
        configs = [flatten(record.config) for record in self.runs.values()]
        keys = [key for key in {key: None for config in configs for key in config} if key not in IGNORED_KEYS]
        rows = [[key, *(config.get(key, ABSENT) for config in configs)] for key in keys]
        return [[key, *map(_as_text, values)] for key, *values in rows if any(value != values[0] for value in values)]

    def charts(self) -> list[Chart]:
        """Return charts with the curves of all runs. Averaged weights are whole lines, raw weights broken ones."""
        longest = max((run.newest["seconds"] for run in self.runs.values() if run.newest), default=0)
        unit, seconds = next((unit, seconds) for unit, seconds, least in TIME_UNITS if longest >= least)
        over_epochs, key = metric_chart(self.metric), self.metric.key
        return [
            replace(over_epochs, series=self._evaluation_curves(key, "epochs_done")),
            replace(
                over_epochs,
                title=f"{over_epochs.title} against time",
                x_label=unit,
                series=self._evaluation_curves(key, "seconds", seconds),
            ),
            *(
                replace(
                    LOSS,
                    title="Loss of validation images",
                    series=self._evaluation_curves(figure.key, "epochs_done"),
                )
                for figure in self.task.figures
                if figure.key == "loss"
            ),
            replace(LOSS, title="Loss of training batches", series=self._update_curves("loss")),
            *(replace(chart, series=self._update_curves(key)) for key, chart in UPDATE_CHARTS.items()),
        ]

    def _update_curves(self, key: str) -> list[Series]:
        return [
            Series(name, [line["epochs_done"] for line in run.updates], [line[key] for line in run.updates], color)
            for color, (name, run) in enumerate(self.runs.items())
        ]

    def _evaluation_curves(self, key: str, x_key: str, unit: int = 1) -> list[Series]:
        return [
            Series(
                f"{name}, {SHORT_NAMES[weights]}",
                [line[x_key] / unit for line in lines],
                [line[key] for line in lines],
                color,
                dashed=weights == "raw",
            )
            for color, (name, run) in enumerate(self.runs.items())
            for weights, lines in run.by_weights.items()
        ]

    def page(self) -> str:
        """Make the page with figures, differences and curves as HTML."""
        differences = self.differences()
        charts = "".join(map(render, self.charts()))
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
                Section(
                    "Curves", f'<div class="charts">{charts}</div>' if charts else "<p>Nothing was logged yet.</p>"
                ),
            ],
        )

    def text(self) -> str:
        """Format the tables of figures and differences as text to be printed."""
        columns = self.columns()
        figures = [[_format_value(v, c.format) for v, c in zip(row, columns, strict=True)] for row in self.figures()]
        lines = align_columns([[column.title for column in columns], *figures])
        differences = [[_shorten(value) for value in row] for row in self.differences()]
        if differences:
            return lines + "\n\n" + align_columns([["key", *self.runs], *differences])
        return lines + "\n\nthe configurations are the same"


def _figures_of_run(run: RunRecord) -> list:
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
    """Shorten paths to their last parts, as many of them as are needed to tell all apart."""
    deepest = max(len(path.parts) for path in paths)
    for count in range(1, deepest + 1):
        names = [str(Path(*path.parts[-count:])) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def align_columns(rows: list[list[str]]) -> str:
    """Format rows of texts as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _as_text(value: object) -> str:
    return "null" if value is None else str(value)


def _format_value(value: object, spec: str) -> str:
    return ABSENT if value is None else format(value, spec) if spec and not isinstance(value, str) else str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_PRINTED_LENGTH else text[: MAX_PRINTED_LENGTH - 3] + "..."
