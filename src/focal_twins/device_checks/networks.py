"""Builds a small network of every kind, with the weights, inputs and loss of a training step.

Their graphs hold every operator of the large ones and compile in seconds. Weights and inputs follow from names, so that
they are the same on every machine. tests/test_ascend_readiness.py looks at the graphs, the checks at the numbers.
"""

import zlib
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from focal_twins.files.weights import load_weights, official_names
from focal_twins.models import create_model
from focal_twins.models.device_options import DEVICE_DEFAULTS, set_device_options
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy
from focal_twins.tasks.detection.loss import DetectionLosses
from focal_twins.tasks.losses import Losses
from focal_twins.tasks.segmentation.loss import PixelLosses

BATCH, SIDE, CLASSES = 4, 32, 5

_FOCAL: dict[str, Any] = {
    "img_size": SIDE, "num_classes": CLASSES, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2,
    "focal_stages": [0, 1], "focal_levels": [2, 2],
}  # fmt: skip
_TWINS: dict[str, Any] = {
    "img_size": SIDE, "num_classes": CLASSES, "embed_dims": [16, 32], "num_heads": [2, 4], "mlp_ratios": [2.0, 2.0],
    "sr_ratios": [2, 1],
}  # fmt: skip
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {  # the family and its arguments; a block of each kind
    "focal": ("focal", _FOCAL | {"expand_sizes": [1, 1], "focal_windows": [3, 1]}),
    "focalv2": ("focalv2", _FOCAL),
    "twins_svt": ("twins", _TWINS | {"depths": [2, 1], "wss": [3, 3]}),  # local and global blocks take turns
    "twins_pcpvt": ("twins", _TWINS | {"depths": [1, 1], "wss": None}),
}
# The family, the backbone and the family's arguments of the others.
SEGMENTORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "upernet": ("upernet", "focal", {"channels": 8, "auxiliary_channels": 4, "pool_scales": [1, 2]}),
    "semantic_fpn": ("semantic_fpn", "twins_pcpvt", {"neck_channels": 8, "channels": 4}),
}
_ONE_STAGE = {"stacked_convs": 1, "start_level": 0, "num_outs": 3, "candidates_per_level": 20}
_TWO_STAGES = {
    "channels": 8, "hidden": 16, "anchor_samples": 16, "proposals_per_level": 32, "proposals": 24, "samples": 8,
    "max_boxes": 3,
}  # fmt: skip
# Its norms have 32 groups. Of one channel each, on a map of 2 x 2, they normalise four values: in mixed precision the
# gradients' norm of a graph then differs by 4% from that of single operators, and by 0.06% with two channels each.
_POINTS = {"channels": 64, "corner_channels": 64, "levels": 3, "neck_repeats": 1, "max_boxes": 3}
_LEARNED_PROPOSALS = {
    "channels": 16, "proposals": 6, "stages": 2, "num_heads": 2, "hidden": 16, "dynamic_channels": 4, "max_boxes": 3,
}  # fmt: skip
DETECTORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "retinanet": ("retinanet", "twins_pcpvt", _ONE_STAGE | {"neck_channels": 8, "channels": 8}),
    "atss": ("atss", "twins_pcpvt", _ONE_STAGE | {"neck_channels": 32, "channels": 32}),
    "mask_rcnn": ("mask_rcnn", "twins_pcpvt", _TWO_STAGES),
    "mask_rcnn_adaptive": ("mask_rcnn", "twins_pcpvt", _TWO_STAGES | {"sampling_ratio": 0}),
    "cascade_rcnn": ("cascade_rcnn", "twins_pcpvt", _TWO_STAGES),
    "reppoints_v2": ("reppoints_v2", "twins_pcpvt", _POINTS),
    "sparse_rcnn": ("sparse_rcnn", "twins_pcpvt", _LEARNED_PROPOSALS),
}
NETWORKS = (*CLASSIFIERS, *SEGMENTORS, *DETECTORS)
OBJECTS = np.array([[2, 3, 30, 18], [8, 10, 20, 28]], np.float32)  # of each image that a detector learns from
LABELS = np.array([1, 3], np.int32)


def create_network(name: str, device_target: str, drop_rate: float = 0.0) -> nn.Cell:
    """Create the small network of a name in NETWORKS, with the operators of a device.

    Args:
        drop_rate: rate of every kind of dropping that the network has.
    """
    if name in CLASSIFIERS:
        family, arguments = CLASSIFIERS[name]
        rates = {"drop_rate": drop_rate, "attn_drop_rate": drop_rate, "drop_path_rate": drop_rate}
        model = create_model(family, **arguments | rates)
    else:
        network, on, own = (SEGMENTORS | DETECTORS)[name]
        family, arguments = CLASSIFIERS[on]
        arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
        backbone = create_model(family, features_only=True, **arguments | {"drop_path_rate": drop_rate})
        model = create_model(network, backbone=backbone, num_classes=CLASSES, **own)
    # By operators alone: the figures of a CPU are those of any CPU.
    return set_device_options(model, **DEVICE_DEFAULTS[device_target] | {"kernels": "none"})


def formula_value(name: str, shape: tuple[int, ...], scale: float = 0.5) -> np.ndarray:
    """Return the value of a parameter, which follows from its official name.

    Args:
        scale: that of weights that are no tables.
    """
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        table = "relative_position" in name or "pos_embed" in name
        return (values * (0.5 if table else scale / np.sqrt(np.prod(shape[1:])))).astype(np.float32)
    if name.endswith("running_var"):
        return (1 + 0.5 * np.abs(values)).astype(np.float32)
    value = (values * 0.1).astype(np.float32)
    is_norm = any(part in name for part in ("norm", ".bn.", ".gn."))
    gain = (is_norm and name.endswith(".weight")) or name.endswith(("gamma_1", "gamma_2"))
    return value + np.float32(1) if gain else value


def fill(model: nn.Cell) -> nn.Cell:
    """Give every weight, and every running statistic, the value of its name; return the model."""
    named = official_names(model).items()
    chosen = {name: p.shape for name, p in named if p.requires_grad or ".running_" in name}
    load_weights(model, {name: formula_value(name, shape) for name, shape in chosen.items()})
    return model


def images(seed: int = 0) -> np.ndarray:
    """Draw a batch of images [BATCH, 3, SIDE, SIDE] float32."""
    return np.random.default_rng(seed).standard_normal((BATCH, 3, SIDE, SIDE)).astype(np.float32)


def evaluation_inputs(name: str) -> tuple[Tensor, ...]:
    """Return what the network takes in evaluation: images and, of detectors, their (height, width)."""
    if name in DETECTORS:
        return Tensor(images()), Tensor(np.full((BATCH, 2), SIDE, np.int32))
    return (Tensor(images()),)


def training_loss(name: str, model: nn.Cell, network: nn.Cell, seed: int = 0) -> tuple[Losses, tuple]:
    """Return the loss of a network's task and its inputs: a batch and the noise of a step.

    Args:
        model: see create_network. network: the model at a level of precision (apply_precision).
    """
    generator = np.random.default_rng(seed)
    batch = Tensor(images(seed))
    if name in CLASSIFIERS:
        targets = Tensor(np.eye(CLASSES, dtype=np.float32)[generator.integers(0, CLASSES, BATCH)])
        return SoftTargetCrossEntropy(network), (batch, targets, drop_path_of(model, generator), Tensor(1, ms.int32))
    if name in SEGMENTORS:
        labels = Tensor(generator.integers(0, CLASSES, (BATCH, SIDE * SIDE)).astype(np.int32))
        noise = model.draw_drop_path(generator, BATCH), model.draw_channel_scales(generator, BATCH)
        return PixelLosses(network, model, ignore_index=255, mean="all"), (batch, labels, *noise)
    canvas = model.img_size
    masks = np.ones((len(OBJECTS), *canvas), np.uint8)
    targets = model.target_maker()(canvas, canvas, OBJECTS, LABELS, generator, masks)
    arrays = (Tensor(np.stack([array] * BATCH)) for array in (np.array(canvas, np.int32), *targets))
    return DetectionLosses({canvas: network}, {canvas: model}), (batch, *arrays, drop_path_of(model, generator))


def drop_path_of(model: nn.Cell, generator: np.random.Generator) -> Tensor | None:
    """Draw the scales of stochastic depth for a batch, None for networks that have none."""
    return model.draw_drop_path(generator, BATCH) if hasattr(model, "draw_drop_path") else None
