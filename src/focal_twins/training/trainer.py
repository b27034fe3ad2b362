"""Runs the training loop."""

import math
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal_twins.config.load import Config
from focal_twins.distributed.compile_cache import CompileCache
from focal_twins.distributed.ranks import Dist, collective_failures_named
from focal_twins.errors import UserError
from focal_twins.models.precision import missing_kernels_named
from focal_twins.phrases import counted
from focal_twins.random_streams import Stream, generator
from focal_twins.tasks.evaluation_file import SHORT_NAMES
from focal_twins.tasks.task import Result, evaluate
from focal_twins.training.assemble import assemble
from focal_twins.training.best_epoch import BestEpoch
from focal_twins.training.interruption import Interruption, Stopped
from focal_twins.training.open_gradients import no_open_gradients
from focal_twins.training.opening_lines import opening_lines
from focal_twins.training.outcomes import Diverged, Outcome, Outcomes
from focal_twins.training.progress import ProgressLog, duration
from focal_twins.training.saving import Saver
from focal_twins.training.schedule import learning_rate
from focal_twins.training.session import session
from focal_twins.training.watchdog import Watchdog


class Trainer:
    """Assembles one training run from a configuration, which `run` then makes.

    Raises:
        UserError: data, checkpoints or options that do not fit; nothing on disk has been touched by then.
    """

    def __init__(self, config: Config, dist: Dist):
        self.config, self.dist = config, dist
        self.parts = parts = assemble(config, dist)
        self.task, self.folder, self.state = parts.task, parts.folder, parts.state
        self.model, self.network, self.step = parts.model, parts.network, parts.step
        self.train_batches, self.eval_batches, self.evaluator = parts.train_batches, parts.eval_batches, parts.evaluator
        self.updates_per_epoch, self.global_batch = parts.updates_per_epoch, parts.global_batch
        self.checkpoints, self.metrics = self.folder.checkpoints, self.folder.metrics
        self.metric = self.task.figures[0]
        self.precision = config.precision(dist.device_target)
        self.epochs = parts.length.epochs
        progress, train = self.state.progress, config.train
        self.best = BestEpoch(progress, self.metric, config.ema.best_by, config.eval.interval, config.ema.enabled)
        self.log = ProgressLog(self.epochs, self.updates_per_epoch, progress.update, train.log_interval, dist.is_main)
        self.compile_cache = CompileCache(config, dist, self.model, self.log.line)
        self.saver = None
        if dist.is_main:
            where = f"{parts.resume_from} ({parts.saved_progress.description})" if parts.resume_from else None
            self.saver = Saver(
                self.checkpoints, train.save_interval, train.save_minutes, train.async_save, last_good=where
            )
        most, names = train.max_skipped_updates, self.step.loss_names
        self.outcomes = Outcomes(progress, self.log, self.metrics, self.updates_per_epoch, most, names)
        self.interruption = Interruption(names_it=dist.is_main)
        self.watchdog = Watchdog(config.output / "stalled", dist, train.stall_seconds)

    # --- a run --------------------------------------------------------------------------------------------------------

    def run(self) -> dict:
        """Train to the end and return the run's summary, which is also in summary.json.

        Raises:
            Stopped: a signal asked for it; everything is saved.
            UserError: training diverged, or the last save failed.
        """
        config, progress = self.config, self.state.progress
        last_epoch = min(self.epochs, config.train.stop_after_epoch or self.epochs)
        self._prepare_folder()
        self._announce()
        is_over = progress.epoch >= last_epoch or progress.update >= (config.train.stop_after_update or math.inf)
        if is_over or self._improves_no_more():
            why = (
                ""
                if is_over
                else f" ({counted(progress.worse, 'evaluation')} brought no better figure: train.early_stopping)"
            )
            self.log.line(f"already trained to {progress.description}{why}: {self.newest_or_best}")
            summary = self.folder.summary()
            if summary is None or summary["updates"] != self.parts.saved_progress.update:  # none, or of an earlier end
                summary = self._finish()
            return summary
        if self.dist.is_main:
            self.folder.write_config(config)
            self.folder.write_validation(self.eval_batches.data)
            self.folder.note_session(session(self.dist, progress, self.updates_per_epoch))
        self.metrics.begin(progress.seconds)
        self.started = time.perf_counter() - progress.seconds
        try:
            with self.interruption, self.watchdog:
                try:
                    self._train(last_epoch)
                finally:  # a process among several does not wait for its threads at its end
                    if self.saver is not None:
                        self.saver.wait()
        except Diverged as error:
            self.log.end_epoch()
            self.dist.barrier()
            last_good = self.saver.last_good if self.saver is not None else None
            raise UserError(f"{error}; last good save: {last_good or 'none'}; {Diverged.REMEDY}") from error
        trained = f"to {progress.description}" if progress.images else counted(progress.epoch, "epoch")
        self.log.line(f"trained {trained} in {duration(progress.seconds)}; {self.best}: {self.newest_or_best}")
        if remark := self.best.remark():
            self.log.line(remark)
        return self._finish()

    def _prepare_folder(self) -> None:
        """Prepare the run's folder; before this, nothing but the lock (train.py) has changed on disk."""
        self.folder.make()
        if self.dist.is_main:  # before any rank reads images: the others wait at the barrier
            self.folder.prepare(self.parts.resume_from, self.parts.saved_progress)
        self.dist.barrier()
        if not self.checkpoints.best.exists():  # going on in another folder
            self.best.forget()

    def _train(self, last_epoch: int) -> None:
        """Train, evaluate and save, epoch by epoch."""
        progress = self.state.progress
        for epoch in range(progress.epoch, last_epoch):
            if not self._train_epoch(epoch):
                if not self._is_last_update():
                    self._stop()
                self._evaluate()
                self._save()
                break
            progress.epoch, progress.images = epoch + 1, 0
            ends = progress.epoch == last_epoch or self._is_last_update()
            evaluates = ends or progress.epoch % self.config.eval.interval == 0
            is_best = self._keep_if_best(self._evaluate()) if evaluates else False
            if self.dist.is_main:
                self.folder.write_pending()
            self._save(is_best)
            if self.dist.is_main:
                self.folder.name_unreadable(self.log.line)
            if self._is_last_update():
                break
            if self._improves_no_more() and progress.epoch < last_epoch:
                self.log.line(
                    f"no better {self.metric.title} in {counted(progress.worse, 'evaluation')}: training ends early "
                    "(train.early_stopping)"
                )
                break
            if self._is_stop_agreed() and progress.epoch < last_epoch:
                self._stop()
        self._await_saves()

    def _train_epoch(self, epoch: int) -> bool:
        """Make an epoch's updates, or those that are left; return whether all were made."""
        config, progress, length = self.config, self.state.progress, self.parts.length
        # The last epoch of a run whose length is given in updates may be shorter.
        whole = min(self.updates_per_epoch, length.updates - epoch * self.updates_per_epoch) * self.global_batch
        self.network.set_train()
        self.log.start_epoch(epoch + 1)
        self.watchdog.at("reading images for", progress.update + 1)
        for batches in self._updates():
            rate = learning_rate(
                config.schedule,
                config.optimizer,
                length.updates,
                progress.update,
                self.updates_per_epoch,
                self.global_batch,
            )
            returned = self._update(batches, rate)
            progress.update += 1
            progress.images += self.global_batch
            self.log.advance(progress.update, returned.asnumpy)
            self.outcomes.add(Outcome(progress.update, rate, returned))
            if progress.images == whole:
                if progress.update == length.updates:
                    break
                continue  # the epoch's end has its own save, and the batches must be read to their end
            asked = self.outcomes.stop_agreed or (self.dist.size == 1 and self.interruption.requested)
            if asked or self._is_last_update():
                break
            self._save_if_due()
        self.outcomes.drain()
        self.log.end_epoch()
        if self.outcomes.skipped:
            scale = float(self.state.loss_scale.value.asnumpy())
            self.log.line(f"{counted(self.outcomes.skipped, 'update')} skipped for overflow, loss scale now {scale:g}")
        return progress.images == whole

    def _updates(self) -> Iterator[Iterable[tuple[np.ndarray, ...]]]:
        """Yield the epoch's batches in groups that make an update each; take all of a group before the next."""
        batches = iter(self.train_batches)
        for first in batches:
            yield chain([first], islice(batches, self.config.train.accumulation_steps - 1))

    def _update(self, batches: Iterable[tuple[np.ndarray, ...]], rate: float) -> Tensor:
        """Make one update from its batches; return the outcome that TrainStep gives for the last of them."""
        config, update, returned = self.config, self.state.progress.update, None
        if self.step.counts_first:
            batches = list(batches)
            for part, batch in enumerate(batches):
                self.step.count(*self._inputs(batch, part))
        for part, batch in enumerate(batches):
            self.watchdog.at("in", update + 1)
            completes = part + 1 == config.train.accumulation_steps
            kernels_named = missing_kernels_named(self.precision, self.dist.device_target)
            with kernels_named, collective_failures_named(), no_open_gradients():
                returned = self.compile_cache.call(
                    self.step,
                    Tensor(rate, ms.float32),
                    completes,
                    Tensor(float(self.interruption.requested), ms.float32),
                    *self._inputs(batch, part),
                )
            self.watchdog.at("reading images for", update + 1 + completes)
        return returned

    def _inputs(self, batch: tuple[np.ndarray, ...], part: int) -> tuple:
        """Return the inputs of the loss for a batch, the part-th of its update: its arrays, and the step's noise."""
        noise = generator(self.config.runtime.seed, Stream.NOISE, self.state.progress.update, part, self.dist.rank)
        return (*map(Tensor, batch), *self.task.noise(self.model, noise, batch))

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluate(self) -> dict[str, Result]:
        """Evaluate raw and, where there are any, averaged weights; return the results by the kind of weights."""

        def result_of(weights: str) -> Result:
            result = evaluate(self.network, self._watched_eval_batches(), self.evaluator, self.compile_cache.call)
            self._log_evaluation(weights, result)
            return result

        results = {"raw": result_of("raw")}
        if self.state.ema is not None:
            with self.state.ema.applied():
                results["ema"] = result_of("ema")
        self.best.judge(results)
        return results

    def _watched_eval_batches(self) -> Iterator:
        """Yield the batches and notify the watchdog at each: a whole evaluation may take longer than it waits."""
        self.watchdog.at("evaluating after", self.state.progress.update)
        for batch in self.eval_batches:
            self.watchdog.at("evaluating after", self.state.progress.update)
            yield batch

    def _log_evaluation(self, weights: str, result: Result) -> None:
        progress = self.state.progress
        epoch, done = progress.epoch, ""
        if progress.images:  # train.stop_after_update ends a run within an epoch
            epoch += 1
            done = f"  update {progress.update - progress.epoch * self.updates_per_epoch}/{self.updates_per_epoch}"
        self.log.line(f"epoch {epoch}/{self.epochs}{done}  {weights} {result}")
        self.metrics.add(
            epoch=epoch,
            update=progress.update,
            epochs_done=round(progress.update / self.updates_per_epoch, 6),
            weights=weights,
            **result.figures,
        )

    def _keep_if_best(self, results: dict[str, Result]) -> bool:
        """If an epoch is the best so far, keep its evaluation for the report; return whether it is."""
        result = self.best.better(results)
        if result is not None and self.dist.is_main:
            content = {"checkpoint": str(self.checkpoints.best), "weights": self.best.weights}
            content |= {"epoch": self.state.progress.epoch} | result.content()
            self.folder.keep_evaluation(content, result.arrays(), result.pictures(), result.files())
        return result is not None

    # --- saves and ends -----------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        """Save within an epoch, on the main rank alone; not while updates are skipped."""
        newest = self.outcomes.newest
        if self.saver is None or not self.saver.is_due(self.state.progress.update):
            return
        if newest is None or not newest.finite:
            return
        self.outcomes.note(newest)  # its metrics must be logged before the run can resume from here
        self._save()

    def _save(self, is_best: bool | None = None) -> None:
        """Save on the main rank: within an epoch, or at its end if `is_best` says whether that is the best."""
        progress = self.state.progress
        self.watchdog.at("saving after", progress.update)
        progress.seconds = time.perf_counter() - self.started
        if self.saver is None:
            return
        self.saver.wait()  # before the next copy of the state: there is room for one
        if is_best is None:
            self.saver.save_within_epoch(self.state.snapshot())
        else:
            self.saver.save_epoch(self.state.snapshot(), is_best)

    def _is_last_update(self) -> bool:
        """Tell whether train.stop_after_update ends the run here."""
        return self.state.progress.update == self.config.train.stop_after_update

    def _improves_no_more(self) -> bool:
        """Tell whether train.early_stopping ends the run here."""
        return self.state.progress.worse >= (self.config.train.early_stopping or math.inf)

    def _is_stop_agreed(self) -> bool:
        """Tell whether any process was asked to stop; all processes call this together."""
        requests = self.dist.sum(np.array([self.interruption.requested], np.float32))
        return self.outcomes.stop_agreed or bool(requests[0])

    def _await_saves(self) -> None:
        """Wait until the main rank's last save is written: launchers end all processes when the first exits.

        Raises:
            CheckpointError: the save failed; raised on every rank, so that no exit code says that all is saved.
        """

        def finish() -> None:
            if self.saver is not None:
                self.saver.finish()

        self.dist.on_main(finish, "the last save failed; see the main process's line")

    def _stop(self) -> None:
        """End the run as a signal asked for, with everything saved.

        Raises:
            Stopped: always, unless the save fails.
            CheckpointError: the save failed.
        """
        progress = self.state.progress
        where = f"epoch {progress.epoch}"
        if progress.images:
            within = progress.update - progress.epoch * self.updates_per_epoch
            where = f"epoch {progress.epoch + 1}, update {within} of {self.updates_per_epoch}"
            self._save()
        self._await_saves()
        if self.dist.is_main:
            self.folder.write_pending()
        raise Stopped(f"stopped by {self.interruption.name} after {where}; saved {self.checkpoints.last}")

    # --- messages and the summary -------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Log the model, data and device of the run and, where a run resumes, the changes."""
        for line in opening_lines(self.parts, self.config, self.dist):
            self.log.line(line)

    @property
    def newest_or_best(self) -> Path:
        """Return the best checkpoint or, where no whole epoch was evaluated yet, the newest."""
        return self.checkpoints.best if self.state.progress.best_epoch else self.checkpoints.last

    def _finish(self) -> dict:
        """Write and return the summary of a run that has come to its end."""
        progress = self.state.progress
        summary = {
            "epochs": progress.epoch,
            "updates": progress.update,
            "metric": self.metric.key,
            "best": progress.best,
            "best_epoch": progress.best_epoch,
            "weights": SHORT_NAMES[self.best.weights],
            "seconds": round(progress.seconds, 1),
            "skipped_updates": progress.skipped,
            "unreadable_images": sorted(self.folder.unreadable_images()),
            "checkpoint": str(self.newest_or_best),
        }
        if self.dist.is_main:
            self.folder.finish(summary)
        return summary
