"""The loss of a segmentor over all pixels or those of a class; the originals' is in tests/models/segmentors."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.models.device_options import set_device_options
from focal_twins.models.resize import bilinear_matrix
from focal_twins.tasks.segmentation.loss import PixelLosses
from tests.kernels.compiler import EITHER

IGNORED, CLASSES, SIZE = 255, 4, (8, 12)
MAPS, FACTORS = ((4, 6), (2, 3)), (1.0, 0.4)


class Heads(nn.Cell):
    """Takes the logits of both heads in place of images."""

    def construct(self, logits, drop_path=None, channel_scales=None):
        return logits


def build(mean, dtype=np.float32, kernels="none"):
    model = SimpleNamespace(
        head_names=("decode", "auxiliary"),
        head_weights=FACTORS,
        head_map_sizes=MAPS,
        img_size=SIZE,
        num_classes=CLASSES,
    )
    generator = np.random.default_rng(0)
    logits = [generator.standard_normal((2, h * w, CLASSES)).astype(dtype) for h, w in MAPS]
    labels = generator.integers(0, CLASSES, (2, SIZE[0] * SIZE[1])).astype(np.int32)
    labels[0, :70], labels[1, 5] = IGNORED, IGNORED
    return set_device_options(PixelLosses(Heads(), model, IGNORED, mean), kernels=kernels), logits, labels


def expected(logits, labels):
    """The sum over pixels of each head's cross entropy, times the head's factor, and its gradient, in float64."""
    sums, gradients = [], []
    for head, (h, w), factor in zip(logits, MAPS, FACTORS, strict=True):
        resize = np.kron(bilinear_matrix(h, SIZE[0]), bilinear_matrix(w, SIZE[1])).astype(float)
        full = resize @ head.astype(float)  # [B, H * W, classes]
        probabilities = np.exp(full) / np.exp(full).sum(-1, keepdims=True)
        at_label = np.eye(CLASSES + 1)[np.where(labels == IGNORED, CLASSES, labels)][..., :CLASSES]
        sums.append(-factor * (np.log(probabilities) * at_label).sum())
        by_pixel = factor * (probabilities - at_label) * (labels != IGNORED)[..., None]
        gradients.append(resize.T @ by_pixel)
    return sums, gradients


def test_the_mean_over_all_pixels_counts_ignored_ones():
    losses, logits, labels = build("all")
    parts, weights = losses(tuple(map(Tensor, logits)), Tensor(labels))
    assert (losses.names, weights, losses.weight_floors) == (("decode", "auxiliary"), None, None)
    np.testing.assert_allclose(parts.asnumpy(), np.array(expected(logits, labels)[0]) / labels.size, rtol=1e-6)


@pytest.mark.parametrize("kernels", EITHER)
def test_the_mean_over_valid_pixels_is_a_sum_and_its_weight(kernels):
    """Sums and weights add up over ranks and accumulated batches, see Losses."""
    losses, logits, labels = build("valid", kernels=kernels)
    parts, weights = losses(tuple(map(Tensor, logits)), Tensor(labels))
    np.testing.assert_allclose(parts.asnumpy(), expected(logits, labels)[0], rtol=1e-6)
    np.testing.assert_array_equal(weights.asnumpy(), [labels.size - 71] * 2)
    assert losses.weight_floors == (1.0, 1.0)
    parts, weights = losses(tuple(map(Tensor, logits)), Tensor(np.full_like(labels, IGNORED)))
    assert not parts.asnumpy().any() and not weights.asnumpy().any()


def test_half_precision_logits_give_a_float32_loss():
    losses, logits, labels = build("all", np.float16)
    parts, _ = losses(tuple(map(Tensor, logits)), Tensor(labels))
    assert parts.dtype == ms.float32
    np.testing.assert_allclose(parts.asnumpy(), np.array(expected(logits, labels)[0]) / labels.size, rtol=1e-6)


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_the_gradient_is_that_of_the_loss(mode, kernels):
    """In a graph, other cells still have the functions that this one uses: MindSpore loses those of a bprop."""
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    losses, logits, labels = build("all", kernels=kernels)

    class Total(nn.Cell):
        def construct(self, decode, auxiliary, labels):
            parts, _ = losses((decode, auxiliary), labels)
            return (parts + ops.zeros_like(parts)).sum()

    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gradients = ops.value_and_grad(Total(), (0, 1))

        def construct(self, *inputs):
            return self.gradients(*inputs)

    total, gradients = Gradients()(*map(Tensor, (*logits, labels)))
    sums, to_logits = expected(logits, labels)
    assert total.asnumpy().item() == pytest.approx(sum(sums) / labels.size, rel=1e-6)
    for found, gradient in zip(gradients, to_logits, strict=True):
        np.testing.assert_allclose(found.asnumpy(), gradient / labels.size, rtol=1e-5, atol=1e-9)
