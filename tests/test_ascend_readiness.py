"""What an Ascend 910 needs and a CPU can check: every operator of every graph has a place there.

Nothing here runs on an Ascend. The graphs are those of MindSpore's front end, built with what runs use there (real
convolutions, the overflow register, gradients reduced over devices), from which its engine builds its own. The front
end was asked on a CPU; where it asks for the device itself, an Ascend's graph may differ.
"""

import inspect
import json
import mmap
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import get_args
from unittest.mock import create_autospec

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor, nn, ops
from mindspore.communication._comm_helper import DEVICE_TO_BACKEND
from mindspore.ops.auto_generate import gen_ops_prim

from focal_twins.config.load import load_config
from focal_twins.config.schema import OptimizerConfig, RuntimeConfig
from focal_twins.device_checks.networks import (
    BATCH,
    DETECTORS,
    SEGMENTORS,
    SIDE,
    create_network,
    evaluation_inputs,
    training_loss,
)
from focal_twins.device_checks.networks import NETWORKS as SMALL_NETWORKS
from focal_twins.distributed import ranks as distributed
from focal_twins.distributed.launch import Launch
from focal_twins.errors import UserError
from focal_twins.measuring.graph import PRODUCT_RULES, compiled_operators
from focal_twins.models.batch_norm import batch_norms, synchronise_batch_norms
from focal_twins.models.precision import apply_precision
from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy
from focal_twins.training.ema import ExponentialMovingAverage
from focal_twins.training.optimizer import create_optimizer
from focal_twins.training.train_step import LossScale, TrainStep
from tests.conftest import ROOT, SOURCES, others_exhaustive
from tests.training.test_train_step import Linear

TABLE_FILE = ROOT / "tests" / "reference" / "ascend_primitives.yaml"
TABLE = yaml.safe_load(TABLE_FILE.read_text(encoding="utf-8"))
PACKAGE = Path(ms.__file__).parent
DEVICES = 2
IMAGES = (BATCH, 3, SIDE, SIDE)
# Every backbone is in the graphs of one network. What a classifier adds to v1 and PCPVT, a head and dropout, is that of
# v2 and SVT. One network of each task is listed each time.
EACH_TIME = ("focalv2", "upernet", "mask_rcnn")
NETWORKS = others_exhaustive(("focalv2", "twins_svt", *SEGMENTORS, *DETECTORS), EACH_TIME)


def levels_of(name):
    """The precisions in which graphs are listed. Operators of O0 are among those of O1: of detectors, one is enough."""
    return ("O1",) if name in DETECTORS else ("O0", "O1")


def build(name):
    """A model with the operators of an Ascend, dropping what it can drop; BatchNorm sums over the devices."""
    model = create_network(name, "Ascend", drop_rate=0.1)
    synchronise_batch_norms(model, DEVICES)
    return model


def training(name, model, level):
    """The loss of a model's task and its inputs."""
    return training_loss(name, model, apply_precision(model, level))


def train_operators(model, losses, inputs, *, optimizer="adamw", update=True):
    """Operators of a training step with everything that a step can have, as one of two Ascend devices runs it."""
    parameters = model.trainable_params()
    step = TrainStep(
        losses,
        parameters,
        create_optimizer(model, OptimizerConfig(name=optimizer, clip_norm=5.0)),
        LossScale(1024.0, dynamic=True, growth_interval=2000),
        ema=ExponentialMovingAverage(parameters, 0.9999, warmup=True),
        clip_norm=5.0,
        accumulation_steps=2,
        reducer=nn.DistributedGradReducer(parameters, mean=True, degree=DEVICES),
        float_status=True,
    ).set_train()
    rate, no_vote = Tensor(1e-3, ms.float32), Tensor(0.0, ms.float32)
    return compiled_operators(step, rate, update, no_vote, *inputs, loops_once=True)


def eval_operators(name, level):
    """Operators of evaluation and, at O0, of the graph that export.py writes."""
    model = build(name)
    network = apply_precision(model, level).set_train(False)
    operators = compiled_operators(network, *evaluation_inputs(name))
    if getattr(model, "has_masks", False):
        pyramid = Tensor(np.zeros((BATCH, model.region_tokens, model.arguments["channels"]), np.float32))
        boxes, labels = Tensor(np.zeros((BATCH, 5, 4), np.float32)), Tensor(np.zeros((BATCH, 5), np.int32))
        masks = apply_precision(model.mask_cell(), level).set_train(False)
        operators = operators + compiled_operators(masks, pyramid, boxes, labels)
    return operators


@cache
def graphs_of(name):
    """Operators of every graph of a model, by what it is of.

    Optimizers and the batches that are only accumulated know nothing of the model: "linear" stands for all.
    """
    if name == "linear":
        optimizers = get_args(OptimizerConfig.model_fields["name"].annotation)
        model = Linear()
        arrays = [Tensor(np.zeros(shape, np.float32)) for shape in ((BATCH, 4), (BATCH, 3))]
        task = SoftTargetCrossEntropy(model), (*arrays, None, Tensor(1, ms.int32))
        found = {f"{key} O0": train_operators(model, *task, optimizer=key) for key in optimizers}
        return found | {"accumulate O0": train_operators(model, *task, update=False)}
    trained = {}
    for level in levels_of(name):
        model = build(name)
        trained[f"train {level}"] = train_operators(model, *training(name, model, level))
    return trained | {f"eval {level}": eval_operators(name, level) for level in levels_of(name)}


@pytest.mark.parametrize("name", [*NETWORKS, "linear"])
def test_every_primitive_is_known(name):
    unknown = {}
    for graph, operators in graphs_of(name).items():
        for operator in operators:
            if operator.name not in TABLE:
                unknown.setdefault(operator.name, f"{operator.name} ({graph}: {operator.scope})")
    assert not unknown, (
        f"nothing says that an Ascend runs {', '.join(unknown.values())}; "
        f"use another operator, or add an entry with its source to {TABLE_FILE.name}"
    )


def values_of(operator, operators):
    """The types of an operator's outputs, of a condition or a loop those that something reads.

    Of a loop without a gradient MindSpore returns the number 0 in the place of the function that would compute it.
    """
    if operator.name != "Switch":
        return operator.outputs
    read = {value.output for other in operators for value in other.inputs if value.producer == operator.index}
    return [type for number, type in enumerate(operator.outputs) if number in read.union(operator.returned)]


@pytest.mark.parametrize("name", [*NETWORKS, "linear"])
def test_shapes_are_static_and_types_are_the_910s(name):
    """No dimension is known only when the graph runs, and nothing needs more than 32 bits or bfloat16."""
    for graph, operators in graphs_of(name).items():
        types = {type for operator in operators for type in values_of(operator, operators)}
        types |= {value.type for operator in operators for value in operator.inputs if value.type is not None}
        assert all(size > 0 for type in types for size in type.shape), graph
        expected = {"float32", "float16"} if graph.endswith("O1") else {"float32"}
        assert {type.dtype for type in types} - {"int32", "bool", "uint8"} == expected, graph


@pytest.mark.exhaustive
def test_no_entry_is_out_of_use():
    names = [*SMALL_NETWORKS, "linear"]
    graphs = [operators for name in names for operators in graphs_of(name).values()]
    used = {operator.name for operators in graphs for operator in operators}
    unused = set(TABLE) - used
    assert not unused, f"no graph has {', '.join(sorted(unused))} any more; remove them from {TABLE_FILE.name}"


def platforms(documented) -> list[str]:
    """What the docstring of a class or function lists under Supported Platforms."""
    section = re.search(r"Supported Platforms:\s+(.*)", inspect.getdoc(documented) or "")
    return re.findall(r"``(\w+)``", section[1]) if section else []


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if "documented" in entry])
def test_the_page_of_a_primitive_lists_ascend(name):
    page = TABLE[name]["documented"]
    if page != name:
        primitive = getattr(ops, name, None) or getattr(gen_ops_prim, name)
        assert f":func:`mindspore.ops.{page}`" in inspect.getdoc(primitive), f"{page} is not the page of {name}"
    assert "Ascend" in platforms(getattr(ops, page))


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if "documented" not in entry])
def test_a_primitive_without_a_page_has_a_source(name):
    assert set(TABLE[name]) in ({"source", "engine"}, {"source", "expands_to"})
    assert not platforms(getattr(ops, name, None)), f"{name} has a page: `documented` says more than a source"


def test_the_overflow_register_is_documented():
    """Its primitives are the only ones with a docstring and no page of mindspore.ops."""
    for name in ("NPUClearFloatStatusV2", "NPUGetFloatStatusV2"):
        assert platforms(getattr(ops.operations.math_ops, name)) == ["Ascend"]


@cache
def library(path: str) -> mmap.mmap:
    """The bytes of a library of the installed package."""
    with (PACKAGE / "lib" / path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def engine_has(operator: str) -> bool:
    """Whether MindSpore's Ascend library translates something to this operator of the graph engine.

    Every translation is an instance of a class template, whose name the library holds for run-time type information.
    """
    adapter = f"cz{operator}"
    mangled = f"mindspore6device6ascend9OpAdapterINS1_{len(adapter)}{adapter}EE"
    return library("plugin/ascend/libmindspore_ascend_res_manager.so").find(mangled.encode()) >= 0


@pytest.mark.parametrize("name", TABLE)
def test_the_graph_engine_has_a_place_for_it(name):
    """By an operator of its own, or by what MindSpore expands it to."""
    entry = TABLE[name]
    if "engine" in entry:
        assert engine_has(entry["engine"]), f"no translation to {entry['engine']} in this MindSpore"
    else:
        assert library("libmindspore_backend_common.so").find(f"{name}\0".encode()) >= 0, f"no rule expands {name}"
        for part in entry["expands_to"]:
            assert engine_has(TABLE[part]["engine"] if part in TABLE else part)


@pytest.mark.parametrize("name", ["EqScalar", "LessScalar"])
def test_what_the_engine_lacks_is_not_found(name):
    """The search above can fail: tensor == number and tensor < number have neither, and were in graphs once."""
    assert not engine_has(name)
    assert library("libmindspore_backend_common.so").find(f"{name}\0".encode()) < 0


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_are_real(name):
    """Patches cut out by index are for the CPU, where they are faster."""
    for level in levels_of(name):
        trained = [operator.name for operator in graphs_of(name)[f"train {level}"]]
        assert {"Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput"} <= set(trained)
        assert "Im2Col" not in trained


@pytest.mark.parametrize("name", NETWORKS)
def test_grouped_convolutions_are_depthwise(name):
    """The only ones with groups that an Ascend has, says the page of ops.Conv2D."""
    for operators in graphs_of(name).values():
        for operator in operators:
            if operator.name == "Conv2D":
                channels, weight = operator.inputs[0].type.shape[1], operator.inputs[1].type.shape
                assert weight[1] == channels or (weight[0], weight[1]) == (channels, 1), operator.scope


def is_of_the_loss(product):
    """Whether a product belongs to a loss, in float32: targets of masks, and logits that are resized to the image."""
    if "/losses-CellList/" in product.scope:
        return True
    constants = [value.type.shape for value in product.inputs if value.kind == "constant" and value.type is not None]
    return any(IMAGES[2] in shape[-2:] for shape in constants)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_product_is_float16_in_mixed_precision(name):
    """The 910's matrix unit multiplies float16 and int8 (docs/ascend.md)."""
    for graph in ("train O1", "eval O1"):
        products = [operator for operator in graphs_of(name)[graph] if operator.name in PRODUCT_RULES]
        products = [operator for operator in products if not is_of_the_loss(operator)]
        assert len(products) > 10
        for operator in products:
            types = {value.type.dtype for value in operator.inputs if value.type is not None}
            assert types | {type.dtype for type in operator.outputs} == {"float16"}, operator.scope


def reductions(operators):
    """The sums over devices, but for those of BatchNorm, within the network, and of the divisors of losses."""
    sums = [operator for operator in operators if operator.name == "AllReduce"]
    return [o for o in sums if "-BatchNorm/" not in o.scope and "-SumOverRanks/" not in o.scope]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_register_is_cleared_before_the_step_and_read_after_it(name):
    """And read on each device before the reduction, for a saturated gradient carries no infinity through it."""
    for level in levels_of(name):
        operators = graphs_of(name)[f"train {level}"]
        (cleared,) = (operator.index for operator in operators if operator.name == "NPUClearFloatStatusV2")
        (read,) = (operator for operator in operators if operator.name == "NPUGetFloatStatusV2")
        images = [value for operator in operators for value in operator.inputs if value.name == "inputs0"]
        assert images and all(cleared in value.after for value in images)
        # Each gradient, divided by the batches of the update, goes into a sum; parameters whose gradients are the same
        # operator (biases that are added up) have one in common.
        added = [operator for operator in operators if operator.name == "AssignAdd"]
        sums = [operator for operator in added if operator.inputs[0].name.startswith("gradient_sum.")]
        parameters = Counter(parameter.shape for parameter in build(name).trainable_params())
        assert Counter(operator.outputs[0].shape for operator in sums) == parameters
        gradients = {operators[operator.inputs[1].producer].inputs[0].producer for operator in sums}
        assert gradients <= set(read.inputs[0].after)
        assert read.index < min(operator.index for operator in reductions(operators))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_gradient_is_reduced_once(name):
    model = build(name)
    shapes = [parameter.shape for parameter in model.trainable_params()]
    # and once more what devices tell each other: overflow, parts of the loss, votes to stop
    told = (2 + len(training(name, model, "O0")[0].names),)
    reduced = reductions(graphs_of(name)[f"train {levels_of(name)[0]}"])
    assert sorted(operator.outputs[0].shape for operator in reduced) == sorted([*shapes, told])


@pytest.mark.parametrize("name", others_exhaustive((*SEGMENTORS, "cascade_rcnn"), EACH_TIME))
def test_batch_norm_sums_over_the_devices(name):
    """Twice in each layer, and as often for the gradient; beside that, a number of rows is counted in some."""
    graph = graphs_of(name)[f"train {levels_of(name)[0]}"]
    operators = [operator for operator in graph if operator.name == "AllReduce" and operator.outputs[0].shape]
    summed = sum("-BatchNorm/" in operator.scope for operator in operators)
    assert summed == 4 * len(batch_norms(build(name)))


# --- configuration --------------------------------------------------------------------------------------------------


def choices(key: str) -> list[str]:
    """The values that a key of the runtime section takes."""
    return list(get_args(RuntimeConfig.model_fields[key].annotation))


def test_precision_modes_are_those_of_mindspore():
    described = inspect.getdoc(ms.device_context.ascend.op_precision.precision_mode)
    assert sorted(choices("precision_mode")) == sorted(re.findall(r"^\s+- (\w+):", described, re.MULTILINE))


def test_jit_levels_are_those_of_mindspore():
    with pytest.raises(ValueError, match=r"must be one of \[") as refusal:
        ms.set_context(jit_config={"jit_level": "O9"})
    accepted = re.search(r"must be one of \[(.*?)\]", str(refusal.value))[1]
    assert choices("jit_level") == ["auto", *re.findall(r"\w+", accepted)]


def test_start_asks_an_ascend_for_what_is_configured(monkeypatch):
    """By stand-ins that have the signatures of the functions they replace."""
    precision = ms.device_context.ascend.op_precision
    asked = {}
    for module, name in ((ms, "set_device"), (ms, "set_context"), (ms, "set_seed"), (precision, "precision_mode")):
        asked[name] = create_autospec(getattr(module, name))
        monkeypatch.setattr(module, name, asked[name])
    monkeypatch.setattr(distributed, "resolve_device", lambda target: "Ascend")
    monkeypatch.setattr(ms.hal, "device_count", lambda target: {"Ascend": 8}[target])
    wanted = ["device_id=3", "jit_level=O2", "precision_mode=force_fp32", "mode=graph", "seed=7"]
    dist = distributed.start(load_config("focalv2_digits", [f"runtime.{setting}" for setting in wanted]))
    assert dist.device_target == "Ascend"
    asked["set_device"].assert_called_once_with("Ascend", 3)
    asked["precision_mode"].assert_called_once_with("force_fp32")
    asked["set_context"].assert_any_call(mode=ms.GRAPH_MODE)
    asked["set_context"].assert_any_call(jit_config={"jit_level": "O2"})
    asked["set_seed"].assert_called_once_with(7)


@pytest.mark.parametrize(
    ("local_size", "settings", "named"),
    [
        (8, [], "8 processes were launched on this machine, which has 4 Ascend devices"),
        (1, ["runtime.device_id=4"], "runtime.device_id: 4 is not among the 4 Ascend devices"),
    ],
)
def test_devices_that_are_not_there_are_one_line(local_size, settings, named, monkeypatch):
    monkeypatch.setattr(distributed, "resolve_device", lambda target: "Ascend")
    monkeypatch.setattr(distributed, "launched", lambda: Launch("mpirun", local_size, 0, 0, local_size))
    monkeypatch.setattr(ms.hal, "device_count", lambda target: {"Ascend": 4}[target])
    with pytest.raises(UserError, match=named):
        distributed.start(load_config("focalv2_digits", settings))


def test_collectives_are_named_as_mindspore_names_them():
    assert DEVICE_TO_BACKEND["Ascend"] == "hccl"
    assert '"hccl"' in inspect.getsource(distributed)


OPTIONS_ON_CPU = """
import json
import numpy as np
import mindspore as ms
from focal_twins.distributed.ranks import start
from focal_twins.config.load import load_config
from tests.training.test_train_step import build, take

losses = {}
for mode in ("graph", "pynative"):
    for level in ("auto", "O0", "O1"):
        runtime = {"device_target": "CPU", "mode": mode, "jit_level": level}
        start(load_config("focalv2_digits", [f"runtime.{key}={value}" for key, value in runtime.items()]))
        step = build(clip_norm=1.0, ema_decay=0.9)[1]
        images, targets = (np.ones(shape, np.float32) for shape in ((8, 4), (8, 3)))
        losses[f"{mode} {level}"] = float(take(step, images, targets)[0])
print(json.dumps(losses))
"""


def test_what_a_cpu_accepts_runs_and_changes_nothing():
    """In a process of its own, for these settings cannot be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", OPTIONS_ON_CPU],
        cwd=ROOT, env=os.environ | {"GLOG_v": "4", "PYTHONPATH": SOURCES}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    losses = json.loads(done.stdout.splitlines()[-1])
    assert len(losses) == 6
    np.testing.assert_allclose(list(losses.values()), losses["graph auto"], rtol=1e-6)
