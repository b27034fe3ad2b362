"""Writes report.html: a run's curves, mistakes, configuration and environment on one page that needs no other file."""

import html
from dataclasses import replace
from pathlib import Path

import yaml

from focal_twins.files.atomic import write_text
from focal_twins.pages.charts import Series, render
from focal_twins.pages.page import Column, Section, details, page, table, tiles
from focal_twins.phrases import counted
from focal_twins.reporting.curves import LOSS, LOSS_PARTS, UPDATE_CHARTS, metric_chart, with_unit
from focal_twins.reporting.run_files import RunRecord, read_run
from focal_twins.tasks.evaluation_file import SHORT_NAMES, WEIGHTS_NAMES
from focal_twins.training.progress import duration
from focal_twins.training.saving import warn

ROOT = Path(__file__).resolve().parents[3]
LISTED_UPDATES = 1000  # up to so many lines of updates are listed; of more, only the last of each epoch
COLORS = {"ema": 0, "raw": 1, "training": 7}


def write_report(run: str | Path, output: Path | None = None, data: Path | None = None) -> Path:
    """Make the report of a run from its files, at its end or at any time before; return the page's path.

    Args:
        run: the run's folder.
        output: path of the page; None for report.html in that folder.
        data: folder that holds the evaluation images, if they are not where the configuration says.

    Raises:
        UserError: no run, a damaged file of it, no images in `data`, or no room for the page.
    """
    record = read_run(run)
    path = output or record.path / "report.html"
    write_text(path, report_page(record, data))
    return path


def report_or_warn(run: Path) -> None:
    """Make the report at a run's end; print a warning of one line if anything goes wrong.

    The run's files are whole then, and worth more than the report.
    """
    try:
        print(f"report: {write_report(run)}", flush=True)
    except Exception as error:  # a defect of the report must not look like a failure of the run
        problem = " ".join(str(error).split()) or type(error).__name__
        warn(f"no report: {problem}; python scripts/report.py {run} makes it again")


def report_page(run: RunRecord, data: Path | None = None) -> str:
    """Make the report of a run as HTML."""
    return page(
        run.name,
        f"Training run, {run.state}.",
        [
            Section("Summary", summary(run)),
            Section("Curves", curves(run)),
            Section("Evaluations", evaluations(run)),
            *run.task.sections(run.evaluation, run.config, data, [Path.cwd(), ROOT]),
            Section("Updates", updates(run)),
            Section("Configuration", configuration(run)),
            Section("Environment", environment(run)),
        ],
    )


def summary(run: RunRecord) -> str:
    """Show the most important figures as tiles."""
    entries, metric = [], run.metric
    if run.best is not None:
        weights = WEIGHTS_NAMES[run.best["weights"]]
        value = metric.format_value(run.best[metric.key])
        entries.append((f"Best {metric.title}", value, f"{weights}, after epoch {run.best['epoch']}"))
    for weights, lines in run.by_weights.items():
        last = lines[-1]
        others = [f"{figure.title} {figure.format_value(last[figure.key])}" for figure in run.figures[1:2]]
        explanation = ", ".join([*others, f"after {counted(last['epochs_done'], 'epoch', 'g')}"])
        entries.append(
            (f"Last {metric.title}, {SHORT_NAMES[weights]}", metric.format_value(last[metric.key]), explanation)
        )
    if run.newest is not None:
        explanation = f"compilation and evaluation included; {counted(run.newest['update'], 'update', ',')}"
        entries.append(("Time", duration(run.newest["seconds"]), explanation))
    if run.images_per_second is not None:
        explanation = "images per second, median of the lines of the log"
        entries.append(("Training speed", format_rate(run.images_per_second), explanation))
    if run.summary is not None:
        explanation = f"{len(run.summary['unreadable_images'])} unreadable images"
        entries.append(("Skipped updates", f"{run.summary['skipped_updates']:,}", explanation))
    return tiles(entries)


def format_rate(rate: float) -> str:
    """Format images per second for reading; from a hundred on, without decimals."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def update_curve(run: RunRecord, key: str, name: str, color: int = 0) -> Series:
    """Return the curve of a figure of the updates against epochs."""
    return Series(name, [u["epochs_done"] for u in run.updates], [u[key] for u in run.updates], color)


def evaluation_curves(run: RunRecord, key: str, prefix: str = "") -> list[Series]:
    """Return the curves of a figure of the evaluations against epochs, one for each kind of weights."""
    return [
        Series(
            prefix + WEIGHTS_NAMES[weights],
            [line["epochs_done"] for line in lines],
            [line[key] for line in lines],
            COLORS[weights],
        )
        for weights, lines in run.by_weights.items()
    ]


def curves(run: RunRecord) -> str:
    """Draw all curves of a run."""
    has_loss = any(figure.key == "loss" for figure in run.task.figures)
    charts = [
        replace(metric_chart(run.metric), series=evaluation_curves(run, run.metric.key)),
        replace(
            LOSS,
            series=[
                update_curve(run, "loss", "training batches", COLORS["training"]),
                *(evaluation_curves(run, "loss", "validation, ") if has_loss else []),
            ],
        ),
        replace(
            LOSS_PARTS,
            series=[update_curve(run, part, part, color) for color, part in enumerate(run.loss_parts)],
        ),
        *(replace(chart, series=[update_curve(run, key, chart.y_label)]) for key, chart in UPDATE_CHARTS.items()),
    ]
    rendered = "".join(map(render, charts))
    if not rendered:
        return "<p>Nothing was logged yet.</p>"
    explanation = (
        "Point at a curve, or choose a chart with the Tab key and go along it with the arrow keys, for its values."
    )
    if has_loss:
        explanation += (
            " The training loss is of augmented images and smoothed labels, so it may lie above that of the validation "
            "images."
        )
    return f'<p class="quiet">{explanation}</p><div class="charts">{rendered}</div>'


def evaluations(run: RunRecord) -> str:
    """Tabulate every evaluation."""
    columns = {
        "epoch": Column("epoch"),
        "update": Column("update"),
        "weights": Column("weights"),
        **{figure.key: Column(with_unit(figure), figure.format) for figure in run.figures},
        "seconds": Column("seconds", ".1f"),
    }
    rows = [[line[key] for key in columns] for line in run.evaluations]
    return table(list(columns.values()), rows, "Validation images", "evaluations") if rows else ""


def updates(run: RunRecord) -> str:
    """Tabulate the updates of the log, or the last of each epoch if there are many."""
    columns = {
        "epoch": Column("epoch"),
        "update": Column("update"),
        "loss": Column("loss", ".4f"),
        "grad_norm": Column("gradient norm", ".4f"),
        "lr": Column("learning rate", ".4e"),
        "loss_scale": Column("loss scale"),
        "images_per_second": Column("images/s", ",.1f"),
        "seconds": Column("seconds", ".1f"),
    }
    lines, title = run.updates, "Every line of the log"
    if len(lines) > LISTED_UPDATES:
        lines, title = list({line["epoch"]: line for line in lines}.values()), "The last line of each epoch"
    rows = [[line[key] for key in columns] for line in lines]
    return details(f"{title} ({len(rows):,})", table(list(columns.values()), rows, name="updates")) if rows else ""


def configuration(run: RunRecord) -> str:
    """Show config.yaml as it is."""
    if not run.config:
        return ""
    text = html.escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
    return details("Every key with its value (config.yaml)", f"<pre>{text}</pre>")


def environment(run: RunRecord) -> str:
    """Describe the environment of each process that trained, the newest last."""
    tables = []
    for number, session in enumerate(run.sessions, 1):
        git = session["git"]
        commit = "no git clone" if git is None else git["commit"] + (", with changes" if git["modified"] else "")
        rows = [
            ["started", f"{session['started']}, after update {session['after_update']}"],
            ["command", session["command"]],
            ["code", commit],
            [
                "device",
                f"{session['device']} x {session['devices']}, {counted(session['global_batch'], 'image')} an update",
            ],
            ["processor", f"{session['processor']}, {session['cores']} cores"],
            ["system", session["system"]],
            ["Python", session["python"]],
            *session["packages"].items(),
        ]
        tables.append(table(["", f"session {number}"], rows, name=f"session-{number}"))
    return "".join(tables)
