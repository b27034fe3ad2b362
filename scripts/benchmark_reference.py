"""Run one step of the original code, for benchmark.py, which starts this by an interpreter with PyTorch and timm.

Focal Transformers are the official classification models, from a copy of their repository; Twins are timm's.
"""

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from focal_twins.measuring.turns import serve

# timm imports torchvision, whose compiled part does not load beside a PyTorch without CUDA. Then these operators are
# missing, and it cannot be imported. No model here uses them.
UNUSED_OPERATORS = ("nms", "qnms")
# Arguments of our models that the official Focal Transformer and timm's Twins do not have.
UNKNOWN_TO_FOCAL = ("pretrain_size",)
UNKNOWN_TO_TIMM = (*UNKNOWN_TO_FOCAL, "use_checkpoint", "mask_padding")


def import_timm():
    """Import timm, also beside a torchvision that misses operators.

    Returns:
        timm, and the operators that were defined, which must live as long as they are used; None if there are none.
    """
    library = None
    try:
        import torchvision  # noqa: F401  (it defines its operators while it is imported)
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # the parts that were imported before the error
        library = torch.library.Library("torchvision", "DEF")
        for name in UNUSED_OPERATORS:
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import timm

    return timm, library


def leave_out(arguments: dict, names: tuple[str, ...]) -> dict:
    """Return arguments without some of their names."""
    return {name: value for name, value in arguments.items() if name not in names}


def create(family: str, arguments: dict, repository: str):
    """Create the original model with the arguments of ours; those that it does not know are left out."""
    timm, _library = import_timm()
    if family == "twins":
        model = timm.models.twins.Twins(**leave_out(arguments, UNKNOWN_TO_TIMM))
        model.set_grad_checkpointing(arguments["use_checkpoint"])
        return model
    timm.data.transforms._pil_interp = None  # timm dropped it; the original's file for v2 imports it without using it
    sys.path.insert(0, repository)
    file = {"focal": "focal_transformer", "focalv2": "focal_transformer_v2"}[family]
    module = importlib.import_module(f"classification.{file}")
    return module.FocalTransformer(**leave_out(arguments, UNKNOWN_TO_FOCAL))


def inference(model, images):
    """Return a function that classifies the batch."""
    model.eval()

    def step():
        with torch.no_grad():
            model(images)

    return step


def training(model, images, num_classes):
    """Return a function that makes one update like the official main.py: soft targets, AdamW, clipping at norm 5."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    labels = torch.nn.functional.one_hot(torch.randint(0, num_classes, (len(images),)), num_classes)
    targets = labels * 0.9 + 0.1 / num_classes

    def step():
        loss = -(targets * torch.log_softmax(model(images), -1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


class Movement(TorchDispatchMode):
    """Counts the operators called in the context that are no views, and the bytes that they read and write."""

    def __init__(self):
        super().__init__()
        self.operators = self.moved_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.operators += 1
            self.moved_bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def count_moved(step) -> dict:
    """Count the operators of a step, and the bytes that they move."""
    with Movement() as movement:
        step()
    return {"operators": movement.operators, "moved_bytes": movement.moved_bytes}


def prepare(options) -> dict:
    """Create the model; return the functions that benchmark.py calls, by name."""
    arguments = json.loads(options.arguments)
    model = create(options.family, arguments, options.repository)
    if options.compile:
        model = torch.compile(model)
    images = torch.randn(*options.images)
    step = inference(model, images) if options.mode == "infer" else training(model, images, arguments["num_classes"])
    return {"step": step, "threads": torch.get_num_threads, "moved": lambda: count_moved(step)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", required=True, choices=("focal", "focalv2", "twins"))
    parser.add_argument("--arguments", required=True, metavar="JSON", help="of our model")
    parser.add_argument("--mode", required=True, choices=("infer", "train"))
    parser.add_argument("--images", required=True, type=int, nargs=4, help="batch size, channels, height, width")
    parser.add_argument("--compile", action="store_true", help="by torch.compile, instead of operator by operator")
    parser.add_argument("--repository", default="", help="copy of the official Focal Transformer repository")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    serve(lambda: prepare(options))


if __name__ == "__main__":
    main()
