"""A toy task whose loss is divided by counts that vary from batch to batch: one dense layer, and the same in NumPy."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.tasks.losses import Losses
from tests.training.plain_step import plain_step

RATE, ROWS, UPDATES = 0.1, 12, 3
FLOORS = (1.0, 2.0)


class Network(nn.Cell):
    """Values [B] of inputs [B, 4]."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4, 1, weight_init="zeros", bias_init="zeros")

    def construct(self, x):
        return self.dense(x).reshape(-1)


class CountedLosses(Losses):
    """Squared errors of the chosen rows over their number, and a tenth of the others' squares over theirs.

    Args:
        in_graph: rows are chosen by the network's values, and not by the batch alone.
    """

    names = ("error", "size")
    weight_floors = FLOORS

    def __init__(self, network, in_graph):
        super().__init__()
        self.network = network
        self.in_graph = in_graph

    def construct(self, x, y, chosen):
        values = self.network(x)
        if self.in_graph:
            chosen = chosen * (values > y - 1).astype(ms.float32)
        error = (chosen * ops.square(values - y)).sum()
        size = ((1 - chosen) * ops.square(values)).sum() / 10
        return ops.stack((error, size)), ops.stack((chosen.sum(), (1 - chosen).sum()))


def build(in_graph=False, network=None, **arguments):
    """A network that starts at zero, and its training step by plain gradient descent."""
    network = Network() if network is None else network
    return network, plain_step(CountedLosses(network, in_graph), network, **arguments)


def rows_of(update):
    """The rows of an update: inputs [12, 4], targets [12], and which are chosen [12], most of them at the start."""
    generator = np.random.default_rng(update)
    x, y = generator.standard_normal((ROWS, 4)), generator.standard_normal(ROWS)
    chosen = np.arange(ROWS) < 5 + update % 2
    return [array.astype(np.float32) for array in (x, y, chosen)]


def make_update(step, batches):
    """One update of batches, each a list of arrays; returns the outcome."""
    scalars = Tensor(RATE, ms.float32), Tensor(0.0, ms.float32)
    batches = [list(map(Tensor, batch)) for batch in batches]
    if step.counts_first:
        for batch in batches:
            step.count(*batch)
    outcomes = [step(scalars[0], batch is batches[-1], scalars[1], *batch).asnumpy() for batch in batches]
    return outcomes[-1]


def split(arrays, parts):
    """The rows in equal parts, one after the other."""
    return list(zip(*(np.split(array, parts) for array in arrays), strict=True))


def weights_of(network):
    return np.concatenate([parameter.asnumpy().ravel() for parameter in network.trainable_params()])


def reference(in_graph=False, means_of=1):
    """Weights [5] and the losses [updates, 2] after plain gradient descent in float64.

    Args:
        means_of: parts of each update whose quotients are averaged, which is wrong for more than one.
    """
    weights, losses = np.zeros(5), []
    for update in range(UPDATES):
        gradient, parts = np.zeros(5), np.zeros(2)
        for x, y, chosen in split(rows_of(update), means_of):
            inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
            values = inputs @ weights
            chosen = chosen * (values > y - 1) if in_graph else chosen
            counts = np.maximum([chosen.sum(), (1 - chosen).sum()], FLOORS)
            parts += np.array([(chosen * (values - y) ** 2).sum(), ((1 - chosen) * values**2).sum() / 10]) / counts
            by_value = 2 * chosen * (values - y) / counts[0] + 0.2 * (1 - chosen) * values / counts[1]
            gradient += by_value @ inputs
        losses.append(parts / means_of)
        weights = weights - RATE * gradient / means_of
    return weights, np.array(losses)
