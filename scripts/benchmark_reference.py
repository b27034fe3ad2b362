"""One step of the original code, for benchmark.py, which runs this under an interpreter that has PyTorch and timm.

Focal Transformer: the official classification models, from a copy of their repository. Twins: timm's.
"""

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.measuring.turns import serve

# torchvision as the package index has it does not load beside a PyTorch without CUDA, for these operators are missing.
# timm imports it; no model here uses it.
UNUSED_OPERATORS = ("nms", "qnms")
NOT_FOCALS = ("pretrain_size",)
NOT_TIMMS = (*NOT_FOCALS, "use_checkpoint", "mask_padding")  # arguments of our models alone


def import_timm():
    """timm, also beside a torchvision that misses operators."""
    library = torch.library.Library("torchvision", "DEF")
    for name in UNUSED_OPERATORS:
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import timm

    return timm, library  # which must live as long as its operators


def without(arguments: dict, names: tuple[str, ...]) -> dict:
    return {name: value for name, value in arguments.items() if name not in names}


def create(family: str, arguments: dict, repository: str):
    """The original model with the arguments of ours; those that it does not know are left out."""
    timm, _library = import_timm()
    if family == "twins":
        model = timm.models.twins.Twins(**without(arguments, NOT_TIMMS))
        model.set_grad_checkpointing(arguments["use_checkpoint"])
        return model
    timm.data.transforms._pil_interp = None  # dropped by timm; the file for v2 imports it and does not use it
    sys.path.insert(0, repository)
    file = {"focal": "focal_transformer", "focalv2": "focal_transformer_v2"}[family]
    return importlib.import_module(f"classification.{file}").FocalTransformer(**without(arguments, NOT_FOCALS))


def inference(model, images):
    model.eval()

    def step():
        with torch.no_grad():
            model(images)

    return step


def training(model, images, num_classes):
    """An update as the official main.py makes it: soft targets, AdamW, gradients clipped at norm 5."""
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
    """Operators called in the context that are no views, and the bytes of the tensors that they read and write."""

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


def moved(step) -> dict:
    """What a step moves."""
    with Movement() as movement:
        step()
    return {"operators": movement.operators, "moved_bytes": movement.moved_bytes}


def prepare(options) -> dict:
    arguments = json.loads(options.arguments)
    model = create(options.family, arguments, options.repository)
    if options.compile:
        model = torch.compile(model)
    images = torch.randn(*options.images)
    step = inference(model, images) if options.mode == "infer" else training(model, images, arguments["num_classes"])
    return {"step": step, "threads": torch.get_num_threads, "moved": lambda: moved(step)}


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
