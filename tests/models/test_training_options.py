"""What only training does, in every family: stochastic depth, dropout, recomputation."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.files.weights import load_weights, official_names
from focal_twins.measuring.graph import compiled_operators
from focal_twins.models import create_model
from tests.reference import formula_value, images

FOCAL = {
    "img_size": 32, "num_classes": 5, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2,
    "focal_stages": [0, 1], "focal_levels": [2, 2], "drop_path_rate": 0.0,
}  # fmt: skip
TWINS = {
    "img_size": 32, "num_classes": 5, "embed_dims": [16, 32], "num_heads": [2, 4], "mlp_ratios": [2.0, 2.0],
    "depths": [2, 1], "sr_ratios": [2, 1], "wss": [3, 3], "drop_path_rate": 0.0,
}  # fmt: skip
FAMILIES = {"focal": FOCAL | {"expand_sizes": [1, 1], "focal_windows": [3, 1]}, "focalv2": FOCAL, "twins": TWINS}
X = Tensor(images((4, 3, 32, 32)))


class Gradients(nn.Cell):
    """Gradients of the sum of squared logits by every parameter."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model
        self.gradients = ops.grad(self.loss, None, model.trainable_params())

    def loss(self, x):
        return ops.square(self.model(x)).sum()

    def construct(self, x):
        return self.gradients(x)


def build(family, **options):
    model = create_model(family, **FAMILIES[family] | options).set_train()
    named = official_names(model).items()
    load_weights(model, {name: formula_value(name, p.shape) for name, p in named if p.requires_grad})
    return model


SHALLOW = {"depths": [1, 1]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_has_the_gradients_of_operators(family):
    """One by one, which is how gradients are held against the originals'."""
    expected = Gradients(build(family, **SHALLOW))(X)
    ms.set_context(mode=ms.GRAPH_MODE)
    for value, of_operators in zip(Gradients(build(family, **SHALLOW))(X), expected, strict=True):
        np.testing.assert_allclose(value.asnumpy(), of_operators.asnumpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family", ["focalv2", pytest.param("twins", marks=pytest.mark.exhaustive)]
)  # v1's stages are v2's
def test_recomputation_changes_the_graph_and_not_the_gradients(family):
    kept, recomputed = (Gradients(build(family, **SHALLOW, use_checkpoint=flag)) for flag in (False, True))
    expected = kept(X)
    ms.set_context(mode=ms.GRAPH_MODE)
    for value, of_kept in zip(recomputed(X), expected, strict=True):
        np.testing.assert_allclose(value.asnumpy(), of_kept.asnumpy(), rtol=1e-4, atol=1e-4)
    products = [
        sum(operator.name == "BatchMatMul" for operator in compiled_operators(cell, X)) for cell in (kept, recomputed)
    ]
    assert products[1] >= products[0] + 2 * 2  # at least the scores and mixtures of two blocks, once more


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_draws_what_it_is_not_given(family):
    """In training alone, anew each time, and again after the same seed; what is given is taken as it is."""
    model = build(family, **SHALLOW, drop_path_rate=0.5, drop_rate=0.5)
    given = {"drop_path": model.draw_drop_path(np.random.default_rng(0), 4), "dropout_seed": Tensor(3, ms.int32)}
    keyed = model(X, **given).asnumpy()
    ms.set_seed(1)
    first, second = (model(X).asnumpy() for _ in range(2))
    assert not np.array_equal(first, second)
    ms.set_seed(1)
    np.testing.assert_array_equal(model(X).asnumpy(), first)
    np.testing.assert_array_equal(model(X, **given).asnumpy(), keyed)
    model.set_train(False)
    np.testing.assert_array_equal(model(X).asnumpy(), model(X, **given).asnumpy())


def test_draws_have_the_rates_of_their_branches():
    model = create_model("focalv2", **FOCAL | {"depths": [2, 1], "drop_path_rate": 0.5})
    scales, seed = model.noise(4000, None, None)
    assert seed is None  # without dropout
    for row, rate in zip(scales.asnumpy(), model.drop_path_rates, strict=True):
        assert set(np.unique(row)) <= {0.0, np.float32(1 / (1 - rate))}
        assert (row == 0).mean() == pytest.approx(rate, abs=0.05)


def test_a_graph_draws_anew_each_time(graph_mode):
    model = build("twins", **SHALLOW, drop_path_rate=0.5)
    assert len({model(X).asnumpy().tobytes() for _ in range(3)}) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_stochastic_depth_scales_every_branch(family):
    """Both branches of every block follow their row of the scales, those of rate 0 excepted."""
    model = build(family, drop_path_rate=0.5)
    rates = model.drop_path_rates
    assert rates == [0, 0, 0.25, 0.25, 0.5, 0.5]
    ones = np.ones((6, 4), np.float32)
    logits = model(X, Tensor(ones)).asnumpy()
    for branch in range(6):
        scales = ones.copy()
        scales[branch, 2] = 0
        changed = np.abs(model(X, Tensor(scales)).asnumpy() - logits).max(axis=1) > 1e-4
        assert changed.tolist() == [False, False, rates[branch] > 0, False]
    drawn = model.draw_drop_path(np.random.default_rng(0), 1000).asnumpy()
    np.testing.assert_allclose(drawn.mean(axis=1), 1, atol=0.1)
    np.testing.assert_allclose(model.set_train(False)(X).asnumpy(), logits, atol=1e-5)


DROPOUTS = [
    ("focal", "drop_rate"),
    ("focal", "attn_drop_rate"),
    ("focalv2", "drop_rate"),
    ("focalv2", "attn_drop_rate"),
]
DROPOUTS += [("twins", f"{place}drop_rate") for place in ("", "pos_", "proj_", "attn_")]


@pytest.mark.parametrize(("family", "option"), DROPOUTS)
def test_dropout_acts_in_training_only(family, option):
    model = build(family, **{option: 0.4})
    one, again, two = (model(X, None, Tensor(seed, ms.int32)).asnumpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-4
    plain = build(family).set_train(False)(X).asnumpy()
    np.testing.assert_allclose(model.set_train(False)(X).asnumpy(), plain, atol=1e-5)
