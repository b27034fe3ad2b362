"""Twenty steps of the train cell against the official PyTorch code: losses, gradient norms, weights, their average."""

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.config.schema import OptimizerConfig
from focal_twins.data.mixup import soft_targets
from focal_twins.files.weights import load_weights
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy
from focal_twins.training.ema import ExponentialMovingAverage
from focal_twins.training.optimizer import create_optimizer
from focal_twins.training.train_step import LossScale, TrainStep
from tests.kernels.compiler import COMPILED_OR_EXHAUSTIVE
from tests.reference import figures, formula_weights, images
from tests.training.test_train_step import take

NANO = {
    "img_size": 112,
    "num_classes": 10,
    "embed_dim": 32,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 4],
    "focal_stages": [0, 1, 2],
    "focal_levels": [2, 2, 2],
    "focal_windows": [7, 5, 3],
    "expand_sizes": [3, 3, 3],
    "drop_path_rate": 0.0,
}


@pytest.mark.parametrize("kernels", COMPILED_OR_EXHAUSTIVE)
@pytest.mark.parametrize(
    ("family", "arguments", "key_tables"),
    [
        ("focal", {}, None),
        ("focalv2", {"focal_topK": 128, "use_conv_embed": True}, "focalv2_neighbours_112_window7_top128_3stage"),
    ],
    ids=["focal", "focalv2"],
)
def test_twenty_steps_equal_the_original(family, arguments, key_tables, kernels, graph_mode):
    reference = figures("trajectory")[f"{family}_nano_112"]
    model = set_device_options(create_model(family, **NANO, **arguments), kernels=kernels)
    load_weights(model, formula_weights(model, key_tables))
    x = Tensor(images((2, 3, 112, 112)))
    np.testing.assert_allclose(model.set_train(False)(x).asnumpy(), reference["initial_logits"], atol=1e-5)

    optimizer = create_optimizer(model, OptimizerConfig(weight_decay=0.05, betas=[0.9, 0.999], eps=1e-8))
    assert sum(decay > 0 for decay in optimizer.weight_decays) == reference["weight_decay_tensors"]
    assert sum(decay == 0 for decay in optimizer.weight_decays) == reference["no_decay_tensors"]
    ema = ExponentialMovingAverage(model.trainable_params(), 0.9)
    step = TrainStep(
        SoftTargetCrossEntropy(model),
        model.trainable_params(),
        optimizer,
        LossScale(1024.0, True, 2000),
        ema=ema,
        clip_norm=5.0,
    ).set_train()
    losses, norms = [], []
    for t in range(20):
        generator = np.random.default_rng(1000 + t)
        batch = generator.standard_normal((8, 3, 112, 112)).astype(np.float32)
        labels = generator.integers(0, 10, 8)
        loss, norm, finite, *_ = take(step, batch, soft_targets(labels, 10, 0.1), rate=1e-3)
        assert finite
        losses.append(loss)
        norms.append(norm)
    np.testing.assert_allclose(losses, reference["loss"], rtol=2e-4)
    np.testing.assert_allclose(norms, reference["grad_norm_before_clip"], rtol=2e-4)
    np.testing.assert_allclose(model.set_train(False)(x).asnumpy(), reference["final_logits"], atol=1e-3)
    with ema.applied():
        np.testing.assert_allclose(model(x).asnumpy(), reference["ema_logits"], atol=1e-3)
    np.testing.assert_allclose(model(x).asnumpy(), reference["final_logits"], atol=1e-3)
