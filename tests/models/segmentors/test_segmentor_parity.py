"""Heads, whole networks and their training equal the originals': logits, losses, gradients, running statistics.

Operator by operator. Recipes: tests/reference/README.md.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.config.schema import OptimizerConfig
from focal_twins.files.weights import official_names
from focal_twins.models import create_model
from focal_twins.models.backbones.backbone import FeatureMap
from focal_twins.models.convolutions import Conv2d
from focal_twins.models.pyramid import FPN
from focal_twins.models.resize import BilinearResize
from focal_twins.models.segmentors.semantic_fpn import FPNHead
from focal_twins.models.segmentors.upernet import FCNHead, UPerHead
from focal_twins.tasks.segmentation.loss import PixelCrossEntropy
from focal_twins.training.optimizer import create_optimizer, has_weight_decay
from tests.kernels.compiler import COMPILED_OR_EXHAUSTIVE
from tests.reference import FOLDER, figures, formula_value, images, trajectory_backbone

CHANNELS = (16, 32, 64, 128)
SIZES = ((32, 48), (16, 24), (8, 12), (4, 6))
MAPS = tuple(FeatureMap(c, 4 * 2**i, size) for i, (c, size) in enumerate(zip(CHANNELS, SIZES, strict=True)))
CLASSES = 10


def filled(cell, gain=1.4):
    """A cell with weights and running statistics by formula; its official names begin at it."""
    for name, parameter in official_names(cell).items():
        scale = gain(name) if callable(gain) else gain
        parameter.set_data(Tensor(formula_value(name, parameter.shape, scale)))
    return cell


def tokens(maps):
    """[B, C, H, W] to [B, H * W, C]."""
    return Tensor(np.ascontiguousarray(maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)))


def as_maps(logits, size):
    return logits.asnumpy().transpose(0, 2, 1).reshape(-1, logits.shape[2], *size)


def pyramid():
    generator = np.random.default_rng(11)
    return [tokens(generator.standard_normal((2, m.channels, *m.size)).astype(np.float32)) for m in MAPS]


def cross_entropy(logits, map_size, label):
    """The originals' loss: logits resized to the label [B, 1, H, W]; ignored pixels (255) count in the mean."""
    logits = BilinearResize(map_size, label.shape[2:])(logits)
    pixels = Tensor(label.reshape(len(label), -1).astype(np.int32))
    return PixelCrossEntropy(CLASSES, ignore_index=255)(logits, pixels).sum() / pixels.size


class UPerHeads(nn.Cell):
    heads = (("decode_head", SIZES[0], 1.0), ("auxiliary_head", SIZES[2], 0.4))

    def __init__(self):
        super().__init__()
        self.decode_head = UPerHead(MAPS, 32, (1, 2, 3, 6), CLASSES)
        self.auxiliary_head = FCNHead(MAPS[2], 16, CLASSES)

    def construct(self, *maps):
        decoded, helped = self.decode_head(maps), self.auxiliary_head(maps[2])
        return self.decode_head.conv_seg(decoded), self.auxiliary_head.conv_seg(helped)


class Model(nn.Cell):
    def __init__(self):
        super().__init__()
        self.neck = FPN(MAPS, 32)
        self.decode_head = FPNHead(MAPS, 32, 16, CLASSES)


class SemanticFPNHeads(nn.Cell):
    heads = (("model", SIZES[0], 1.0),)

    def __init__(self):
        super().__init__()
        self.model = Model()

    def construct(self, *maps):
        head = self.model.decode_head
        return (head.conv_seg(head(self.model.neck(maps))),)


@pytest.mark.parametrize(("name", "build"), [("upernet", UPerHeads), ("semantic_fpn", SemanticFPNHeads)])
def test_heads_equal_the_originals(name, build):
    network, maps = filled(build()), pyramid()
    expected, arrays = figures(f"dense/{name}"), np.load(FOLDER / f"dense/{name}.npz")
    label = arrays["label"]

    def losses_of(*maps):
        outputs = network(*maps)
        losses = [
            factor * cross_entropy(logits, size, label)
            for logits, (_, size, factor) in zip(outputs, network.heads, strict=True)
        ]
        return sum(losses), losses, outputs

    def assert_equal(outputs, losses, kind, stored):
        for logits, loss, (head, size, _) in zip(outputs, losses, network.heads, strict=True):
            figure = arrays[f"{head}_{kind}logits"]
            found = as_maps(logits, size)[0, :, ::2, ::2]
            assert np.abs(found - figure).max() < 1e-4 * np.abs(figure).max()
            assert abs(float(loss) / stored[head]["loss_seg"] - 1) < 1e-5

    network.set_train(False)
    _, losses, outputs = losses_of(*maps)
    assert_equal(outputs, losses, "", expected["eval_losses"])

    network.set_train()
    parameters = network.trainable_params()
    gradient = ms.value_and_grad(losses_of, tuple(range(len(maps))), parameters, has_aux=True)
    (_, losses, outputs), (to_maps, to_parameters) = gradient(*maps)
    assert_equal(outputs, losses, "train_", expected["losses"])
    names = {id(parameter): name for name, parameter in official_names(network).items()}
    norms = {
        names[id(parameter)]: np.linalg.norm(value.asnumpy().astype(np.float64))
        for parameter, value in zip(parameters, to_parameters, strict=True)
    }
    assert norms.keys() == expected["grad_norms"].keys()
    np.testing.assert_allclose(list(norms.values()), [expected["grad_norms"][key] for key in norms], rtol=1e-3)
    found = [np.linalg.norm(value.asnumpy().astype(np.float64)) for value in to_maps]
    np.testing.assert_allclose(found, expected["input_grad_norms"], rtol=1e-3)
    running = {name: p.asnumpy() for name, p in official_names(network).items() if ".running_" in name}
    assert running.keys() == expected["running"].keys()
    for key, value in running.items():
        assert abs(np.linalg.norm(value.astype(np.float64)) / expected["running"][key] - 1) < 1e-5, key


def test_whole_image_logits_equal_the_originals():
    """A toy backbone of one convolution: logits resized to the input's size, and from there to the image's own."""

    class Toy(nn.Cell):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Cell()
            self.backbone.conv = Conv2d(3, 8, 4, 4)
            self.decode_head = FCNHead(FeatureMap(8, 4, (24, 32)), 8, 5)

        def construct(self, x):
            return self.decode_head.conv_seg(self.decode_head(self.backbone.conv(x)))

    image = np.random.default_rng(101).standard_normal((1, 3, 96, 130)).astype(np.float32)
    logits = filled(Toy()).set_train(False)(Tensor(image))
    logits = BilinearResize((96, 130), (75, 101))(BilinearResize((24, 32), (96, 130))(logits))
    expected = np.load(FOLDER / "dense/whole_inference.npz")["whole"]
    found = as_maps(logits, (75, 101))[..., ::2, ::2]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kernels", COMPILED_OR_EXHAUSTIVE)
def test_ten_steps_of_upernet_equal_the_original(kernels):
    """Bounds of losses and logits are what a relative noise of 2e-7 in the weights does to the original.

    Pooling to one bin normalises two values for a channel, one of each image: where these come close, as in the eighth
    step, that noise moves the norm of the gradients by percents.
    """
    backbone = trajectory_backbone((136, 152), kernels)
    model = create_model(
        "upernet", backbone=backbone, num_classes=CLASSES, channels=32, auxiliary_channels=16, dropout=0.0
    )
    filled(model, gain=lambda name: 0.5 if name.startswith("backbone.") else 1.4)
    options = OptimizerConfig(weight_decay=0.01, no_weight_decay=["norm", "relative_position_bias_table"])
    optimizer = create_optimizer(model, options)
    expected = figures("dense/upernet_trajectory")

    def losses_of(x, label):
        losses = [
            factor * cross_entropy(logits, size, label)
            for logits, size, factor in zip(model.head_logits(x), model.head_map_sizes, model.head_weights, strict=True)
        ]
        return sum(losses), losses

    gradient = ms.value_and_grad(losses_of, None, model.trainable_params(), has_aux=True)
    model.set_train()
    for t in range(10):
        generator = np.random.default_rng(1000 + t)
        x = generator.standard_normal((2, 3, 136, 152)).astype(np.float32)
        label = generator.integers(0, CLASSES, (2, 1, 136, 152))
        label[generator.random(label.shape) < 0.1] = 255
        (_, losses), gradients = gradient(Tensor(x), label)
        figure = expected["losses"][t]
        np.testing.assert_allclose([float(loss) for loss in losses], [figure["decode.loss"], figure["aux.loss"]],
                                   rtol=2e-4)  # fmt: skip
        norm = np.sqrt(sum(np.square(g.asnumpy().astype(np.float64)).sum() for g in gradients))
        assert abs(norm / expected["grad_norms"][t] - 1) < (1e-3 if t < 7 else 0.15)
        rate = 1e-3 * min(t / 3, 1) * (1 - t / 20)
        optimizer(gradients, Tensor(rate, ms.float32), Tensor(1.0, ms.float32))
    logits = as_maps(model.set_train(False)(Tensor(images((1, 3, 136, 152)))), model.map_size)
    assert np.abs(logits - np.load(FOLDER / "dense/upernet_trajectory.npz")["final_logits"]).max() < 0.1


def test_weight_decay_spares_what_the_originals_spare():
    """Biases and the heads' BatchNorm decay: their names hold neither word."""
    groups = figures("dense/weight_decay")
    words = ["absolute_pos_embed", "relative_position_bias_table", "norm"]
    parameter = ms.Parameter(Tensor(np.zeros(1, np.float32)))
    for group, decays in (("decayed", True), ("not_decayed", False)):
        for name in groups[group]:
            assert has_weight_decay(name, parameter, words=words) == decays, name
    gamma = "backbone.layers.0.blocks.0.norm1.gamma"  # MindSpore's name, which stands for weight
    assert not has_weight_decay(gamma, parameter, words=["norm1.weight"])
