"""Graphs do not grow unnoticed: operators, and bytes that they write, against tests/reference/graph_limits.yaml.

What makes a model fast here, few operators and few bytes, and what can be counted on any machine. One block a stage of
the smallest model of each family, at its own size, for training and inference by operators, and for training by
compiled kernels. After a change that is worth it:
pytest tests/measuring/test_graph_limits.py --write-graph-limits, and say in the commit why.
"""

from collections import Counter

import mindspore as ms
import numpy as np
import pytest
import yaml

from focal_twins.measuring.graph import activation_bytes, compiled_operators, peak_bytes
from focal_twins.models import create_model
from focal_twins.models.device_options import set_device_options
from scripts.benchmark_own import update
from tests.conftest import ROOT
from tests.kernels.compiler import needs_compiler

LIMITS = ROOT / "tests/reference/graph_limits.yaml"
GROWTH = 1.03
MODELS = {
    "focal_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1]},
    "focalv2_tiny_useconv_patch4_window7_224": {"depths": [1, 1, 1, 1]},
    "twins_svt_small": {"depths": [2, 1, 1, 1]},  # a local and a global block
}


def counted(name: str, mode: str) -> dict:
    """Totals of a compiled graph at batch 2, and its operators by kind."""
    model = create_model(name, **MODELS[name])
    if mode == "train by kernels":
        set_device_options(model, kernels="compiled")
    images = ms.Tensor(np.zeros((2, 3, 224, 224), np.float32))
    if mode.startswith("train"):
        cell, arguments = update(model, model, images)
        operators = compiled_operators(cell, *arguments())
    else:
        operators = compiled_operators(model.set_train(False), images)
    return {
        "operators": len(operators),
        "activation_bytes": activation_bytes(operators),
        "peak_bytes": peak_bytes(operators),
        "kinds": dict(sorted(Counter(operator.name for operator in operators).items())),
    }


def grown(found: dict, limits: dict) -> list[str]:
    """What is more than a few per cent above its limit, in words."""
    totals = [key for key in limits if key != "kinds" and found[key] > limits[key] * GROWTH]
    lines = [f"{key}: {found[key]:,}, was {limits[key]:,} (+{found[key] / limits[key] - 1:.1%})" for key in totals]
    if lines:
        before = limits["kinds"]
        more = [f"{kind} {before.get(kind, 0)} -> {n}" for kind, n in found["kinds"].items() if n > before.get(kind, 0)]
        lines.append("more operators: " + (", ".join(more) or "none"))
    return lines


@pytest.mark.parametrize("mode", ["infer", "train", pytest.param("train by kernels", marks=needs_compiler)])
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_does_not_grow(name, mode, request):
    stored = yaml.safe_load(LIMITS.read_text()) if LIMITS.exists() else {}
    found = counted(name, mode)
    if request.config.getoption("--write-graph-limits"):
        stored[f"{name} {mode}"] = found
        LIMITS.write_text(yaml.safe_dump(stored, sort_keys=True))
        return
    lines = grown(found, stored[f"{name} {mode}"])
    assert not lines, "\n".join(
        [*lines, "if it is worth it: pytest tests/measuring/test_graph_limits.py --write-graph-limits"]
    )


def test_growth_is_told_by_kind():
    limits = {"operators": 100, "activation_bytes": 1000, "peak_bytes": 10, "kinds": {"Add": 60, "Mul": 40}}
    assert grown(limits | {"operators": 103, "kinds": {"Add": 63, "Mul": 40}}, limits) == []
    assert grown(limits | {"operators": 50, "activation_bytes": 10}, limits) == []
    lines = grown(limits | {"operators": 104, "kinds": {"Add": 63, "Erf": 1, "Mul": 40}}, limits)
    assert lines == ["operators: 104, was 100 (+4.0%)", "more operators: Add 60 -> 63, Erf 0 -> 1"]
    assert grown(limits | {"peak_bytes": 11}, limits) == ["peak_bytes: 11, was 10 (+10.0%)", "more operators: none"]
