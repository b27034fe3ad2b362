"""Each optimizer against its formula in float64, and which rate and decay each parameter gets."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.config.schema import OptimizerConfig
from focal_twins.measuring.graph import compiled_operators
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options
from focal_twins.training.optimizer import LAMB, SGD, AdamW, create_optimizer, layer_rate_scales
from tests.kernels.compiler import needs_compiler
from tests.models.test_training_options import FAMILIES

BETAS = (0.9, 0.999)


class NumpyOptimizer:
    """One entry per parameter in `decays`, `scales` and the lists that `step` takes and returns."""

    def __init__(self, decays, scales=None, **options):
        self.decays, self.options, self.t = decays, options, 0
        self.scales = scales or [1.0] * len(decays)
        self.state = [(0.0, 0.0) for _ in decays]

    def step(self, weights, gradients, rate):
        self.t += 1
        new = []
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            updated, self.state[i] = self.update(w, g, rate * self.scales[i], self.decays[i], *self.state[i])
            new.append(updated)
        return new

    def adam_direction(self, g, m, v, eps):
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
        return (m / (1 - BETAS[0] ** self.t)) / (np.sqrt(v / (1 - BETAS[1] ** self.t)) + eps), (m, v)


class NumpyAdamW(NumpyOptimizer):
    def update(self, w, g, rate, decay, m, v):
        direction, state = self.adam_direction(g, m, v, 1e-8)
        return w * (1 - rate * decay) - rate * direction, state


class NumpySGD(NumpyOptimizer):
    def update(self, w, g, rate, decay, velocity, unused):
        g = g + decay * w
        velocity = 0.9 * velocity + g
        return w - rate * (g + 0.9 * velocity if self.options["nesterov"] else velocity), (velocity, unused)


class NumpyLAMB(NumpyOptimizer):
    def update(self, w, g, rate, decay, m, v):
        direction, state = self.adam_direction(g, m, v, 1e-6)
        direction = direction + decay * w
        norms = np.linalg.norm(w), np.linalg.norm(direction)
        ratio = norms[0] / norms[1] if decay and all(norms) else 1.0
        return w - rate * ratio * direction, state


OPTIMIZERS = {
    "adamw": (AdamW, NumpyAdamW, {}),
    "adamw_by_kernel": (AdamW, NumpyAdamW, {}),
    "sgd": (SGD, NumpySGD, {"nesterov": False}),
    "nesterov": (SGD, NumpySGD, {"nesterov": True}),
    "lamb": (LAMB, NumpyLAMB, {"eps": 1e-6}),
}


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_compiler if name.endswith("kernel") else ()) for name in OPTIMIZERS]
)
def test_twelve_steps_equal_numpy(name, mode):
    """With groups of every kind: decay or none, rates scaled or not, weights that start at zero."""
    ms.set_context(mode=mode)
    own, reference, options = OPTIMIZERS[name]
    generator = np.random.default_rng(0)
    decays, scales = [0.05, 0.0, 0.1, 0.0, 0.05], [1.0, 1.0, 0.5, 0.25, 1.0]
    shapes = [(5, 4), (5,), (3, 7), (6,), (2, 2)]
    weights = [generator.standard_normal(shape) for shape in shapes]
    weights[4] *= 0
    parameters = [ms.Parameter(Tensor(w, ms.float32), name=f"p{i}") for i, w in enumerate(weights)]
    optimizer, expected = own(parameters, decays, rate_scales=scales, **options), reference(decays, scales, **options)
    set_device_options(optimizer, kernels="compiled" if name.endswith("kernel") else "none")
    for t in range(12):
        # From so small that epsilon matters to large.
        gradients = [generator.standard_normal(shape) * 10.0 ** (t % 4 * 2 - 7) for shape in shapes]
        rate = 1e-3 * (t + 1)
        halves = tuple(Tensor(g / 2, ms.float32) for g in gradients)
        step = optimizer(halves, Tensor(rate, ms.float32), Tensor(2.0, ms.float32))
        weights = expected.step(weights, gradients, rate)
        assert float(step.asnumpy()) == t + 1
        for parameter, value in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.asnumpy(), value, rtol=2e-5, atol=2e-6)


def test_lamb_takes_the_whole_step_where_there_is_no_direction_or_no_weight():
    parameters = [ms.Parameter(Tensor(np.full((2, 2), w), ms.float32), name=f"p{w}") for w in (0.0, 1.0)]
    optimizer = LAMB(parameters, [0.05, 1e-30], eps=1e-6)
    gradients = (Tensor(np.ones((2, 2)), ms.float32), Tensor(np.zeros((2, 2)), ms.float32))
    optimizer(gradients, Tensor(0.1, ms.float32), Tensor(1.0, ms.float32))
    np.testing.assert_allclose(parameters[0].asnumpy(), -0.1, rtol=1e-5)
    np.testing.assert_array_equal(parameters[1].asnumpy(), 1)


def test_configuration_chooses_the_optimizer():
    model = create_model("twins", **FAMILIES["twins"])
    chosen = {name: create_optimizer(model, OptimizerConfig(name=name)) for name in ("adamw", "sgd", "lamb")}
    assert [type(optimizer) for optimizer in chosen.values()] == [AdamW, SGD, LAMB]
    decays = {name: optimizer.weight_decays for name, optimizer in chosen.items()}
    assert decays["adamw"] == decays["sgd"] == decays["lamb"]
    names = [parameter.name for parameter in chosen["sgd"].state()]
    assert names[0] == "optimizer.step"
    assert all(name.startswith("optimizer.velocity.") for name in names[1:])
    assert len(set(names)) == len(names) == len(model.trainable_params()) + 1


# Of models with depths [2, 1]: block 3 is the last, 4 the head.
PLACES = {
    "focal": {
        "patch_embed.proj.weight": 0,
        "absolute_pos_embed": 0,
        "layers.0.blocks.0.norm1.gamma": 1,
        "layers.0.blocks.1.attn.relative_position_bias_table": 2,
        "layers.0.downsample.proj.weight": 2,
        "layers.1.blocks.0.mlp.fc1.weight": 3,
        "norm.gamma": 4,
        "head.weight": 4,
    },
    "twins": {
        "patch_embeds.0.proj.weight": 0,
        "blocks.0.0.attn.qkv.weight": 1,
        "pos_block.0.proj.0.weight": 1,
        "blocks.0.1.attn.q.weight": 2,
        "patch_embeds.1.norm.gamma": 2,
        "blocks.1.0.mlp.fc2.bias": 3,
        "pos_block.1.proj.0.bias": 3,
        "norm.beta": 4,
        "head.bias": 4,
    },
}
PLACES["focalv2"] = PLACES["focal"] | {"layers.1.blocks.0.attn.coord2rpb_all.0.0.weight": 3}
PLACES["focalv2"].pop("layers.0.blocks.1.attn.relative_position_bias_table")


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_decay_from_the_head_to_the_patch_embedding(family):
    options = {} if family == "twins" else {"ape": True}
    model = create_model(family, **FAMILIES[family] | options)
    places = {parameter.name: model.block_index(parameter.name) for parameter in model.trainable_params()}
    assert PLACES[family].items() <= places.items()
    assert set(places.values()) == {0, 1, 2, 3, 4}
    optimizer = create_optimizer(model, OptimizerConfig(layer_decay=0.5))
    assert dict(zip(places, optimizer.rate_scales, strict=True)) == {n: 0.5 ** (4 - i) for n, i in places.items()}


def test_no_layer_decay_adds_nothing_to_the_graph():
    """Whereas a decay adds a product for each distinct rate."""
    graphs = {}
    for layer_decay in (None, 1.0, 0.5):
        model = create_model("twins", **FAMILIES["twins"])
        parameters = model.trainable_params()
        names = [parameter.name for parameter in parameters]
        scales = None if layer_decay is None else layer_rate_scales(model, names, layer_decay)
        optimizer = AdamW(parameters, [0.0] * len(parameters), rate_scales=scales)
        gradients = tuple(Tensor(p.asnumpy()) for p in parameters)
        operators = compiled_operators(optimizer, gradients, *2 * [Tensor(0.1, ms.float32)])
        graphs[layer_decay] = sorted(operator.name for operator in operators)
    assert graphs[None] == graphs[1.0]
    assert len(graphs[0.5]) > len(graphs[1.0])
