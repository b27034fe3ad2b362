"""Models by compiled kernels are those by operators: values, gradients, and where kernels do not apply."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from focal_twins.models import ArgumentError
from focal_twins.models.attention import GatheredAttention
from focal_twins.models.compiled import CompiledMlp, KernelLayer
from focal_twins.models.device_options import device_options, set_device_options
from focal_twins.models.layers import Mlp
from focal_twins.models.precision import apply_precision
from tests.kernels.compiler import needs_compiler
from tests.models.test_training_options import FAMILIES, Gradients, X, build

pytestmark = needs_compiler
CASES = {
    "focal": ("focal", {"depths": [1, 1]}),
    "focal_shifted": ("focal", {"depths": [2, 1], "use_shift": True, "qkv_bias": False}),
    "focalv2": ("focalv2", {"depths": [1, 1]}),
    "twins": ("twins", {"depths": [2, 1]}),
    "twins_padded": ("twins", {"depths": [2, 1], "wss": [5, 3], "mask_padding": True}),
}


def assert_equal(found, expected, bound=1e-5):
    for value, other in zip(found, expected, strict=True):
        size = max(np.abs(other.asnumpy()).max(), 1e-6)
        np.testing.assert_allclose(value.asnumpy(), other.asnumpy(), rtol=0, atol=bound * size)


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_the_values_and_gradients_of_operators(case):
    family, arguments = CASES[case]
    model, compiled = build(family, **arguments), set_device_options(build(family, **arguments), kernels="compiled")
    assert all(cell.kernel is not None for _, cell in compiled.cells_and_names() if isinstance(cell, KernelLayer))
    assert_equal([compiled(X)], [model(X)])
    assert_equal(Gradients(compiled)(X), Gradients(model)(X), 1e-4)


def test_a_graph_of_kernels_has_the_gradients_of_operators():
    expected = Gradients(build("focalv2", depths=[1], num_heads=[2], focal_stages=[0], focal_levels=[2]))(X)
    ms.set_context(mode=ms.GRAPH_MODE)
    compiled = build("focalv2", depths=[1], num_heads=[2], focal_stages=[0], focal_levels=[2])
    assert_equal(Gradients(set_device_options(compiled, kernels="compiled"))(X), expected, 1e-4)


@pytest.mark.parametrize("hidden", [1024, 3072])
def test_hidden_layers_with_padded_gradients_have_those_of_operators(hidden):
    results = []
    for kernels in ("compiled", "none"):
        mlp = Mlp(24, hidden)
        for seed, parameter in enumerate(mlp.get_parameters()):
            values = np.random.default_rng(seed).standard_normal(parameter.shape) * 0.2
            parameter.set_data(Tensor(values, ms.float32))
        set_device_options(mlp, kernels=kernels)
        x = Tensor(np.random.default_rng(9).standard_normal((2, 35, 24)), ms.float32)
        gradient = ms.value_and_grad(
            lambda x, mlp=mlp: ops.square(mlp(x)).sum(), 0, ParameterTuple(mlp.get_parameters())
        )
        value, (to_x, to_parameters) = gradient(x)
        results.append((value, to_x, *to_parameters))
    assert CompiledMlp.PADDING and hidden % CompiledMlp.CONFLICT == 0
    assert_equal(*results, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_kernels_no_bit_is_another(family):
    model = build(family).set_train(False)
    before = model(X).asnumpy()
    set_device_options(model, kernels="compiled")
    assert device_options(model)["kernels"] == "compiled"
    assert not np.array_equal(model(X).asnumpy(), before)
    other = model.at(64)
    assert device_options(other) == device_options(model)
    set_device_options(model, kernels="none")
    assert device_options(model)["kernels"] == "none"
    np.testing.assert_array_equal(model(X).asnumpy(), before)
    with pytest.raises(ArgumentError, match="kernels: must be compiled or none, got 'auto'"):
        set_device_options(model, kernels="auto")


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_attention_is_by_operators(family):
    rates = {"attn_drop_rate": 0.3}
    model, compiled = build(family, **rates), set_device_options(build(family, **rates), kernels="compiled")
    seed = Tensor(5, ms.int32)
    assert_equal([compiled(X, dropout_seed=seed)], [model(X, dropout_seed=seed)])
    with pytest.raises(AssertionError):
        assert_equal([compiled(X, dropout_seed=Tensor(6, ms.int32))], [model(X, dropout_seed=seed)])


def test_half_precision_is_by_operators():
    model = set_device_options(build("focalv2"), kernels="compiled")
    assert device_options(apply_precision(model, "O1"))["kernels"] == "none"
    mlp = next(cell for _, cell in set_device_options(build("twins"), kernels="compiled").cells_and_names()
               if type(cell).__name__ == "Mlp")  # fmt: skip
    x = Tensor(np.ones((2, mlp.fc1.in_channels), np.float16))
    assert mlp.to_float(ms.float16)(x).dtype == ms.float16


def test_kernels_have_the_tables_that_come_with_weights():
    model, compiled = build("focalv2"), set_device_options(build("focalv2"), kernels="compiled")
    for each in (model, compiled):
        for _, cell in each.cells_and_names():
            if isinstance(cell, GatheredAttention):
                table = cell.key_tables()[0]
                table.set_data(Tensor(np.roll(table.asnumpy(), 1, axis=0)))
        each.adopt_key_tables()
    assert_equal([compiled(X)], [model(X)])
