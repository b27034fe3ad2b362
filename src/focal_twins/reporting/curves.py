"""Defines the charts that reports and comparisons both draw, still without their curves."""

from focal_twins.pages.charts import Chart
from focal_twins.tasks.task import Figure

EPOCHS = "epochs"
LOSS = Chart("Loss", EPOCHS, "loss")
LOSS_PARTS = Chart("Parts of the training loss", EPOCHS, "loss")
# Charts of the updates, by their key in the lines of metrics.jsonl.
UPDATE_CHARTS = {
    "lr": Chart("Learning rate", EPOCHS, "learning rate", from_zero=True),
    "grad_norm": Chart("Gradient norm", EPOCHS, "global norm, unclipped", from_zero=True),
    "loss_scale": Chart("Loss scale", EPOCHS, "loss scale", powers=2),
    "images_per_second": Chart("Training speed", EPOCHS, "images per second", from_zero=True),
}


def metric_chart(metric: Figure) -> Chart:
    """Return the chart of the figure that chooses the best epoch."""
    return Chart(capitalise(metric.title), EPOCHS, with_unit(metric))


def with_unit(figure: Figure) -> str:
    """Return a figure's title and unit as the heading of an axis or column: "top-1, %"."""
    return f"{figure.title}, {figure.unit}" if figure.unit else figure.title


def capitalise(text: str) -> str:
    """Return a text with its first letter as a capital, the rest as it was."""
    return text[:1].upper() + text[1:]
