"""Offers the models by name: `create_model(name, **overrides)` and `list_models()`."""

from focal_twins.models.backbones import focal_transformer, twins  # noqa: F401  (they register their models)
from focal_twins.models.detectors import atss, rcnn, reppoints_v2, retinanet, sparse_rcnn  # noqa: F401
from focal_twins.models.registry import ArgumentError, create_model, find_model, list_models, resolve_arguments
from focal_twins.models.segmentors import semantic_fpn, upernet  # noqa: F401

__all__ = ["ArgumentError", "create_model", "find_model", "list_models", "resolve_arguments"]
