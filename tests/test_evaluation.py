"""Counting: every image once, whatever the batches."""

import numpy as np
import pytest
from mindspore import nn

from src.distributed import Dist
from src.evaluation import Metrics, batch_counts, evaluate


def test_counts_equal_their_definition():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((40, 12)).astype(np.float32)
    labels = generator.integers(0, 12, 40)
    weights = (generator.random(40) < 0.8).astype(np.float32)
    count, top1, top5, loss = batch_counts(logits, labels, weights)
    order = np.argsort(-logits, axis=1)
    kept = weights > 0
    assert count == kept.sum()
    assert top1 == (order[:, 0] == labels)[kept].sum()
    assert top5 == (order[:, :5] == labels[:, None]).any(axis=1)[kept].sum()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(40), labels])[kept].sum(), rtol=1e-6)


def test_logits_that_are_not_finite_are_never_right():
    logits = np.full((2, 3), np.nan, np.float32)
    assert batch_counts(logits, np.array([0, 1]), np.ones(2))[1:3].tolist() == [0, 0]


def test_equal_logits_are_never_right():
    """A network that answers alike for everything knows nothing, whatever the order of classes."""
    counts = batch_counts(np.zeros((10, 6), np.float32), np.arange(10) % 6, np.ones(10))
    assert counts[1:3].tolist() == [0, 0]


def test_large_logits_do_not_overflow_the_loss():
    counts = batch_counts(np.array([[1e4, 0.0]], np.float32), np.array([1]), np.ones(1))
    assert counts[3] == pytest.approx(1e4)


class FirstPixels(nn.Cell):
    """Logits are the first three pixels; refuses batches of another size than 4, as a compiled graph would."""

    def construct(self, images):
        assert images.shape[0] == 4
        return images.reshape((4, -1))[:, :3]


def test_a_short_last_batch_counts_in_full_and_alone():
    generator = np.random.default_rng(0)
    images = generator.standard_normal((10, 1, 2, 2)).astype(np.float32)
    labels = images.reshape(10, -1)[:, :3].argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % 3
    batches = [(images[i : i + 4], labels[i : i + 4], np.ones(len(labels[i : i + 4]))) for i in (0, 4, 8)]
    network = FirstPixels().set_train()
    metrics = evaluate(network, batches, 4, Dist())
    assert (metrics.count, metrics.top1_correct, metrics.top5_correct) == (10, 7, 10)
    assert metrics.top1 == pytest.approx(70)
    assert network.training
    shards = [evaluate(network, [batch], 4, Dist()) for batch in batches]
    assert sum(shard.count for shard in shards) == 10
    assert sum(shard.loss_sum for shard in shards) == pytest.approx(metrics.loss_sum)


def test_nothing_to_count_is_not_an_error():
    assert Metrics(0, 0, 0, 0.0).top1 == 0
