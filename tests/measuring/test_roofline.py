"""The estimate for an Ascend: which operators belong to which block, and what they are said to cost."""

from dataclasses import replace

import pytest

from focal_twins.measuring.graph import Operator, TensorType
from focal_twins.measuring.roofline import Cost, operator_blocks

PRODUCT = Operator(0, "MatMul", (), (TensorType((2, 3), "float16"),), "Default/head-Dense/MatMul-op0")


def test_operators_belong_to_the_block_whose_names_they_have():
    scopes = [
        "Default/patch_embed-PatchEmbed/MatMul-op0",
        "Default/layers-CellList/0-FocalStage/blocks-CellList/1-FocalBlock/MatMul-op1",
        "Default/layers-CellList/2-FocalStage/blocks-CellList/0-FocalBlock/MatMul-op2",
        "Default/layers-CellList/0-FocalStage/blocks-CellList/1-FocalBlock/MatMul-op3",  # a graph called again
        "Default/blocks-CellList/3-CellList/0-TwinsBlock/MatMul-op4",
        "Default/head-Dense/MatMul-op5",
    ]
    operators = [replace(PRODUCT, index=index, scope=scope) for index, scope in enumerate(scopes)]
    assert operator_blocks(operators) == ["outside", "block 0.1", "block 2.0", "block 2.0", "block 3.0", "outside"]


def test_the_longer_of_arithmetic_and_memory_counts():
    cost = Cost()
    cost.add(PRODUCT, products=1000, moved=10, flops=2.0, bandwidth=10.0)  # 1000 s by arithmetic, 1 s by memory
    cost.add(PRODUCT, products=1, moved=50, flops=2.0, bandwidth=10.0)  # 1 s, 5 s
    cost.add(replace(PRODUCT, name="Mul"), products=0, moved=70, flops=2.0, bandwidth=10.0)  # 7 s, nothing where fused
    cost.add(replace(PRODUCT, name="Reshape"), products=0, moved=0, flops=2.0, bandwidth=10.0)
    assert cost == Cost(operators=3, multiply_accumulates=1001, moved_bytes=130, alone=1012.0, fused=1005.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["focalv2_tny"], "focalv2_tny"),
        (["--bandwidth", "0"], "must be above 0"),
        (["--reference", "there"], "belong together"),
    ],
)
def test_bad_input_is_one_line(run_script, arguments, expected):
    code, out, err = run_script("scripts.roofline", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert expected in err
