"""Focal Transformer v1 and v2, and Twins, in MindSpore: image classification, segmentation and detection.

    import focal_twins

    focal_twins.list_models("twins*")
    model = focal_twins.create_model("twins_svt_small", num_classes=10, pretrained="twins_svt_small.pth")
    logits = model(model.preprocessing("photo.jpg"))

    predictor = focal_twins.load("runs/mine/checkpoints/best.ckpt")
    predictor("photo.jpg").top(5)

`create_model` builds classifiers, backbones and dense models by name, `load` predicts with trained ones; `save_weights`
and `load_weights` write and read files of weights. docs/python.md explains them with examples. The program
`focal-twins` trains, evaluates and exports. MindSpore is imported when one of these is first used.
"""

from importlib import import_module

__version__ = "1.0.0.dev0"

_PLACES = {
    "create_model": "focal_twins.api.models",
    "list_models": "focal_twins.api.models",
    "load": "focal_twins.api.predicting",
    "Predictor": "focal_twins.api.predicting",
    "load_weights": "focal_twins.files.weights",
    "save_weights": "focal_twins.files.weights",
    "UserError": "focal_twins.errors",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str):
    """Import what is asked for: MindSpore takes seconds, and commands set its environment before that."""
    if name not in _PLACES:
        raise AttributeError(f"module 'focal_twins' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
