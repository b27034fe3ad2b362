"""Operators, multiply-accumulates and memory of compiled graphs, against figures worked out by hand."""

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from focal_twins.measuring.graph import Operator, activation_bytes, compiled_operators, multiply_accumulates, peak_bytes
from focal_twins.models import create_model
from focal_twins.models.backbones.focal_windows import displacements, nearest_keys
from focal_twins.models.convolutions import Conv2d
from focal_twins.models.device_options import set_device_options
from focal_twins.models.layers import Dense
from tests.conftest import ROOT

TINY = "focalv2_tiny_useconv_patch4_window7_224"
IMPLEMENTATIONS = ("unfold", "conv2d")


def zeros(*shape):
    return Tensor(np.zeros(shape, np.float32))


def test_dense():
    (product, bias) = compiled_operators(Dense(6, 5), zeros(4, 6))
    assert (product.name, product.returned, bias.returned) == ("MatMul", (), (0,))
    assert [(value.kind, value.name) for value in product.inputs[:2]] == [("input", "x"), ("parameter", "weight")]
    assert (product.outputs[0].shape, product.outputs[0].dtype) == ((4, 5), "float32")
    assert (bias.inputs[0].kind, bias.inputs[0].producer) == ("operator", product.index)
    assert multiply_accumulates([product, bias]) == 4 * 6 * 5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_convolution_by_either_implementation(implementation):
    layer = set_device_options(Conv2d(3, 8, 3, stride=2, padding=1), conv_implementation=implementation)
    operators = compiled_operators(layer, zeros(2, 3, 10, 14))
    assert ("Conv2D" in [operator.name for operator in operators]) == (implementation == "conv2d")
    assert multiply_accumulates(operators) == 2 * (5 * 7) * 8 * (3 * 3 * 3)


class Depthwise(nn.Cell):
    def __init__(self):
        super().__init__()
        self.convolve = ops.Conv2D(8, 3, pad_mode="pad", pad=1, group=8)

    def construct(self, x, weight):
        return self.convolve(x, weight)


class Gradients(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.gradients = ops.grad(network, (0, 1))

    def construct(self, x, weight):
        return self.gradients(x, weight)


def test_depthwise_convolution_and_its_gradients():
    inputs = zeros(1, 8, 6, 6), zeros(8, 1, 3, 3)
    forward = (6 * 6) * 8 * (3 * 3)
    assert multiply_accumulates(compiled_operators(Depthwise(), *inputs)) == forward
    operators = compiled_operators(Gradients(Depthwise()), *inputs)
    assert {"Conv2DBackpropInput", "Conv2DBackpropFilter"} <= {operator.name for operator in operators}
    assert multiply_accumulates(operators) == 2 * forward


class Transposed(nn.Cell):
    def __init__(self):
        super().__init__()
        self.product = ops.BatchMatMul(transpose_a=True)

    def construct(self, a, b):
        return self.product(a, b)


def test_transposed_product():
    assert multiply_accumulates(compiled_operators(Transposed(), zeros(2, 3, 7, 4), zeros(2, 3, 7, 5))) == 6 * 4 * 7 * 5


def focal_macs(side, patch, window, channels, embed_dim, heads, top_k, classes):
    """Multiply-accumulates of Focal Transformer v2 with two levels and one block a stage, for one image."""
    total, fan_in = 0, channels * patch**2
    for stage, heads_here in enumerate(heads):
        dim, size = embed_dim * 2**stage, side // patch // 2**stage
        tokens, windows = size**2, (size // window) ** 2
        total += tokens * fan_in * dim  # patch embedding
        fan_in = dim * 2 * 2  # of the next one
        keys = min(top_k, tokens) + min(top_k, windows)
        total += tokens * dim  # a window's token: weighted sum over its tokens
        total += (tokens + 2 * (tokens + windows)) * dim * dim  # queries; keys and values of both levels
        total += 2 * tokens * keys * dim  # scores and their products with the values
        total += tokens * dim * dim  # projection
        total += 2 * tokens * dim * 4 * dim  # MLP
        for level in range(2):
            table = nearest_keys((size, size), window, level, top_k)
            distinct = len(displacements(table, (size, size), window, level)[0])
            head_dim = dim // heads_here
            total += distinct * (2 * head_dim + head_dim * heads_here)  # position bias
    return total + dim * classes


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_focal_model(implementation):
    sizes = {"embed_dim": 16, "num_heads": [1, 2], "window_size": 2, "focal_topK": 20, "num_classes": 10}
    model = create_model("focalv2", img_size=32, depths=[1, 1], focal_levels=[2, 2], focal_stages=[0, 1], **sizes)
    set_device_options(model, conv_implementation=implementation)
    operators = compiled_operators(model.set_train(False), zeros(1, 3, 32, 32))
    assert multiply_accumulates(operators) == focal_macs(32, 4, 2, 3, 16, [1, 2], 20, 10)
    assert any(operator.scope.startswith("Default/layers-CellList/1-FocalStage") for operator in operators)


class Chain(nn.Cell):
    """Outputs in bytes: 128 (and a view of them), 512, 512, then 64 that no input has a part in, and 512 returned."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(zeros(4, 16), name="weight")
        self.offset = Parameter(zeros(16), name="offset")

    def construct(self, x):
        x = ops.relu(x).reshape((8, 4))
        return ops.relu(ops.matmul(x, self.weight)) + ops.exp(self.offset)


def test_memory_of_a_chain():
    operators = compiled_operators(Chain(), zeros(4, 8))
    assert [operator.name for operator in operators] == ["ReLU", "Reshape", "MatMulExt", "ReLU", "Exp", "Add"]
    assert activation_bytes(operators) == 128 + 512 + 512 + 512
    assert peak_bytes(operators) == 512 + 64 + 512  # at the addition


class ViewHeld(nn.Cell):
    def construct(self, x):
        view = ops.relu(x).reshape((-1,))
        return view, ops.exp(ops.exp(x))


def test_returned_views_hold_what_they_look_at():
    operators = compiled_operators(ViewHeld(), zeros(4, 8))
    assert [operator.returned for operator in operators] == [(), (0,), (), (0,)]
    assert peak_bytes(operators) == 3 * 128


class Condition(nn.Cell):
    def __init__(self):
        super().__init__()
        self.layer = Dense(4, 4)

    def construct(self, x, flag):
        x = self.layer(x) if flag else ops.exp(x)
        return ops.matmul(x, x)


def test_both_branches_of_a_condition():
    operators = compiled_operators(Condition(), zeros(4, 4), Tensor(True))
    join = next(operator for operator in operators if operator.name == "Switch")
    assert [operators[value.producer].name for value in join.inputs[1:]] == ["BiasAdd", "Exp"]
    assert operators[-1].inputs[0].producer == join.index
    assert multiply_accumulates(operators) == 2 * 4 * 4 * 4


class Ordered(nn.Cell):
    def construct(self, x):
        return ops.exp(ops.depend(x, ops.relu(x)))


def test_an_order_without_data_is_kept():
    relu, exponential = compiled_operators(Ordered(), zeros(4, 8))
    assert (relu.name, exponential.name) == ("ReLU", "Exp")
    assert [(value.kind, value.after) for value in exponential.inputs] == [("input", (relu.index,))]
    assert relu.inputs[0].after == ()


class Unknown(nn.Cell):
    """An operator that a CPU has no kernel for."""

    def construct(self, x):
        return ops.roll(x, 1)


def test_operators_without_a_kernel_are_listed():
    assert "Roll" in [operator.name for operator in compiled_operators(Unknown(), zeros(8))]


class Loop(nn.Cell):
    def construct(self, x, times):
        i = times * 0
        while i < times:
            x = ops.matmul(x, x)
            i = i + 1
        return x


def test_a_loop_is_refused():
    with pytest.raises(ValueError, match="has a loop"):
        compiled_operators(Loop(), zeros(4, 4), Tensor(3))


def test_what_a_loop_does_can_be_listed_once():
    operators = compiled_operators(Loop(), zeros(4, 4), Tensor(3), loops_once=True)
    assert [operator.name for operator in operators].count("MatMulExt") == 1
    assert operators[-1].outputs[0].shape == (4, 4)
    assert operators[-1].returned == (0,)


class Square(nn.Cell):
    def construct(self, x):
        return ops.matmul(x, x)


def test_dynamic_shapes_have_operators_but_no_size():
    operators = compiled_operators(Square(), Tensor(shape=[None, 4, 4], dtype=ms.float16))
    assert (operators[0].outputs[0].shape, operators[0].outputs[0].dtype) == ((-1, 4, 4), "float16")
    with pytest.raises(ValueError, match="dynamic shape"):
        multiply_accumulates(operators)


@pytest.mark.parametrize("name", ["Conv3DTranspose", "MatMulV2", "DenseGrad", "FlashAttentionScore", "Baddbmm"])
def test_a_product_without_a_rule_is_not_forgotten(name):
    with pytest.raises(ValueError, match=f"^{name} "):
        multiply_accumulates([Operator(0, name, (), (), "Default/x")])


def test_script_counts_a_published_model(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/model_stats.py", TINY, "--json", tmp_path / "stats.json"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"GLOG_v": "4"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]
    line = done.stdout.splitlines()[-1]
    assert line.split()[:4] == [TINY, "224x224", "|", "30,220,564"]
    assert line.endswith("82.4%")
    (result,) = json.loads((tmp_path / "stats.json").read_text())["models"]
    assert result["parameters"] == 30_220_564
    assert result["multiply_accumulates"] / 1e9 == pytest.approx(result["published"]["multiply_accumulates"], rel=0.02)
    assert result["published"]["source"].startswith("https://")


REFUSALS = {
    "unknown model": ([TINY[:-1]], f"did you mean {TINY}?"),
    "impossible size": ([TINY, "--img-size", "384"], f"{TINY}: img_size: [384, 384] does not give maps"),
    "no size": (["--img-size", "224x"], "--img-size: invalid image_size value: '224x'"),
    "unknown flag": (["--size=224"], "unrecognized arguments: --size=224"),
}


@pytest.mark.parametrize(("arguments", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_script_refuses_in_one_line(run_script, arguments, expected):
    code, out, err = run_script("scripts.model_stats", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert expected in err
