"""Judges epochs: which one is the best so far, and by which weights, raw or averaged."""

from collections.abc import Mapping

from focal_twins.tasks.evaluation_file import SHORT_NAMES, WEIGHTS_NAMES
from focal_twins.tasks.task import Figure, Result
from focal_twins.training.checkpoint import Progress


def judging_weights(best_by: str, values: Mapping[str, float]) -> str:
    """Return the weights, "raw" or "ema", by whose figure an epoch is judged.

    Args:
        best_by: ema.best_by of the configuration; "either" is the better one, and the average if they are equal.
        values: the figure of each kind of weights that was evaluated; higher is better.
    """
    if best_by == "either":
        return "raw" if "ema" not in values or values["raw"] > values["ema"] else "ema"
    return best_by if best_by in values else "raw"


class BestEpoch:
    """Compares the evaluations of a run, and keeps what it finds in the run's progress.

    Args:
        progress: of the run; what is found is noted there, so that a resumed run goes on with it.
        metric: the figure that counts; higher is better.
        best_by: ema.best_by of the configuration.
        interval: eval.interval, the epochs between evaluations.
        averaged: whether the run averages its weights.
    """

    def __init__(self, progress: Progress, metric: Figure, best_by: str, interval: int, averaged: bool):
        self.progress, self.metric, self.best_by, self.interval = progress, metric, best_by, interval
        self.usual = "ema" if averaged else "raw"
        if progress.best_epoch and not progress.best_weights:  # of an earlier version, which judged by these
            progress.best_weights = self.usual

    def forget(self) -> None:
        """Begin anew, as in another folder, whose best is still to come."""
        progress = self.progress
        progress.best, progress.best_epoch, progress.best_weights, progress.worse = -1.0, 0, "", 0
        progress.other_best, progress.other_best_epoch = -1.0, 0

    def judge(self, results: Mapping[str, Result]) -> None:
        """Note by which weights an evaluation counts.

        Args:
            results: by the kind of weights, "raw" and perhaps "ema".
        """
        values = {weights: result.figures[self.metric.key] for weights, result in results.items()}
        self.progress.judged_by = judging_weights(self.best_by, values)

    def better(self, results: Mapping[str, Result]) -> Result | None:
        """Compare a whole epoch's results, which were judged, with those before; return the result if it is the best.

        An epoch that is evaluated only because a run was told to stop there does not count as one that is worse: the
        run goes on as if it had not been.
        """
        progress, key = self.progress, self.metric.key
        result = results[progress.judged_by]
        for weights, other in results.items():
            if weights != progress.judged_by and other.figures[key] > progress.other_best:
                progress.other_best, progress.other_best_epoch = other.figures[key], progress.epoch
        if not result.figures[key] > progress.best:
            progress.worse += progress.epoch % self.interval == 0
            return None
        progress.best, progress.best_epoch, progress.worse = result.figures[key], progress.epoch, 0
        progress.best_weights = progress.judged_by
        return result

    @property
    def weights(self) -> str:
        """The kind of weights that the best epoch is best by; before there is one, that counted last."""
        return self.progress.best_weights or self.progress.judged_by or self.usual

    def __str__(self):
        """Say what the best is: "best EMA top-1 98.61% (epoch 3)"."""
        progress = self.progress
        best = f"best {SHORT_NAMES[self.weights]} {self.metric.title} {self.metric.format_value(progress.best)}"
        return f"{best} (epoch {progress.best_epoch})" if progress.best_epoch else "saved"

    def remark(self) -> str | None:
        """Return a line where weights that epochs are not judged by were better; None elsewhere."""
        progress = self.progress
        if not progress.other_best > progress.best:
            return None
        other = WEIGHTS_NAMES["raw" if self.weights == "ema" else "ema"]
        return (
            f"the {other} were better: {self.metric.title} {self.metric.format_value(progress.other_best)} (epoch "
            f"{progress.other_best_epoch}); ema.best_by=either keeps the better of both"
        )
