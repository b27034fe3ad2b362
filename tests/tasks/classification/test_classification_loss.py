"""The loss of a classifier, with and without weights of the classes."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.config.load import ConfigError, load_config
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy, balanced_weights
from tests.training.plain_step import plain_step

WEIGHTS = np.array([0.5, 1.0, 4.0])


class Linear(nn.Cell):
    """Logits [B, 3] of inputs [B, 4]."""

    def __init__(self):
        super().__init__()
        weight = Tensor(np.arange(12, dtype=np.float32).reshape(3, 4) / 10)
        self.dense = nn.Dense(4, 3, weight_init=weight, bias_init="zeros")

    def construct(self, x, drop_path=None, dropout_seed=None):
        return self.dense(x)


def batch(rows=12):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 4)).astype(np.float32)
    targets = generator.random((rows, 3)) ** 4
    return x, (targets / targets.sum(1, keepdims=True)).astype(np.float32)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def test_without_weights_it_is_the_plain_mean_to_the_bit():
    x, targets = batch()
    network = Linear()
    losses = SoftTargetCrossEntropy(network)
    parts, weights = losses(Tensor(x), Tensor(targets))
    assert weights is None and losses.weight_floors is None
    plain = -(Tensor(targets) * ops.log_softmax(network(Tensor(x)).astype(ms.float32), -1)).sum(-1).mean()
    np.testing.assert_array_equal(parts.asnumpy(), plain.asnumpy().reshape(1))


def test_weights_are_those_of_the_weighted_mean():
    x, targets = batch()
    network = Linear()
    parts, weights = SoftTargetCrossEntropy(network, WEIGHTS)(Tensor(x), Tensor(targets))
    log_probabilities = log_softmax(network(Tensor(x)).asnumpy().astype(np.float64))
    assert parts.asnumpy()[0] == pytest.approx(-(WEIGHTS * targets * log_probabilities).sum(), rel=1e-5)
    assert weights.asnumpy()[0] == pytest.approx((WEIGHTS * targets).sum(), rel=1e-5)


def test_accumulated_batches_are_the_large_one():
    """Batches whose weights differ, so that a mean of means would be another loss."""
    x, targets = batch()
    order = np.argsort(targets @ WEIGHTS)
    outcomes, trained = [], []
    for parts in (1, 3):
        network = Linear()
        step = plain_step(SoftTargetCrossEntropy(network, WEIGHTS), network, accumulation_steps=parts)
        batches = [tuple(map(Tensor, pair)) for pair in zip(np.split(x[order], parts), np.split(targets[order], parts),
                                                            strict=True)]  # fmt: skip
        for pair in batches if step.counts_first else ():
            step.count(*pair)
        for number, pair in enumerate(batches, 1):
            outcome = step(Tensor(0.1, ms.float32), number == parts, Tensor(0.0, ms.float32), *pair)
        outcomes.append(float(outcome.asnumpy()[0]))
        trained.append(network.dense.weight.asnumpy())
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-5)
    np.testing.assert_allclose(*trained, rtol=1e-5, atol=1e-6)


def test_balanced_classes_weigh_the_same():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = balanced_weights(labels, 3)
    assert weights * np.bincount(labels) == pytest.approx([10 / 3] * 3)


def test_as_many_weights_as_classes_are_needed():
    assert load_config("focalv2_digits").loss.class_weights is None
    assert load_config("focalv2_digits", ["loss.class_weights=balanced"]).loss.class_weights == "balanced"
    with pytest.raises(ConfigError, match=r"loss\.class_weights: has 2 weights, and the model 10 classes"):
        load_config("focalv2_digits", ["loss.class_weights=[1.0,2.0]"])
    with pytest.raises(ConfigError, match=r"loss\.class_weights: .*greater than 0"):
        load_config("focalv2_digits", ["loss.class_weights=[1.0,0.0]"])
