"""The training loop."""

import json
import math
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.atomic import write_text
from src.config import Config, flatten
from src.data.image_set import ImageSet, check_classes, open_images
from src.data.label_maps import LabelSpace
from src.data.pipeline import EvalBatches, TrainBatches, UnreadableImages, configure_reading, resolve_workers
from src.data.transforms import EvalTransform, TrainTransform
from src.distributed import Dist
from src.errors import UserError
from src.evaluation import evaluate, valid_labels
from src.evaluation_report import report, write_report
from src.metrics import Metrics, Scoring
from src.precision import apply_precision, missing_kernels_named
from src.random_streams import Stream, generator
from src.training.checkpoint import CheckpointError, CheckpointFolder, TrainState
from src.training.ema import ExponentialMovingAverage
from src.training.loss import SoftTargetCrossEntropy
from src.training.optimizer import create_optimizer
from src.training.progress import ProgressLog, duration
from src.training.schedule import learning_rate
from src.training.train_step import LossScale, TrainStep
from src.weights import load_weights

# Keys that may differ between a run and its continuation without changing what is trained.
INCIDENTAL = (
    "name",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.numa",
    "train.resume",
    "train.stop_after_epoch",
    "train.log_interval",
    "train.keep_checkpoints",
    "train.save_interval",
    "runtime.output",
    "runtime.device_id",
)


class Trainer:
    """One training run: built from a configuration, then `run`.

    Raises:
        UserError: data, checkpoints or options that do not fit; nothing saved has been touched by then.
    """

    def __init__(self, config: Config, dist: Dist):
        self.config, self.dist = config, dist
        self.output = config.output
        self.checkpoints = CheckpointFolder(self.output / "checkpoints", config.train.keep_checkpoints)
        resume_from = self._resume_from()

        if config.eval.class_map:
            raise config.error("eval.class_map", "is for eval.py; training evaluates on the classes it trains")
        arguments = config.model.resolved()
        train_images = open_images(config.data.path, config.data.train)
        val_images = open_images(config.data.path, config.data.val, train_images.classes)
        check_classes(train_images, val_images, arguments["num_classes"])
        self.num_classes = arguments["num_classes"]

        self.model = config.build_model(dist.device_target)
        if config.train.pretrained and resume_from is None:
            self._load_pretrained()
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
        self.resume_from = resume_from
        self.saved_config = self.state.restore(resume_from) if resume_from is not None else None
        if not self.checkpoints.best.exists():  # going on in another folder, whose best is still to come
            self.state.progress.best_top1, self.state.progress.best_epoch = -1.0, 0
        make_folder(self.output)
        if dist.is_main:  # before any rank reads images, which the next line sees to
            for earlier in self.output.glob("unreadable_images_*.txt"):
                earlier.unlink()
        progress = self.state.progress
        if not dist.agree([progress.epoch, progress.images]).all():
            raise UserError(
                f"the processes found different checkpoints under {self.output}; a run needs a folder that all see"
            )
        self._build_data(train_images, val_images)

        self.network = apply_precision(self.model, config.amp.level)
        parameters = self.model.trainable_params()
        self.step = TrainStep(
            self.network,
            SoftTargetCrossEntropy(),
            parameters,
            self.state.optimizer,
            self.state.loss_scale,
            ema=self.state.ema,
            clip_norm=config.optimizer.clip_norm,
            accumulation_steps=config.train.accumulation_steps,
            reducer=dist.gradient_reducer(parameters),
            float_status=dist.device_target == "Ascend",
        )
        self.step.set_train()

    def _resume_from(self) -> Path | None:
        """The checkpoint to go on from, or None to begin."""
        resume, last = self.config.train.resume, self.checkpoints.last
        path = Path(resume) if isinstance(resume, str) and resume != "auto" else None
        if last.exists() and (path is None or not path.exists() or not path.samefile(last)):
            if path is None and resume:
                return last
            raise UserError(
                f"{self.output} holds a run; train.resume=auto goes on with it, runtime.output=FOLDER starts another"
            )
        return path

    def _load_pretrained(self) -> None:
        """Start from weights, of other image sizes and classes too; what is not simply copied is announced."""
        path = Path(self.config.train.pretrained)
        if not path.exists():
            raise self.config.error(
                "train.pretrained", f"{path}: no such file; name another, or null for random initial weights"
            )
        load_weights(self.model, path, announce=print if self.dist.is_main else lambda line: None)

    def _build_data(self, train_images: ImageSet, val_images: ImageSet) -> None:
        config, dist, progress = self.config, self.dist, self.state.progress
        train = config.train
        size = tuple(self.model.img_size)
        # Every rank names what its own workers could not read; the main one gathers the files.
        self.unreadable = UnreadableImages(self.output / f"unreadable_images_{dist.rank}.txt")
        self.named = set()
        self.global_batch = train.batch_size * train.accumulation_steps * dist.size
        self.updates_per_epoch = train_images.size // self.global_batch
        # Epochs and images are what a checkpoint counts: under another global batch they are another number of updates.
        updates_done = min(progress.images // self.global_batch, max(self.updates_per_epoch - 1, 0))
        progress.update = progress.epoch * self.updates_per_epoch + updates_done
        configure_reading(config.data)
        cooldown = config.schedule.cooldown_epochs
        reading = {
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
                math.floor(train.epochs - cooldown) if cooldown else math.inf,
            ),
            config.data,
            batch_size=train.batch_size,
            batches_per_update=train.accumulation_steps,
            epochs=train.epochs,
            first_epoch=progress.epoch,
            first_batch=updates_done * train.accumulation_steps,
            **reading,
        )
        remaining = max(train.epochs - progress.epoch, 1)
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
            valid_labels(config, val_images, self.num_classes),
            config.eval.flip,
        )

    def run(self) -> dict:
        """Train to the end; returns the run's summary, which is also in summary.json."""
        config, progress = self.config, self.state.progress
        last_epoch = min(config.train.epochs, config.train.stop_after_epoch or config.train.epochs)
        self.log = ProgressLog(
            config.train.epochs,
            self.updates_per_epoch,
            progress.update,
            config.train.log_interval,
            self.dist.is_main,
        )
        self._announce()
        if progress.epoch >= last_epoch:
            self.log.line(f"already trained to epoch {progress.epoch}: {self.checkpoints.best}")
            summary = self.output / "summary.json"
            return json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else self._finish()
        if self.dist.is_main:
            write_text(self.output / "config.yaml", config.to_yaml())
        self.started = time.perf_counter() - progress.seconds
        for epoch in range(progress.epoch, last_epoch):
            self._train_epoch(epoch)
            progress.epoch, progress.images = epoch + 1, 0
            evaluates = progress.epoch % config.eval.interval == 0 or progress.epoch == last_epoch
            is_best = self._evaluate() if evaluates else False
            progress.seconds = time.perf_counter() - self.started
            if self.dist.is_main:
                self.checkpoints.save(self.state, is_best)
                self._name_unreadable()
        self.log.line(
            f"trained {progress.epoch} epochs in {duration(progress.seconds)}; best {self.best_weights} top-1 "
            f"{progress.best_top1:.2f}% (epoch {progress.best_epoch}): {self.checkpoints.best}"
        )
        return self._finish()

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
        if self.resume_from is not None:
            within = progress.update - progress.epoch * self.updates_per_epoch
            where = f"epoch {progress.epoch}" + (f" and {within} updates of the next" if within else "")
            self.log.line(f"resuming {self.resume_from} after {where}")
            for key, before, now in changed_keys(self.saved_config, config):
                self.log.line(f"changed since: {key} {before} -> {now}")

    def _train_epoch(self, epoch: int) -> None:
        """One epoch of updates, or what is left of it."""
        config, progress = self.config, self.state.progress
        accumulation = config.train.accumulation_steps
        self.network.set_train()
        self.log.start_epoch(epoch + 1)
        finite_flags = []
        for index, (images, targets) in enumerate(self.train_batches):
            rate = learning_rate(
                config.schedule,
                config.optimizer,
                config.train.epochs,
                progress.update,
                self.updates_per_epoch,
                self.global_batch,
            )
            completes = (index + 1) % accumulation == 0
            loss, _, finite = self._step(images, targets, rate, index % accumulation, completes)
            if completes:
                progress.update += 1
                finite_flags.append(finite)
                self.log.update(progress.update, self.global_batch, lambda value=loss: float(value.asnumpy()), rate)
                self._save_within_epoch(finite_flags)
        self.log.end_epoch()
        self._count_skipped(finite_flags)

    def _save_within_epoch(self, finite_flags: list[Tensor]) -> None:
        """Write last.ckpt when train.save_interval says so; the end of an epoch has its own save."""
        progress, interval = self.state.progress, self.config.train.save_interval
        within = progress.update % self.updates_per_epoch
        if interval is None or progress.update % interval or within == 0:
            return
        self._count_skipped(finite_flags)
        progress.images = within * self.global_batch
        progress.seconds = time.perf_counter() - self.started
        if self.dist.is_main:
            self.checkpoints.save_within_epoch(self.state)

    def _count_skipped(self, finite_flags: list[Tensor]) -> None:
        """Take the flags of updates into the count of skipped ones, and empty the list."""
        skipped = sum(not bool(flag.asnumpy()) for flag in finite_flags)
        finite_flags.clear()
        self.state.progress.skipped += skipped
        if skipped:
            scale = float(self.state.loss_scale.value.asnumpy())
            self.log.line(f"{skipped} updates skipped for overflow, loss scale now {scale:g}")

    def _step(self, images: np.ndarray, targets: np.ndarray, rate: float, part: int, completes: bool):
        config, progress = self.config, self.state.progress
        noise = generator(config.runtime.seed, Stream.NOISE, progress.update, part, self.dist.rank)
        with missing_kernels_named(config.amp.level, self.dist.device_target):
            return self.step(
                Tensor(images),
                Tensor(targets),
                Tensor(rate, ms.float32),
                self.model.draw_drop_path(noise, len(targets)),
                Tensor(noise.integers(2**31), ms.int32),
                completes,
            )

    def _evaluate(self) -> bool:
        """Evaluate raw and averaged weights; returns whether this is the best epoch so far."""
        progress = self.state.progress
        batch_size = self.config.eval.batch_size
        metrics = evaluate(self.network, self.eval_batches, batch_size, self.dist, self.scoring)
        self.log.line(f"epoch {progress.epoch}/{self.config.train.epochs}  raw {metrics}")
        if self.state.ema is not None:
            with self.state.ema.applied():
                metrics = evaluate(self.network, self.eval_batches, batch_size, self.dist, self.scoring)
            self.log.line(f"epoch {progress.epoch}/{self.config.train.epochs}  ema {metrics}")
        is_best = self._is_best(metrics)
        if is_best and self.dist.is_main:
            content = {"checkpoint": str(self.checkpoints.best), "weights": self.best_weights.lower()}
            content |= {"epoch": progress.epoch}
            content |= report(metrics, self.scoring, self.config, self.val_images, self.model.img_size)
            write_report(self.output / "evaluation.json", content, metrics.confusion)
        return is_best

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

    def _name_unreadable(self) -> None:
        """Report images that were found unreadable since the last call."""
        found = {}
        for path in sorted(self.output.glob("unreadable_images_*.txt")):
            found |= UnreadableImages(path).read()
        new = [image for image in found if image not in self.named]
        for image in new:
            self.log.line(
                f"unreadable image {image} ({found[image]}): the next of its class takes its place in training, "
                "evaluation does not count it"
            )
        self.named.update(new)
        if new:
            self.log.line(f"{len(self.named)} unreadable images so far")

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
            "unreadable_images": sorted(self.named),
            "checkpoint": str(self.checkpoints.best),
        }
        if self.dist.is_main:
            write_text(self.output / "summary.json", json.dumps(summary, indent=2))
        return summary


def make_folder(path: Path) -> None:
    """Make the folder of a run.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"output folder {path}: cannot be written ({error.strerror})") from error


def changed_keys(then: dict, config: Config) -> list[tuple[str, object, object]]:
    """(key, value then, value now) of what an earlier configuration has otherwise, where it matters."""
    then, now = flatten(then), flatten(config.to_dict())
    keys = [key for key in {**then, **now} if key not in INCIDENTAL]
    return [(key, then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)]
