"""The training loop."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.config.load import Config
from src.data.image_set import ImageSet, check_classes
from src.data.open_images import open_images
from src.data.pipeline import EvalBatches, TrainBatches, configure_reading, resolve_workers
from src.data.transforms import EvalTransform, TrainTransform
from src.distributed.ranks import Dist, collective_failures_named
from src.errors import UserError
from src.files.weights import load_weights
from src.inference.evaluate import evaluate, valid_labels
from src.models.precision import apply_precision, missing_kernels_named
from src.random_streams import Stream, generator
from src.tasks.classification.evaluation_report import report
from src.tasks.classification.label_maps import LabelSpace
from src.tasks.classification.loss import SoftTargetCrossEntropy
from src.tasks.classification.metrics import Metrics, Scoring
from src.training.checkpoint import CheckpointError, TrainState
from src.training.ema import ExponentialMovingAverage
from src.training.interruption import Interruption, Stopped
from src.training.optimizer import create_optimizer
from src.training.outcomes import Diverged, Outcome, Outcomes
from src.training.progress import ProgressLog, duration
from src.training.resuming import changes
from src.training.run_folder import RunFolder
from src.training.saving import Saver
from src.training.schedule import learning_rate
from src.training.session import session
from src.training.train_step import LossScale, TrainStep
from src.training.watchdog import Watchdog


class Trainer:
    """One training run: built from a configuration, then `run`.

    Raises:
        UserError: data, checkpoints or options that do not fit; nothing saved has been touched by then.
    """

    def __init__(self, config: Config, dist: Dist):
        self.config, self.dist = config, dist
        self.folder = RunFolder(config.output, config.train.keep_checkpoints, dist.is_main)
        self.checkpoints, self.metrics = self.folder.checkpoints, self.folder.metrics
        self.resume_from, saved = self.folder.save_to_resume(config.train.resume, self._announce_line)

        if config.eval.class_map:
            raise config.error("eval.class_map", "is for eval.py; training evaluates on the classes it trains")
        if config.train.epochs is None:
            raise config.error("train.updates", "classification trains by epochs; give train.epochs")
        self.epochs = config.train.epochs
        arguments = config.model.resolved()
        train_images = open_images(config.data.path, config.data.train)
        val_images = open_images(config.data.path, config.data.val, train_images.classes)
        check_classes(train_images, val_images, arguments["num_classes"])
        self.num_classes = arguments["num_classes"]

        self.model = config.build_model(dist.device_target)
        if config.train.pretrained and saved is None:
            self._load_pretrained(Path(config.train.pretrained))
        self.model.freeze(config.train.frozen_stages)
        self.state = TrainState(
            model=self.model,
            optimizer=create_optimizer(self.model, config.optimizer),
            loss_scale=LossScale(
                1.0 if config.amp.loss_scale == "none" else config.amp.init_scale,
                config.amp.loss_scale == "dynamic",
                config.amp.growth_interval,
            ),
            ema=ExponentialMovingAverage(self.model.trainable_params(), config.ema.decay, config.ema.warmup)
            if config.ema.enabled
            else None,
            config=config,
            classes=train_images.classes,
        )
        self.saved_config: dict | None = None
        if saved is not None and self.resume_from is not None:
            self.saved_config = self.state.restore(saved, self.resume_from)
        del saved  # gigabytes
        self.saved_progress = replace(self.state.progress)
        progress = self.state.progress
        if not dist.agree(np.array([progress.epoch, progress.images])).all():
            raise UserError(
                f"the processes found different checkpoints under {config.output}; a run needs a folder that all see"
            )
        if dist.size > 1 and not dist.agree(np.array([self.state.weights_checksum()])).all():
            raise UserError(
                "the processes start from different weights; give all the same file, and the same versions of packages"
            )
        self.folder.make()
        if dist.is_main:  # before any rank reads images, which the next line sees to
            self.folder.prepare(self.resume_from, progress)
        dist.barrier()
        if not self.checkpoints.best.exists():  # going on in another folder, whose best is still to come
            progress.best_top1, progress.best_epoch = -1.0, 0
        self._build_data(train_images, val_images)

        self.network = apply_precision(self.model, config.amp.level)
        parameters = self.model.trainable_params()
        self.step = TrainStep(
            SoftTargetCrossEntropy(self.network),
            parameters,
            self.state.optimizer,
            self.state.loss_scale,
            ema=self.state.ema,
            clip_norm=config.optimizer.clip_norm,
            accumulation_steps=config.train.accumulation_steps,
            reducer=dist.gradient_reducer(parameters),
            ranks=dist.size,
            float_status=dist.device_target == "Ascend",
        )
        self.step.set_train()
        self.log = ProgressLog(
            self.epochs,
            self.updates_per_epoch,
            progress.update,
            config.train.log_interval,
            dist.is_main,
        )
        self.saver = None
        if dist.is_main:
            self.saver = Saver(
                self.checkpoints,
                config.train.save_interval,
                config.train.save_minutes,
                config.train.async_save,
                last_good=f"{self.resume_from} ({self.saved_progress.where})" if self.resume_from else None,
            )
        self.outcomes = Outcomes(
            progress,
            self.log,
            self.metrics,
            self.updates_per_epoch,
            config.train.max_skipped_updates,
            self.step.loss_names,
        )
        self.interruption = Interruption()
        self.watchdog = Watchdog(config.output / "stalled", dist, config.train.stall_seconds)

    def _announce_line(self, line: str) -> None:
        """For the main rank, before there is a log."""
        if self.dist.is_main:
            print(line, flush=True)

    def _load_pretrained(self, path: Path) -> None:
        """Start from weights, of other image sizes and classes too; what is not simply copied is announced."""
        if not path.exists():
            raise self.config.error(
                "train.pretrained", f"{path}: no such file; name another, or null for random initial weights"
            )
        load_weights(self.model, path, announce=self._announce_line)

    def _build_data(self, train_images: ImageSet, val_images: ImageSet) -> None:
        config, dist, progress = self.config, self.dist, self.state.progress
        train = config.train
        size = tuple(self.model.img_size)
        # Every rank names what its own workers could not read; the main one gathers the files.
        self.unreadable = self.folder.unreadable(dist.rank)
        self.global_batch = train.batch_size * train.accumulation_steps * dist.size
        self.updates_per_epoch = train_images.size // self.global_batch
        # Epochs and images are what a checkpoint counts: under another global batch they are another number of updates.
        updates_done = min(progress.images // self.global_batch, max(self.updates_per_epoch - 1, 0))
        progress.update = progress.epoch * self.updates_per_epoch + updates_done
        progress.images = updates_done * self.global_batch
        progress.devices, progress.global_batch = dist.size, self.global_batch
        configure_reading(config.data)
        cooldown = config.schedule.cooldown_epochs
        reading: dict[str, Any] = {
            "unreadable": self.unreadable,
            "rank": dist.rank,
            "ranks": dist.size,
            "workers": resolve_workers(config.data.workers, dist.local_size),
        }
        self.train_batches = TrainBatches(
            train_images,
            TrainTransform(
                size,
                config.augment,
                config.runtime.seed,
                config.data.mean,
                math.floor(self.epochs - cooldown) if cooldown else math.inf,
            ),
            config.data,
            batch_size=train.batch_size,
            batches_per_update=train.accumulation_steps,
            epochs=self.epochs,
            first_epoch=progress.epoch,
            first_batch=updates_done * train.accumulation_steps,
            **reading,
        )
        remaining = max(self.epochs - progress.epoch, 1)
        self.eval_batches = EvalBatches(
            val_images,
            EvalTransform(size, config.eval.crop_ratio, config.augment.interpolation),
            config.data,
            batch_size=config.eval.batch_size,
            passes=remaining * (2 if config.ema.enabled else 1),
            **reading,
        )
        self.val_images = val_images
        self.scoring = Scoring(
            LabelSpace.of_names(val_images.classes, val_images.classes),
            val_images.size,
            valid_labels(config, val_images, self.num_classes),
            config.eval.flip,
        )

    def run(self) -> dict:
        """Train to the end; returns the run's summary, which is also in summary.json.

        Raises:
            Stopped: a signal asked for it; everything is saved.
            UserError: training diverged, or the last save failed.
        """
        config, progress = self.config, self.state.progress
        last_epoch = min(self.epochs, config.train.stop_after_epoch or self.epochs)
        self._announce()
        if progress.epoch >= last_epoch or progress.update >= (config.train.stop_after_update or math.inf):
            self.log.line(f"already trained to {progress.where}: {self.newest_or_best}")
            summary = self.folder.summary()
            if summary is None or summary["updates"] != self.saved_progress.update:  # none, or of an earlier end
                summary = self._finish()
            return summary
        if self.dist.is_main:
            self.folder.write_config(config)
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
        trained = f"to {progress.where}" if progress.images else f"{progress.epoch} epochs"
        best = f"best {self.best_weights} top-1 {progress.best_top1:.2f}% (epoch {progress.best_epoch})"
        self.log.line(
            f"trained {trained} in {duration(progress.seconds)}; {best if progress.best_epoch else 'saved'}: "
            f"{self.newest_or_best}"
        )
        return self._finish()

    def _train(self, last_epoch: int) -> None:
        """Train, evaluate and save, epoch by epoch."""
        progress = self.state.progress
        for epoch in range(progress.epoch, last_epoch):
            if not self._train_epoch(epoch):
                if not self._is_last_update():
                    self._stop()
                self._measure()
                self._save()
                break
            progress.epoch, progress.images = epoch + 1, 0
            ends = progress.epoch == last_epoch or self._is_last_update()
            evaluates = ends or progress.epoch % self.config.eval.interval == 0
            is_best = self._evaluate() if evaluates else False
            if self.dist.is_main:
                self.folder.write_pending()
            self._save(is_best)
            if self.dist.is_main:
                self.folder.name_unreadable(self.log.line)
            if self._is_last_update():
                break
            if self._is_stop_agreed() and progress.epoch < last_epoch:
                self._stop()
        self._await_saves()

    def _is_last_update(self) -> bool:
        """Whether train.stop_after_update ends the run here."""
        return self.state.progress.update == self.config.train.stop_after_update

    def _is_stop_agreed(self) -> bool:
        """Whether any process was asked to stop, where all call this together."""
        requests = self.dist.sum(np.array([self.interruption.requested], np.float32))
        return self.outcomes.stop_agreed or bool(requests[0])

    def _await_saves(self) -> None:
        """Wait until the main rank's last save is written: launchers end all processes when the first exits.

        Raises:
            CheckpointError: it failed; on every rank, for none may then say by its exit code that all is saved.
        """
        failure = None
        try:
            if self.saver is not None:
                self.saver.finish()
        except CheckpointError as error:
            failure = error
        failed = self.dist.sum(np.array([failure is not None], np.float32))[0]
        if failed:
            raise failure or CheckpointError("the last save failed; see the main process's line")

    def _stop(self) -> None:
        """End as a signal asked for, with everything saved.

        Raises:
            Stopped: always, unless the save fails.
            CheckpointError: then.
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
        raise Stopped(
            f"stopped by {self.interruption.name} after {where}; saved {self.checkpoints.last}; "
            "go on with train.resume=auto"
        )

    def _announce(self) -> None:
        config, progress = self.config, self.state.progress
        parameters = sum(parameter.size for parameter in self.model.trainable_params())
        self.log.line(
            f"{config.model.name}: {parameters:,} parameters, {self.num_classes} classes, "
            f"{self.dist.device_target} x {self.dist.size}, {self.updates_per_epoch} updates of {self.global_batch} "
            f"images an epoch, amp {config.amp.level}"
        )
        if config.train.frozen_stages:
            frozen = config.train.frozen_stages
            stages = len(self.model.depths)
            self.log.line(f"frozen: the patch embedding and {frozen} of {stages} stages, beside the parameters above")
        if self.saved_config is not None:
            within = progress.update - progress.epoch * self.updates_per_epoch
            where = f"epoch {progress.epoch}" + (f" and {within} updates of the next" if within else "")
            self.log.line(f"resuming {self.resume_from} after {where}")
            for line in changes(
                self.saved_config,
                config,
                self.saved_progress,
                progress,
                self.train_batches.images.size,
                self.updates_per_epoch,
            ):
                self.log.line(line)

    def _train_epoch(self, epoch: int) -> bool:
        """One epoch of updates, or what is left of it; returns whether all were made, and not ended by a signal."""
        config, progress = self.config, self.state.progress
        accumulation = config.train.accumulation_steps
        whole = self.updates_per_epoch * self.global_batch
        self.network.set_train()
        self.log.start_epoch(epoch + 1)
        self.watchdog.at("reading images for", progress.update + 1)
        for index, (images, targets) in enumerate(self.train_batches):
            rate = learning_rate(
                config.schedule,
                config.optimizer,
                self.epochs * self.updates_per_epoch,
                progress.update,
                self.updates_per_epoch,
                self.global_batch,
            )
            completes = (index + 1) % accumulation == 0
            returned = self._step(images, targets, rate, index % accumulation, completes)
            self.watchdog.at("reading images for", progress.update + 1 + completes)
            if not completes:
                continue
            progress.update += 1
            progress.images += self.global_batch
            self.log.advance(progress.update, returned.asnumpy)
            self.outcomes.add(Outcome(progress.update, rate, returned))
            if progress.images == whole:
                continue  # the epoch's end has its own save, and the batches must come to theirs
            asked = self.outcomes.stop_agreed or (self.dist.size == 1 and self.interruption.requested)
            if asked or self._is_last_update():
                break
            self._save_if_due()
        self.outcomes.drain()
        self.log.end_epoch()
        if self.outcomes.skipped:
            scale = float(self.state.loss_scale.value.asnumpy())
            self.log.line(f"{self.outcomes.skipped} updates skipped for overflow, loss scale now {scale:g}")
        return progress.images == whole

    def _save_if_due(self) -> None:
        """Save within an epoch, on the main rank alone; not while updates are skipped."""
        newest = self.outcomes.newest
        if self.saver is None or not self.saver.is_due(self.state.progress.update):
            return
        if newest is None or not newest.finite:
            return
        self.outcomes.note(newest)  # what is logged of it must be there when the run resumes from here
        self._save()

    def _save(self, is_best: bool | None = None) -> None:
        """Save on the main rank: within an epoch, or at its end where it is said whether that is the best."""
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

    def _step(self, images: np.ndarray, targets: np.ndarray, rate: float, part: int, completes: bool):
        config, progress = self.config, self.state.progress
        noise = generator(config.runtime.seed, Stream.NOISE, progress.update, part, self.dist.rank)
        self.watchdog.at("in", progress.update + 1)
        with missing_kernels_named(config.amp.level, self.dist.device_target), collective_failures_named():
            return self.step(
                Tensor(rate, ms.float32),
                completes,
                Tensor(float(self.interruption.requested), ms.float32),
                Tensor(images),
                Tensor(targets),
                self.model.draw_drop_path(noise, len(targets)),
                Tensor(noise.integers(2**31), ms.int32),
            )

    def _evaluate(self) -> bool:
        """Evaluate after an epoch; returns whether this is the best so far."""
        metrics = self._measure()
        is_best = self._is_best(metrics)
        if is_best and self.dist.is_main:
            content: dict[str, object] = {
                "checkpoint": str(self.checkpoints.best),
                "weights": self.best_weights.lower(),
            }
            content |= {"epoch": self.state.progress.epoch}
            content |= report(metrics, self.scoring, self.config, self.val_images, self.model.img_size)
            self.folder.keep_evaluation(content, metrics.confusion)
        return is_best

    def _measure(self) -> Metrics:
        """Evaluate raw and, where there are, averaged weights; returns the metrics of the latter."""
        batch_size = self.config.eval.batch_size
        metrics = evaluate(self.network, self._watched_eval_batches(), batch_size, self.dist, self.scoring)
        self._log_evaluation("raw", metrics)
        if self.state.ema is not None:
            with self.state.ema.applied():
                metrics = evaluate(self.network, self._watched_eval_batches(), batch_size, self.dist, self.scoring)
            self._log_evaluation("ema", metrics)
        return metrics

    def _watched_eval_batches(self):
        """One pass, each batch a sign of life: a whole evaluation may take longer than the watchdog waits."""
        self.watchdog.at("evaluating after", self.state.progress.update)
        for batch in self.eval_batches:
            self.watchdog.at("evaluating after", self.state.progress.update)
            yield batch

    def _log_evaluation(self, weights: str, metrics: Metrics) -> None:
        progress = self.state.progress
        epoch, done = progress.epoch, ""
        if progress.images:  # train.stop_after_update ends a run within an epoch
            epoch += 1
            done = f"  update {progress.update - progress.epoch * self.updates_per_epoch}/{self.updates_per_epoch}"
        self.log.line(f"epoch {epoch}/{self.epochs}{done}  {weights} {metrics}")
        self.metrics.add(
            epoch=epoch,
            update=progress.update,
            epochs_done=round(progress.update / self.updates_per_epoch, 6),
            weights=weights,
            top1=metrics.top1,
            top5=metrics.top5,
            loss=metrics.loss,
        )

    def _is_best(self, metrics: Metrics) -> bool:
        progress = self.state.progress
        if metrics.top1 <= progress.best_top1:
            return False
        progress.best_top1, progress.best_epoch = metrics.top1, progress.epoch
        return True

    @property
    def best_weights(self) -> str:
        """The weights by which the best epoch is chosen."""
        return "EMA" if self.state.ema is not None else "raw"

    @property
    def newest_or_best(self) -> Path:
        """The best checkpoint or, where no whole epoch was evaluated yet, the newest."""
        return self.checkpoints.best if self.state.progress.best_epoch else self.checkpoints.last

    def _finish(self) -> dict:
        progress = self.state.progress
        summary = {
            "epochs": progress.epoch,
            "updates": progress.update,
            "best_top1": progress.best_top1,
            "best_epoch": progress.best_epoch,
            "weights": self.best_weights,
            "seconds": round(progress.seconds, 1),
            "skipped_updates": progress.skipped,
            "unreadable_images": sorted(self.folder.unreadable_images()),
            "checkpoint": str(self.newest_or_best),
        }
        if self.dist.is_main:
            self.folder.finish(summary)
        return summary
