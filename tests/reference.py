"""The originals' figures, and the weights and inputs that they were measured with."""

import json
from pathlib import Path

import numpy as np

from focal_twins.device_checks.networks import formula_value
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options

FOLDER = Path(__file__).parent / "reference"


def figures(name: str) -> dict:
    """One of the JSON files."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def formula_weights(model, key_tables: str | None = None) -> dict[str, np.ndarray]:
    """Values for all of a model's parameters; key tables (Focal v2) come from the named npz file."""
    from focal_twins.files.weights import official_names

    tables = np.load(FOLDER / f"{key_tables}.npz") if key_tables else {}
    weights = {}
    for name, parameter in official_names(model).items():
        if parameter.requires_grad:
            weights[name] = formula_value(name, parameter.shape)
        else:  # layers.<stage>.blocks.<block>.attn.topk_cloest_indice_<level>
            weights[name] = tables[f"stage{name.split('.')[1]}_level{name[-1]}"].astype(np.int64)
    return weights


def images(shape: tuple[int, ...]) -> np.ndarray:
    """The input of all reference figures."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def trajectory_backbone(size: tuple[int, int], kernels: str):
    """The backbone of the dense networks whose first training steps are among the figures, for images of a size."""
    model = create_model(
        "focal", features_only=True, img_size=list(size), pretrain_size=224, embed_dim=32, depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8], focal_levels=[2, 2, 2, 2], drop_path_rate=0.0,
    )  # fmt: skip
    return set_device_options(model, kernels=kernels)
