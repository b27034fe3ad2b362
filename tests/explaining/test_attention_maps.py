"""Attention taken out of a model is the model's: it gives the layer's output again."""

import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.errors import UserError
from focal_twins.explaining.attention_maps import BlockAddress, attention_weights, grad_cam, observe, token_covers, view
from focal_twins.models import create_model
from focal_twins.models.gathers import with_padding_token
from tests.models.test_training_options import FAMILIES
from tests.reference import images
from tests.trained import with_formula_weights

MODELS = {
    "focal": ("focal", FAMILIES["focal"] | {"focal_levels": [3, 2], "window_size": 4, "expand_sizes": [2, 1]}),
    "focal, padded": ("focal", FAMILIES["focal"] | {"img_size": 36, "window_size": 4, "focal_windows": [3, 3]}),
    "focal, shifted": ("focal", FAMILIES["focal"] | {"use_shift": True, "expand_layer": "odd"}),
    "focalv2": ("focalv2", FAMILIES["focalv2"] | {"focal_topK": 12}),
    "twins": ("twins", FAMILIES["twins"]),
}
ADDRESSES = [BlockAddress(0, 0), BlockAddress(0, 1), BlockAddress(1, 0)]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    family, arguments = MODELS[request.param]
    return with_formula_weights(create_model(family, **arguments))


def image_of(model):
    return images((1, 3, *model.img_size))


def values_of(attention, inputs):
    """[keys, heads, head_dim] of all tokens that can be keys, by matrix products in NumPy."""
    if hasattr(attention, "subsampled"):
        rows, projection = attention.subsampled(inputs[0]).asnumpy(), (attention.kv, 1)
    else:
        tokens = inputs[-1] if len(inputs) > 1 else attention.tokens(inputs[0])
        rows, projection = tokens.asnumpy()[0], (attention.qkv, 2)
    dim = attention.dim
    weight, bias = (p.asnumpy() for p in (projection[0].weight, projection[0].bias))
    part = slice(projection[1] * dim, (projection[1] + 1) * dim)
    return (rows @ weight[part].T + bias[part]).reshape(-1, attention.num_heads, attention.head_dim)


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_the_weights_give_the_output_again(model, address):
    seen = observe(model, image_of(model), address, BlockAddress(1, 0))
    attention = address.of(model).attn
    weights = attention_weights(attention, seen.inputs)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    values = values_of(attention, seen.inputs)
    length = seen.output.shape[1]
    mixed = np.full((length, attention.num_heads, attention.head_dim), np.nan)
    for window, of_window in enumerate(weights):
        is_global = not hasattr(attention, "key_index")
        queries = np.arange(length) if is_global else attention.query_index[window]
        keys = values if is_global else values[attention.key_index[window]]
        result = np.einsum("hqk,khd->qhd", of_window, keys)
        mixed[queries[queries < length]] = result[queries < length]
    output = mixed.reshape(length, -1) @ attention.proj.weight.asnumpy().T + attention.proj.bias.asnumpy()
    np.testing.assert_allclose(output, seen.output.asnumpy()[0], atol=1e-4)


def test_observing_changes_nothing(model):
    image = image_of(model)
    names = [parameter.name for parameter in model.get_parameters()]
    before = model(Tensor(image)).asnumpy()[0]
    seen = observe(model, image, BlockAddress(0, 0), BlockAddress(0, 1))
    np.testing.assert_array_equal(seen.logits, before)
    assert seen.label == before.argmax()
    np.testing.assert_array_equal(model(Tensor(image)).asnumpy()[0], before)
    assert [parameter.name for parameter in model.get_parameters()] == names


def test_the_gradient_is_that_by_the_blocks_output(model):
    """By differences, through the blocks that follow."""
    image = image_of(model)
    seen = observe(model, image, BlockAddress(0, 0), BlockAddress(0, 0), label=3)
    assert seen.label == 3
    block = BlockAddress(0, 0).of(model)
    direction = np.random.default_rng(1).standard_normal((1, *seen.features.shape)).astype(np.float32)
    step = 1e-2

    def logit(offset):
        handle = block.register_forward_hook(lambda cell, inputs, output: output + Tensor(offset))
        result = model(Tensor(image)).asnumpy()[0, 3]
        handle.remove()
        return result

    slope = (logit(step * direction) - logit(-step * direction)) / (2 * step)
    assert slope == pytest.approx(float((seen.gradient * direction[0]).sum()), rel=0.02, abs=1e-3)


def test_grad_cam_is_the_channels_weighted_by_their_mean_gradient(model):
    seen = observe(model, image_of(model), BlockAddress(0, 0), BlockAddress(1, 0))
    map_size = model.stage_map(1)
    cam = grad_cam(seen, map_size)
    assert cam.shape == map_size
    for token in range(cam.size):
        expected = sum(seen.features[token, c] * seen.gradient[:, c].mean() for c in range(seen.features.shape[1]))
        assert cam.ravel()[token] == pytest.approx(max(expected, 0), abs=1e-4)


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_a_view_accounts_for_all_attention(model, address):
    """Shares add up to 1, and densities to the shares but for padding, whose tokens are in no image."""
    seen = observe(model, image_of(model), address, BlockAddress(1, 0))
    shown = view(model, address, seen.inputs)
    assert sum(group.share() for group in shown.groups) == pytest.approx(1, abs=1e-5)
    attention = address.of(model).attn
    padded = getattr(address.of(model), "padded", False) or getattr(attention, "padded", False)
    total = shown.density().sum()
    assert total <= 1 + 1e-5
    assert padded or total == pytest.approx(1, abs=1e-5)
    for head in range(attention.num_heads):
        of_head = view(model, address, seen.inputs, head=head)
        assert sum(group.share() for group in of_head.groups) == pytest.approx(1, abs=1e-5)
    heads = [view(model, address, seen.inputs, head=head).density() for head in range(attention.num_heads)]
    np.testing.assert_allclose(np.mean(heads, axis=0), shown.density(), atol=1e-6)


@pytest.mark.parametrize("family", ["focal", "focalv2"])
def test_pooled_keys_stand_for_the_tokens_that_change_them(family):
    """A token of the map matters to exactly the pooled tokens that are said to cover it."""
    model = with_formula_weights(create_model(family, **MODELS[family][1]))
    block, map_size = BlockAddress(0, 0).of(model), model.stage_map(0)
    length = map_size[0] * map_size[1]
    covers = token_covers(block, length)
    fine = np.random.default_rng(0).standard_normal((1, length, 16)).astype(np.float32)

    def pooled(fine):
        tokens = Tensor(fine)
        tokens = with_padding_token(tokens) if block.padded else tokens
        return np.concatenate([pool.pooled(tokens).asnumpy()[0] for pool in block.pool_layers])

    before = pooled(fine)
    for token in (0, 5, length // 2, length - 1):
        changed = fine.copy()
        changed[0, token] += 1
        moved = np.flatnonzero(np.abs(pooled(changed) - before).max(-1) > 1e-6)
        said = [i for i, cover in enumerate(covers[length + block.padded :]) if token in cover]
        assert moved.tolist() == said
        assert said  # in this map every token is in some pooled one


def test_a_windows_queries_and_keys_are_where_they_are(model):
    """The window in row 1, column 0 of an unshifted layer is that square of tokens; a point's is the one it lies in."""
    address = BlockAddress(0, 0)
    seen = observe(model, image_of(model), address, BlockAddress(1, 0))
    shown = view(model, address, seen.inputs, window=(1, 0))
    height, width = shown.map_size
    side = round(np.sqrt(address.of(model).attn.window_area))
    square = [r * width + c for r in range(side, min(2 * side, height)) for c in range(side)]
    assert sorted(shown.window) == square
    np.testing.assert_array_equal(np.sort(shown.queries), square)
    point = view(model, address, seen.inputs, token=square[-1])
    assert sorted(point.window) == square
    assert point.queries.tolist() == [square[-1]]
    # The mean over the window's queries is that over its points.
    densities = [view(model, address, seen.inputs, token=token).density() for token in square]
    np.testing.assert_allclose(np.mean(densities, axis=0), shown.density(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "window"),
    [("focal", (0, 1)), ("focal, padded", (1, 1)), ("focalv2", (1, 1)), ("focal, shifted", (3, 3))],
)
def test_a_window_sees_exactly_the_tokens_that_are_shown(name, window):
    """A token of the map changes a window's results if it is under one of the keys shown, and only then."""
    family, arguments = MODELS[name]
    model = with_formula_weights(create_model(family, **arguments))
    address = BlockAddress(0, 1)
    block = address.of(model)
    seen = observe(model, image_of(model), address, BlockAddress(1, 0))
    shown = view(model, address, seen.inputs, window=window)
    length = shown.map_size[0] * shown.map_size[1]
    under_keys = set(np.concatenate([cover for group in shown.groups for cover in group.covers]).tolist())
    fine = seen.inputs[0].asnumpy()[:, :length]

    def results(fine):
        return block.focal_attention(Tensor(fine), None).asnumpy()[0, shown.window]

    before = results(fine)
    tokens = {*np.random.default_rng(2).permutation(length)[:20].tolist()}
    pool = block.pool_layers[0]
    tokens |= set(pool.part_index[0].tolist())  # of the first part, whose number masked keys have
    for token in tokens & set(range(length)):
        changed = fine.copy()
        changed[0, token] += 3
        assert (np.abs(results(changed) - before).max() > 1e-6) == (token in under_keys)


def test_what_a_model_does_not_have_is_refused(model):
    with pytest.raises(UserError, match=r"layer 0\.2: no such block; the last of each stage are 0\.1, 1\.0"):
        BlockAddress(0, 2).of(model)
    seen = observe(model, image_of(model), BlockAddress(0, 0), BlockAddress(1, 0))
    with pytest.raises(UserError, match=r"--window 99,0: layer 0\.0 has rows 0 to"):
        view(model, BlockAddress(0, 0), seen.inputs, window=(99, 0))
    with pytest.raises(UserError, match=r"--head 7: layer 0\.0 has heads 0 to 1"):
        view(model, BlockAddress(0, 0), seen.inputs, head=7)
