"""Builds models by name for Python programs: with weights, without a head, as a backbone, for any task."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import mindspore as ms
from mindspore import nn

from focal_twins.config.load import (
    COMMAND_LINE,
    CONFIG_ROOT,
    Config,
    ConfigError,
    find_config,
    load_config,
    parse_config,
    plain,
)
from focal_twins.config.task_sections import DEFAULT_TASK, TASK_SECTIONS
from focal_twins.data.transforms import Preprocessing
from focal_twins.errors import UserError
from focal_twins.files.download import weights_file
from focal_twins.files.weights import CONFIG, load_weights, read_checkpoint, select_weights
from focal_twins.models import registry
from focal_twins.models.backbones.backbone import Backbone
from focal_twins.models.device_options import DEVICE_DEFAULTS, set_device_options
from focal_twins.models.feature_maps import FeatureMaps
from focal_twins.models.registry import ArgumentError, find_model

GREY, COLOUR = 1, 3  # channels of images


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """List the names that `create_model` takes: published classifiers, and configurations of the dense tasks.

    Args:
        pattern: names match it: "focal*", "*svt*", "upernet*".
        task: "classification", "segmentation" or "detection"; None: all.

    Raises:
        ArgumentError: there is no such task.

    Example:
        >>> import focal_twins
        >>> focal_twins.list_models("twins_svt*", task="classification")
        ['twins_svt_base', 'twins_svt_large', 'twins_svt_small']
    """
    if task is not None and task not in TASK_SECTIONS:
        raise ArgumentError("task", f"must be one of {', '.join(TASK_SECTIONS)}, got {task!r}")
    names: list[str] = []
    for each in TASK_SECTIONS if task is None else (task,):
        dense = (path.stem for path in (CONFIG_ROOT / each).glob("*.yaml"))
        names += registry.list_models() if each == DEFAULT_TASK else dense
    return sorted(name for name in names if fnmatchcase(name, pattern))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    pretrained: str | Path | None = None,
    weights: str = "auto",
    **arguments,
) -> nn.Cell:
    """Build a model by name, in evaluation mode only after `model.set_train(False)`.

    A classifier maps images [B, in_chans, height, width] float32 to logits [B, num_classes]. It can be called and
    trained in a loop of your own or by mindspore.train.Model: stochastic depth and dropout draw from MindSpore's random
    state (mindspore.set_seed). It has

    - `model.preprocessing`, which turns an image or several (paths, Pillow images, arrays [H, W, 3] uint8) into its
      input, with exactly the pixels of evaluation; None where images are neither grey nor colour;
    - `model.reset_classifier(n)`, which replaces the head, and `model.freeze(stages)`, which excludes the first stages
      from training, or everything but the head without an argument;
    - `model.at(size)`, the same parameters for images of another size.

    Args:
        name: a published model ("twins_svt_small"), a family ("focalv2"), or a configuration of any task, by its name
            or path ("upernet_focal_tiny_ade20k"); see list_models.
        num_classes: of the head; None: what the name says. 0: no head, and pooled features [B, num_features].
        features_only: build a backbone, which gives a tuple of maps [B, channels, height, width], the finest first;
            `model.channels` and `model.strides` describe them.
        out_indices: the stages, from 0, whose maps a backbone gives; None: all.
        pretrained: a file of weights (.pth, .safetensors, .ckpt) of this project, the original code or timm, or the
            name of published weights that are here already (docs/weights.md); nothing is downloaded. Another image
            size, another number of classes or channels are adapted to; what was adapted is logged.
        weights: "raw", "ema", or "auto": averaged weights where the file has them.
        arguments: of the model's constructor, such as img_size=384, in_chans=1 or drop_path_rate=0.1. Of a dense
            model, those of its heads and of its backbone.

    Raises:
        ArgumentError: an argument that cannot work; the message names it.
        UserError: no such name (the message has the nearest one), or weights that cannot be read or do not fit.

    Example:
        >>> import numpy as np, mindspore as ms, focal_twins
        >>> model = focal_twins.create_model("twins_svt_small", num_classes=10, img_size=64).set_train(False)
        >>> model(ms.Tensor(np.zeros((2, 3, 64, 64), np.float32))).shape
        (2, 10)
        >>> model.preprocessing(np.zeros((480, 640, 3), np.uint8)).shape
        (1, 3, 64, 64)
    """
    if isinstance(pretrained, bool):
        raise ArgumentError("pretrained", "must be a file of weights; this package brings none (docs/models.md)")
    given = arguments if num_classes is None else arguments | {"num_classes": num_classes}
    config = _configuration(name)
    content = {} if pretrained is None else read_checkpoint(weights_file(str(pretrained)))
    if config is not None and config.task != DEFAULT_TASK:
        for argument, value in (("features_only", features_only), ("out_indices", out_indices)):
            if value not in (False, None):
                raise ArgumentError(argument, f"is for classifiers; {name} is a model of {config.task}")
        model = _with_arguments(name, config, given).build_model(_device())
    else:
        model = _build(name, config, given, features_only, out_indices)
    if pretrained is not None:
        label = f"checkpoint {pretrained}"
        load_weights(model, select_weights(content, weights, label)[0], label=label)
    if not isinstance(model, Backbone):
        return model
    of_file = parse_config(str(content[CONFIG]), Path(str(pretrained))) if CONFIG in content else None
    if of_file is not None and of_file.task != DEFAULT_TASK:  # whose images are not prepared as a classifier's
        of_file = None
    preprocessing = _preprocessing(of_file or config or _defaults(name), model)
    if features_only:
        model = FeatureMaps(model)
    model.preprocessing = preprocessing
    return model


def _configuration(name: str) -> Config | None:
    """Return the configuration of that name; None for a family, which has none.

    Raises:
        UserError: there is neither; the message has the nearest name.
    """
    try:
        find_model(name)
        return load_config(name) if name in registry.list_models() else None
    except ValueError as error:
        try:
            path = find_config(name)
        except ConfigError:
            near = get_close_matches(name, list_models(), n=1)
            hint = f"did you mean {near[0]}?" if near else "focal_twins.list_models() lists them"
            raise UserError(f"unknown model {name!r}; {hint}") from error
    return load_config(path)


def _defaults(name: str) -> Config:
    """Return the configuration that says nothing but the name of a model."""
    return parse_config(f"model:\n  name: {name}\n", Path(name))


def _device() -> str:
    """Return the kind of device, "CPU" or "Ascend", whose operators a model is built of."""
    target = ms.get_context("device_target")
    return target if target in DEVICE_DEFAULTS else "CPU"


def _build(name: str, config: Config | None, given: dict, features_only: bool, out_indices) -> nn.Cell:
    """Build a classifier or a backbone, or a network on the backbone that is given."""
    family = name
    if config is not None and name not in registry.list_models():
        own = dict(config.model.arguments)
        if features_only:
            own.pop("num_classes", None)
        family, given = config.model.name, own | given
    if isinstance(given.get("backbone"), FeatureMaps):
        given = given | {"backbone": given["backbone"].backbone}
    model = registry.create_model(family, features_only, out_indices, **given)
    return set_device_options(model, **DEVICE_DEFAULTS[_device()])


def _with_arguments(name: str, config: Config, given: dict) -> Config:
    """Return the configuration of a dense model with other arguments, of its heads or else of its backbone.

    Raises:
        UserError: an argument that neither has, or a value that cannot be.
    """
    if not given:
        return config
    own = find_model(config.model.name)[0].parameters()
    keys = {argument: f"{'model' if argument in own else 'backbone'}.{argument}" for argument in given}
    try:
        return load_config(name, flags={keys[argument]: plain(value) for argument, value in given.items()})
    except ConfigError as error:  # of what is no command line here
        raise UserError(f"{name}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from error


def _preprocessing(config: Config, model: Backbone) -> Preprocessing | None:
    """Return how images become a model's input; grey images have the means of the colours' means and deviations."""
    preprocessing = Preprocessing.of(config, model.img_size)
    if model.in_chans == preprocessing.channels:
        return preprocessing
    if model.in_chans not in (GREY, COLOUR):
        return None
    mean, std = ([sum(values) / len(values)] * model.in_chans for values in (preprocessing.mean, preprocessing.std))
    return Preprocessing(preprocessing.transform, mean, std, preprocessing.reading)
