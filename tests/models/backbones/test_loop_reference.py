"""Every model option against the plain-loop reference (tests/loop_reference.py), which was checked against PyTorch.

Each case is a small network with one option changed. It must give the reference's logits, and these must not be those
of the network without the option: an ignored option fails.
"""

import re
from functools import lru_cache

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.files.weights import official_names
from focal_twins.models import create_model
from tests.loop_reference import closest, focal_transformer, pair, twins
from tests.reference import formula_value

TOLERANCE = 1e-5  # of the largest logit
VISIBLE = 1e-3  # an option that changes no logit by this much is not being tested

# Bases that options are changed from. The map has 8 x 8 tokens, so 16 windows of 2 or 4 of 4.
FOCAL = {
    "img_size": 32,
    "num_classes": 5,
    "embed_dim": 8,
    "depths": [1],
    "num_heads": [2],
    "window_size": 2,
    "focal_levels": [2],
    "focal_windows": [3],
    "expand_sizes": [1],
}
DEEP = FOCAL | {"depths": [2]}  # where what happens alternates between blocks
WIDE = FOCAL | {"window_size": 4}
STAGES = FOCAL | {
    "depths": [1, 1],
    "num_heads": [1, 2],
    "focal_levels": [2, 2],
    "focal_windows": [3, 1],
    "expand_sizes": [1, 1],
}
FOCAL_CASES = {
    "base": (FOCAL, {}),
    "stages": (FOCAL, STAGES),
    "depths": (STAGES, {"depths": [2, 1]}),
    "num_heads": (FOCAL, {"num_heads": [4]}),
    "window_size": (FOCAL, {"window_size": 4}),
    "window_odd": (FOCAL | {"img_size": 24}, {"window_size": 3, "expand_sizes": [2]}),
    "window_larger_than_map": (FOCAL | {"img_size": 16}, {"window_size": 7}),
    "window_larger_than_one_side": (FOCAL | {"img_size": [16, 40]}, {"window_size": 7}),
    "padded_map": (FOCAL | {"img_size": 40}, {"window_size": 4}),
    "padded_rectangular_map": (FOCAL | {"img_size": [24, 40]}, {"window_size": 4}),
    "image_with_a_remainder": (FOCAL, {"img_size": [30, 33]}),
    "mlp_ratio": (FOCAL, {"mlp_ratio": 2.5}),
    "qkv_bias": (FOCAL, {"qkv_bias": False}),
    "qk_scale": (FOCAL, {"qk_scale": 2.0}),
    "ape": (FOCAL, {"ape": True}),
    "patch_norm": (STAGES, {"patch_norm": False}),
    "patch_size_and_in_chans": (FOCAL, {"patch_size": 2, "in_chans": 1, "img_size": 16}),
    "use_shift": (DEEP, {"use_shift": True}),
    "use_shift_odd_window": (DEEP | {"img_size": [24, 36], "window_size": 3}, {"use_shift": True}),
    "use_shift_without_windows": (DEEP | {"img_size": 16}, {"use_shift": True, "window_size": 4}),
    "focal_stages": (STAGES, {"focal_stages": [1]}),
    "focal_levels_0": (FOCAL, {"focal_levels": [0]}),
    "focal_levels_1": (FOCAL, {"focal_levels": [1]}),
    "focal_levels_3": (WIDE, {"focal_levels": [3]}),
    "focal_levels_3_trimmed": (WIDE | {"img_size": 56, "window_size": 7}, {"focal_levels": [3]}),
    "focal_levels_3_trimmed_unevenly": (
        WIDE | {"img_size": [24, 36], "window_size": 3, "expand_sizes": [2]},
        {"focal_levels": [3]},
    ),
    "focal_windows_1": (FOCAL, {"focal_windows": [1]}),
    "focal_windows_5": (FOCAL, {"focal_windows": [5]}),
    "focal_pool_none": (FOCAL, {"focal_pool": "none"}),
    "focal_pool_mean": (FOCAL, {"focal_pool": "mean"}),
    "focal_pool_max": (FOCAL, {"focal_pool": "max"}),
    "focal_pool_conv": (FOCAL, {"focal_pool": "conv"}),
    "expand_sizes_0": (FOCAL, {"expand_sizes": [0]}),
    "expand_sizes_of_the_window": (FOCAL, {"expand_sizes": [2]}),
    "expand_sizes_3": (WIDE, {"expand_sizes": [3]}),
    "expand_layer_even": (DEEP, {"expand_layer": "even"}),
    "expand_layer_odd": (DEEP, {"expand_layer": "odd"}),
    "use_conv_embed": (STAGES, {"use_conv_embed": True}),
    "use_layerscale": (FOCAL, {"use_layerscale": True}),
    "use_pre_norm": (STAGES, {"use_pre_norm": True}),
}

FOCALV2 = FOCAL | {"focal_topK": 8}
STAGES2 = STAGES | {"focal_topK": 8}
FOCALV2_CASES = {
    "base": (FOCALV2, {}),
    "stages": (FOCALV2, STAGES2),
    "num_heads": (FOCALV2, {"num_heads": [4]}),
    "window_odd_rectangular_map": (FOCALV2 | {"img_size": [24, 48]}, {"window_size": 3}),
    "window_7": (FOCALV2 | {"img_size": 56}, {"window_size": 7, "focal_topK": 60}),
    "window_larger_than_map": (FOCALV2 | {"img_size": [16, 32]}, {"window_size": 7, "use_shift": True}),
    "mlp_ratio": (FOCALV2, {"mlp_ratio": 2.5}),
    "qkv_bias": (FOCALV2, {"qkv_bias": False}),
    "qk_scale": (FOCALV2, {"qk_scale": 2.0}),
    "ape": (FOCALV2, {"ape": True}),
    "patch_norm": (STAGES2, {"patch_norm": False}),
    "patch_size_and_in_chans": (FOCALV2, {"patch_size": 2, "in_chans": 1, "img_size": 16}),
    "use_shift": (DEEP | {"focal_topK": 8}, {"use_shift": True}),
    "focal_levels_1": (FOCALV2, {"focal_levels": [1]}),
    "focal_topK_3": (FOCALV2, {"focal_topK": 3}),
    "focal_topK_all": (FOCALV2, {"focal_topK": 1000}),
    "focal_pool_mean": (FOCALV2, {"focal_pool": "mean"}),
    "focal_pool_max": (FOCALV2, {"focal_pool": "max"}),
    "focal_pool_conv": (FOCALV2, {"focal_pool": "conv"}),
    "use_conv_embed": (STAGES2, {"use_conv_embed": True}),
    "use_layerscale": (FOCALV2, {"use_layerscale": True}),
    "use_pre_norm": (STAGES2, {"use_pre_norm": True}),
}

TWINS = {
    "img_size": 24,
    "num_classes": 5,
    "embed_dims": [8],
    "num_heads": [2],
    "mlp_ratios": [2],
    "depths": [2],
    "sr_ratios": [2],
}
TWINS_CASES = {
    "pcpvt": (TWINS, {}),
    "svt": (TWINS, {"wss": [3]}),
    "svt_padded": (TWINS, {"wss": [4]}),
    "svt_rectangular_map": (TWINS | {"img_size": [20, 28]}, {"wss": [3]}),
    "svt_stages": (
        TWINS,
        {
            "embed_dims": [8, 12],
            "num_heads": [1, 3],
            "mlp_ratios": [2, 1.5],
            "depths": [1, 2],
            "sr_ratios": [3, 1],
            "wss": [3, 2],
        },
    ),
    "depths": (TWINS, {"depths": [3]}),
    "num_heads": (TWINS, {"num_heads": [4]}),
    "mlp_ratios": (TWINS, {"mlp_ratios": [2.5]}),
    "sr_ratios_1": (TWINS, {"sr_ratios": [1]}),
    "sr_ratios_with_a_remainder": (TWINS, {"sr_ratios": [4]}),
    "patch_size_and_in_chans": (TWINS, {"patch_size": 2, "in_chans": 1, "img_size": 12}),
}

CASES = {
    f"{family}-{name}": (family, base, option)
    for family, cases in (("focal", FOCAL_CASES), ("focalv2", FOCALV2_CASES), ("twins", TWINS_CASES))
    for name, (base, option) in cases.items()
}


def build(family: str, arguments: dict):
    """A network with formula weights, in evaluation mode."""
    model = create_model(family, **arguments).set_train(False)
    for name, parameter in official_names(model).items():
        if parameter.requires_grad:
            parameter.set_data(Tensor(formula_value(name, parameter.shape)))
    return model


def images(arguments: dict) -> np.ndarray:
    """[2, in_chans, H, W]; a smaller one is a corner of a larger one."""
    channels = arguments.get("in_chans", 3)
    rows, columns = pair(arguments["img_size"])
    return np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)[:, :channels, :rows, :columns]


def reference(model, family: str, arguments: dict) -> np.ndarray:
    """What the loops make of the model's weights; key tables (Focal v2) are not taken from it but found anew."""
    weights = {name: p.asnumpy() for name, p in official_names(model).items() if p.requires_grad}
    if family == "twins":
        return twins(weights, images(arguments), arguments)
    return focal_transformer(weights, images(arguments), arguments, 2 if family == "focalv2" else 1)


def frozen(value):
    return tuple(value) if isinstance(value, list) else value


@lru_cache
def reference_of_base(family: str, arguments: tuple) -> np.ndarray:
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments}
    return reference(build(family, arguments), family, arguments)


@pytest.mark.parametrize(("family", "base", "option"), CASES.values(), ids=CASES.keys())
def test_logits_equal_the_loops(family, base, option):
    arguments = base | option
    model = build(family, arguments)
    expected = reference(model, family, arguments)
    largest = np.abs(expected).max()
    logits = model(Tensor(images(arguments))).asnumpy()
    assert logits.shape == (2, arguments["num_classes"])
    assert np.abs(logits - expected).max() < TOLERANCE * largest
    if option:
        without = reference_of_base(family, tuple((name, frozen(value)) for name, value in base.items()))
        assert np.abs(expected - without).max() > VISIBLE * largest


@pytest.mark.parametrize(
    ("family", "arguments"),
    [("focal", FOCAL), ("focalv2", FOCALV2), ("twins", TWINS | {"wss": [3]})],
    ids=["focal", "focalv2", "twins"],
)
def test_epsilons(family, arguments):
    """What is normalised has a variance of 1e-4 here, so an epsilon of 1e-5 and one of 1e-6 differ by 5%."""
    model = build(family, arguments)
    small = re.compile(r"patch_embed.*norm\.|attn\.proj\.|mlp\.fc2\.|pos_block.*\.bias")
    for name, parameter in official_names(model).items():
        if small.search(name):
            parameter.set_data(Tensor(parameter.asnumpy() * np.float32(0.01)))
    expected = reference(model, family, arguments)
    logits = model(Tensor(images(arguments))).asnumpy()
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("family", ["focal", "focalv2"])
def test_layerscale_starts_at_its_value(family):
    base = FOCAL if family == "focal" else FOCALV2
    model = create_model(family, **base | {"use_layerscale": True, "layerscale_value": 0.25})
    scales = [p.asnumpy() for name, p in official_names(model).items() if name.endswith((".gamma_1", ".gamma_2"))]
    np.testing.assert_array_equal(scales, np.full((2, 8), 0.25, np.float32))


def test_focalv2_ignores_what_the_original_ignores():
    """Expansion and focal windows are v1's: they change no weight and no logit of v2."""
    arguments = FOCALV2 | {"expand_sizes": [0], "expand_layer": "even", "focal_windows": [1]}
    model, plain = build("focalv2", arguments), build("focalv2", FOCALV2)
    assert official_names(model).keys() == official_names(plain).keys()
    x = Tensor(images(arguments))
    np.testing.assert_array_equal(model(x).asnumpy(), plain(x).asnumpy())


def test_focalv2_key_tables_are_by_distance_then_number():
    arguments = FOCALV2 | {"img_size": [24, 48], "window_size": 3, "focal_topK": 11}
    model = build("focalv2", arguments)
    parameters = official_names(model)
    windows = list(np.ndindex(2, 4))  # of the 6 x 12 map
    tables = {
        "topk_cloest_indice_0": [closest((3 * r + 1, 3 * c + 1), (6, 12), 11) for r, c in windows],
        "topk_cloest_indice_1": [closest((r, c), (2, 4), 11) for r, c in windows],
    }
    found = {name: p.asnumpy().tolist() for name, p in parameters.items() if not p.requires_grad}
    assert found == {f"layers.0.blocks.0.attn.{name}": table for name, table in tables.items()}
    weights = {name: p.asnumpy() for name, p in parameters.items()}  # the loops take tables they are given
    expected = reference(model, "focalv2", arguments)
    np.testing.assert_array_equal(focal_transformer(weights, images(arguments), arguments, 2), expected)
