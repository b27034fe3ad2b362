"""Every published model against the figures of its original: logits, stages, loss, gradients, weight decay.

One of each kind is run each time, with gradients; the deeper and wider ones share their code and are exhaustive.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from focal_twins.files.weights import load_weights, official_names
from focal_twins.models import create_model, list_models
from focal_twins.models.device_options import set_device_options
from focal_twins.training.optimizer import has_weight_decay
from tests.conftest import others_exhaustive
from tests.kernels.compiler import EITHER
from tests.reference import figures, formula_weights, images

LOGITS = figures("logits")
KEY_TABLES = "focalv2_neighbours_224_window7_top128"  # the original breaks ties at the K-th distance as it pleases
WITH_GRADIENTS = [name for name, reference in LOGITS.items() if "grad_l2" in reference]
RECONSTRUCTED = {
    "focal_large_patch4_window7_224",
    "focal_base_patch4_window12_384",
    "focal_large_patch4_window12_384",
}


class WithStages(nn.Cell):
    """A Focal Transformer that also returns the output of each stage."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images):
        x = self.model.patch_embed(images)
        outputs = ()
        for layer in self.model.layers:
            x = layer(x)
            if layer.downsample is not None:  # with which the original's stages end
                x = layer.downsample(x)
            outputs = outputs + (x,)
        return self.model.head(self.model.norm(outputs[-1]).mean(1)), outputs


def filled(name, kernels):
    model = set_device_options(create_model(name), kernels=kernels).set_train(False)
    load_weights(model, formula_weights(model, KEY_TABLES if name.startswith("focalv2") else None))
    return model


def relative_error(values, reference) -> float:
    return float(np.abs(np.asarray(values) - reference).max() / np.abs(reference).max())


def test_every_published_model_has_figures():
    assert set(list_models()) - RECONSTRUCTED == set(LOGITS)


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("name", others_exhaustive(LOGITS))
def test_logits_and_stages(name, kernels):
    reference = LOGITS[name]
    model = filled(name, kernels)
    x = Tensor(images(reference["input"]))
    logits, stages = WithStages(model)(x) if reference["stages"] else (model(x), ())
    logits = logits.asnumpy()
    largest = np.abs(logits).max()
    assert np.abs(logits[:, :16] - np.array(reference["logits_first16"])).max() < 1e-4 * largest
    assert relative_error(np.linalg.norm(logits, axis=1), np.array(reference["logits_l2"])) < 1e-4
    assert np.abs(logits.sum(1) - np.array(reference["logits_sum"])).max() < 1e-4 * np.abs(logits).sum(1).max()
    assert len(stages) == len(reference["stages"])
    for output, expected in zip(stages, reference["stages"], strict=True):
        values = output.asnumpy().astype(np.float64)
        assert list(values.shape) == expected["shape"]
        deviation = expected["std"]
        assert abs(values.mean() - expected["mean"]) < 1e-4 * deviation
        assert abs(values.std() - deviation) < 1e-4 * deviation
        np.testing.assert_allclose(values.ravel()[:4], expected["first4"], atol=1e-4 * np.abs(values).max())

    parameters = model.trainable_params()
    assert sum(parameter.size for parameter in parameters) == reference["params"]
    decayed = sum(has_weight_decay(parameter.name, parameter, model.no_weight_decay) for parameter in parameters)
    assert decayed == reference["weight_decay_params"]
    assert len(parameters) - decayed == reference["no_decay_params"]


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_loss_and_gradients(name, kernels):
    reference = LOGITS[name]
    model = filled(name, kernels)
    parameters = model.trainable_params()

    def loss(x, labels):
        return ops.cross_entropy(model(x), labels)

    step = ms.value_and_grad(loss, None, parameters)
    value, gradients = step(Tensor(images(reference["input"])), Tensor([3, 7], ms.int32))
    assert abs(float(value.asnumpy()) / reference["loss_targets_3_7"] - 1) < 1e-4
    names = {id(parameter): name for name, parameter in official_names(model).items()}
    norms = {
        names[id(p)]: np.linalg.norm(g.asnumpy().astype(np.float64)) for p, g in zip(parameters, gradients, strict=True)
    }
    assert norms.keys() == reference["grad_l2"].keys()
    for parameter, norm in norms.items():
        assert abs(norm / reference["grad_l2"][parameter] - 1) < 1e-3, parameter


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(RECONSTRUCTED))
def test_reconstructed_models_run(name):
    """There is nothing to hold them against; they share their code with those above."""
    model = create_model(name).set_train(False)
    logits = model(Tensor(images((1, 3, *model.img_size)))).asnumpy()
    assert logits.shape == (1, 1000)
    assert np.isfinite(logits).all()
