"""Options and refusals of Twins. Numbers: test_parity.py and test_loop_reference.py."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from focal_twins.files.weights import load_weights, official_names
from focal_twins.models import ArgumentError, create_model
from focal_twins.models.device_options import set_device_options
from tests.reference import images

SMALL = {
    "img_size": 32,
    "num_classes": 5,
    "embed_dims": [16, 32],
    "num_heads": [2, 4],
    "mlp_ratios": [2.0, 2.0],
    "depths": [2, 2],
    "sr_ratios": [2, 1],
    "wss": [3, 3],
}


def arrays(model) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy() for name, parameter in official_names(model).items()}


def gradients(model, x):
    def loss(x, labels):
        return ops.cross_entropy(model(x), labels)

    values = ms.grad(loss, None, model.trainable_params())(x, Tensor([1, 2], ms.int32))
    return [value.asnumpy() for value in values]


def test_convolution_implementations_agree():
    plain = create_model("twins", **SMALL)
    other = set_device_options(create_model("twins", **SMALL), conv_implementation="conv2d")
    load_weights(other, arrays(plain))
    x = Tensor(images((2, 3, 32, 32)))
    np.testing.assert_allclose(plain(x).asnumpy(), other(x).asnumpy(), atol=1e-5)
    for expected, value in zip(gradients(plain, x), gradients(other, x), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_initial_convolutions_are_the_originals():
    """N(0, sqrt(2 / fan_out)) with the fan-out divided by the groups, biases zero (_init_weights in timm)."""
    weights = arrays(create_model("twins_svt_small"))
    for name, fan_out in (
        ("patch_embeds.0.proj", 64 * 16),
        ("blocks.1.1.attn.sr", 128 * 16),
        ("pos_block.2.proj.0", 9),
    ):
        assert abs(weights[f"{name}.weight"].std() / np.sqrt(2 / fan_out) - 1) < 0.1
        assert not weights[f"{name}.bias"].any()


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"img_size": 36}, "img_size"),
        ({"img_size": [32, 36]}, "img_size"),
        ({"img_size": [32]}, "img_size"),
        ({"num_heads": [3, 4]}, "num_heads"),
        ({"num_heads": [2]}, "num_heads"),
        ({"wss": [0, 3]}, "wss"),
        ({"sr_ratios": [16, 1]}, "sr_ratios"),
        ({"depths": [0, 1]}, "depths"),
        ({"mlp_ratios": [0.0, 1.0]}, "mlp_ratios"),
        ({"attn_drop_rate": 1.0}, "attn_drop_rate"),
        ({"window_size": 7}, "window_size"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(arguments, argument):
    with pytest.raises(ArgumentError) as error:
        create_model("twins", **SMALL | arguments)
    assert error.value.argument == argument
