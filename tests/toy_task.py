"""Defines the smallest task that uses all of a task's interface: it fits lines to points, of which some are missing.

A sample is eight numbers and their targets, some of them unknown, so that the divisor of the loss differs from batch to
batch. There is no class, no image and no logit.
"""

from pathlib import Path
from typing import Any

import mindspore.dataset as ds
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.config.schema import Section
from focal_twins.config.task_sections import TASK_SECTIONS, TaskSections
from focal_twins.data.dataset import Dataset
from focal_twins.data.pipeline import EvalSamples, TrainSamples
from focal_twins.models import registry
from focal_twins.pages.page import Section as PageSection
from focal_twins.tasks.evaluation_file import check_keys
from focal_twins.tasks.find_task import TASKS
from focal_twins.tasks.losses import Losses
from focal_twins.tasks.task import Evaluator, Figure, Result, Signature, Task, TensorSpec

WIDTH = 8
MATRIX = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)


class ToyData(Section):
    path: str = "."
    size: int = 96
    workers: int = 1
    prefetch: int = 1
    numa: bool = False


class ToyAugment(Section):
    noise: float = 0.1


class ToyEval(Section):
    batch_size: int = 16
    interval: int = 1


class Points(Dataset):
    """Gives numbers [WIDTH] drawn by their index, and a mask of their known targets."""

    columns = ("point", "known")
    classes = ()
    description = f"{WIDTH} numbers a point"

    def __init__(self, path, size, first):
        self.path, self.size, self.first = Path(path), size, first

    def __getitem__(self, index):
        generator = np.random.default_rng(self.first + int(index))
        known = (generator.random(WIDTH) < generator.random()).astype(np.float32)
        return generator.standard_normal(WIDTH).astype(np.float32), known

    def __len__(self):
        return self.size

    def reader(self, sampler):
        return ds.GeneratorDataset(self, list(self.columns), sampler=sampler, python_multiprocessing=False)

    @property
    def names(self):
        return [f"point {index}" for index in range(self.size)]

    def content(self, index):
        raise OSError("points are in no file")


class ToyTrainSamples(TrainSamples):
    outputs = ("x", "y", "mask")

    def __init__(self, noise, seed):
        self.noise, self.seed = noise, seed

    def sample(self, columns, epoch, position):
        point, known = columns
        drawn = np.random.default_rng([self.seed, epoch, position]).standard_normal(WIDTH).astype(np.float32)
        return point, (point @ MATRIX + self.noise * drawn).astype(np.float32), known

    def batch(self, arrays, key):
        return arrays


class ToyEvalSamples(EvalSamples):
    outputs = ("x", "y", "mask")

    def sample(self, columns, index):
        point, known = columns
        return point, (point @ MATRIX).astype(np.float32), known

    def batch(self, arrays):
        return arrays


class ToyNetwork(nn.Cell):
    """Multiplies by one matrix. Its constructor's argument is the one key of the section model."""

    no_weight_decay = ()

    @staticmethod
    def check(arguments):
        assert arguments["width"] == WIDTH

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.dense = nn.Dense(width, width, weight_init="zeros", has_bias=False)

    def construct(self, x):
        return self.dense(x)

    def freeze(self, stages):
        assert stages == 0


class ToyLosses(Losses):
    """Computes the mean square and the mean absolute error over all known targets of an update."""

    names = ("square", "absolute")
    weight_floors = (1.0, 1.0)

    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x, y, mask):
        error = (self.network(x) - y) * mask
        known = mask.sum()
        return ops.stack((ops.square(error).sum(), 0.1 * ops.abs(error).sum())), ops.stack((known, known))


class ToyResult(Result):
    def __init__(self, square, known):
        self.square, self.known = square, known

    @property
    def figures(self):
        error = self.square / max(self.known, 1)
        return {"fit": 100 / (1 + error), "error": error}

    def content(self):
        return {"fit": self.figures["fit"], "known": self.known}

    def arrays(self):
        return {"matrix": MATRIX}

    def remarks(self):
        return [f"{self.known} targets were known"]

    def __str__(self):
        return f"fit {self.figures['fit']:.2f}%"


class ToyEvaluator(Evaluator):
    def __init__(self, dist):
        self.dist = dist
        self.sums = np.zeros(2)

    def add(self, network, batch):
        x, y, mask = batch
        error = (network(Tensor(x)).asnumpy() - y) * mask
        self.sums += [np.square(error).sum(), mask.sum()]

    def result(self):
        square, known = np.asarray(self.dist.sum(self.sums), float)
        self.sums = np.zeros(2)
        return ToyResult(float(square), int(known))


class Toy(Task):
    name = "toy"
    figures = (Figure("fit", "fit", "%", ".2f"), Figure("error", "error"))

    def check(self):
        if self.config.augment.noise < 0:
            raise self.config.error("augment.noise", "must be at least 0")

    def open(self, split, classes=None):
        size = self.config.data.size
        return Points(self.config.data.path, size, 0) if split == "train" else Points(self.config.data.path, 20, 10**6)

    def check_data(self, train, val):
        assert train.columns == val.columns

    def losses(self, network, model, data, dist):
        return ToyLosses(network)

    def noise(self, model, generator, batch):
        return ()

    def train_samples(self, model, data, unreadable, epochs):
        return ToyTrainSamples(self.config.augment.noise, self.config.runtime.seed)

    def eval_samples(self, model, data, unreadable):
        return ToyEvalSamples()

    def evaluator(self, model, data, dist, classes=None, label="the model"):
        return ToyEvaluator(dist)

    def signature(self, model, batch_size, output):
        return Signature((TensorSpec("x", (batch_size, WIDTH)),), (TensorSpec("y", (batch_size, WIDTH)),))

    def sample_inputs(self, model, count):
        return np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float32), "noise"

    def preprocessing(self, model, output):
        return {"scale": 1.0}

    @classmethod
    def predictor(cls, answer, preprocessing, batch_size, classes, options):
        raise NotImplementedError("points are in no file")

    @classmethod
    def read_evaluation(cls, path, content):
        check_keys(content, {"fit", "known", "matrix"}, str(path))
        return content

    @classmethod
    def sections(cls, evaluation, config, data, roots):
        known = "nothing yet" if evaluation is None else f"{evaluation['known']} targets known"
        return [PageSection("Points", f"<p>{known}</p>")]


CONFIG: dict[str, Any] = {
    "name": "toy",
    "task": "toy",
    "model": {"name": "toy"},
    "optimizer": {"base_lr": 0.03, "lr_batch_size": None, "weight_decay": 0.0, "clip_norm": None},
    "schedule": {"name": "constant", "warmup_epochs": 0.0},
    "ema": {"decay": 0.5},
    "train": {"epochs": 2, "batch_size": 16, "log_interval": 1},
    "runtime": {"mode": "pynative"},
}


def register(monkeypatch) -> None:
    """Make the task known for one test."""
    monkeypatch.setitem(TASKS, "toy", Toy)
    monkeypatch.setitem(TASK_SECTIONS, "toy", TaskSections(ToyData, ToyAugment, ToyEval, lambda config: None))
    monkeypatch.setitem(registry._FAMILIES, "toy", registry.Family(ToyNetwork))
