"""Lists the operators that a cell compiles to, with their shapes, and computes what they cost.

Reading order: the operators of a compiled graph, the reader behind them, multiply-accumulates, memory.

The graph is the one that MindSpore's front end hands to the backend: differentiated, simplified, shapes inferred. It is
read in memory in the MINDIR format, MindSpore's only format that keeps called graphs and the shapes of tuples.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mindspore import nn
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.mind_ir_pb2 import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

# --- operators ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorType:
    """Holds a tensor's shape (-1 for a dimension known only when it runs) and element type, e.g. "float32"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """The number of elements.

        Raises:
            ValueError: the shape is dynamic.
        """
        if any(size < 0 for size in self.shape):
            raise ValueError(f"a tensor of dynamic shape {self.shape} has no fixed size; compile for static shapes")
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Value:
    """Describes a value that an operator reads.

    Attributes:
        kind: "operator" (output number `output` of operators[producer]), "input" or "parameter" (of the cell, called
            `name`), or "constant".
        type: None for constants that are no tensors, such as an axis; these are in `literal`.
        after: indices of operators that run before the value may be read.
    """

    kind: str
    type: TensorType | None = None
    producer: int = -1
    output: int = 0
    name: str = ""
    literal: Any = None
    after: tuple[int, ...] = ()

    @property
    def tensor(self) -> TensorType:
        """The type of a value that can only be a tensor."""
        assert self.type is not None, self
        return self.type


@dataclass(frozen=True)
class Operator:
    """Describes one call of a primitive.

    Attributes:
        index: its place in the list of operators, which is an order of execution.
        name: the primitive, e.g. "MatMul".
        inputs: the values that it reads, tuples flattened.
        outputs: the types of the values that it computes, tuples flattened.
        scope: the cells around it, e.g. "Default/head-Dense/MatMul-op0".
        returned: numbers of the outputs that the cell returns.
    """

    index: int
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[TensorType, ...]
    scope: str
    returned: tuple[int, ...] = ()


def compiled_operators(cell: nn.Cell, *inputs, loops_once: bool = False) -> list[Operator]:
    """Compile a cell for `inputs`, without running it, and list every primitive call of its graph.

    The graph is that of the cell's current phase (`set_train`), whatever the context's mode; nothing global changes and
    no file is written. No kernel is looked up, so operators that this machine has none for are listed as well (an
    Ascend's overflow register, collectives of processes that are not there). Called graphs are expanded at every call.
    Both branches of a condition are listed, then a "Switch" that joins their results. Nodes that only carry values from
    one operator to another (Load, Depend, UpdateState, tuples) are resolved: an operator's inputs name the operators
    that computed them.

    Raises:
        ValueError: the graph has a loop, for which no list of operators exists.
    """
    # As in ms.export, a phase of this name ends with the front end. Training and inference are two graphs.
    phase, _ = _cell_graph_executor.compile(cell, *inputs, phase=f"export.{cell.phase}", do_convert=False)
    serialized = _cell_graph_executor._get_func_graph_proto(cell, phase, "mind_ir")
    return _Reader(ModelProto.FromString(serialized), loops_once).operators


# --- the reader -----------------------------------------------------------------------------------------------------

_DTYPES = {
    TensorProto.BOOL: ("bool", 1),
    TensorProto.INT8: ("int8", 1),
    TensorProto.UINT8: ("uint8", 1),
    TensorProto.INT16: ("int16", 2),
    TensorProto.UINT16: ("uint16", 2),
    TensorProto.INT32: ("int32", 4),
    TensorProto.UINT32: ("uint32", 4),
    TensorProto.INT64: ("int64", 8),
    TensorProto.UINT64: ("uint64", 8),
    TensorProto.FLOAT16: ("float16", 2),
    TensorProto.BFLOAT16: ("bfloat16", 2),
    TensorProto.FLOAT: ("float32", 4),
    TensorProto.DOUBLE: ("float64", 8),
    TensorProto.FLOAT64: ("float64", 8),
    TensorProto.COMPLEX64: ("complex64", 8),
    TensorProto.COMPLEX128: ("complex128", 16),
}
ITEM_SIZES = dict(_DTYPES.values())  # bytes by name of the element type

_STATE = Value("state")  # orders side effects; carries no data
_NEXT_TURN = object()  # what a loop gives in a turn that is not the last


@dataclass(frozen=True)
class _Closure:
    """Holds a graph with the first of its arguments."""

    graph: str
    arguments: tuple = ()


@dataclass(frozen=True)
class _Choice:
    """Holds the graphs that a condition chooses among."""

    condition: Value
    branches: tuple[_Closure, ...]
    scope: str


class _Reader:
    """Interprets a MINDIR model symbolically: a value says where it comes from, and every primitive is recorded.

    A node's `op_type` is "Constant", or "REF::" and the name of a primitive, of a graph to call, or of a node whose
    value is a graph to call. Names of nodes hold their graph's name, so one table serves all of them; calling a graph
    again replaces its entries, which nothing reads any more.
    """

    def __init__(self, model: ModelProto, loops_once: bool):
        self.loops_once = loops_once
        self.primitives = {primitive.name: primitive.op_type for primitive in model.primitives}
        self.graphs = {graph.name: graph for graph in [model.graph, *model.functions]}
        self.operators: list[Operator] = []
        self.calls: list[str] = []
        self.values: dict[str, Any] = {name: _Closure(name) for name in self.graphs}
        # A constant is only in the graph that was written first, not in every graph that reads it.
        for graph in self.graphs.values():
            for node in graph.node:
                if node.op_type == "Constant":
                    self.values[node.name] = _constant_value(node.attribute[0])

        main = model.graph
        for parameter in main.parameter:
            name = parameter.name.removeprefix(main.name + ":")
            self.values[parameter.name] = Value("parameter", _tensor_type(parameter), name=name)
        for value in _flatten(self.call(main, [_input_value(entry, main.name) for entry in main.input])):
            if value.kind == "operator":
                operator = self.operators[value.producer]
                returned = tuple(sorted({*operator.returned, value.output}))
                self.operators[value.producer] = replace(operator, returned=returned)

    def call(self, graph: GraphProto, arguments):
        """Return the value of a graph for given arguments, and record its operators."""
        if graph.name in self.calls:
            if self.loops_once:
                return _NEXT_TURN
            raise ValueError(f"the compiled graph has a loop ({graph.name}): how often it runs is not in the graph")
        self.calls.append(graph.name)
        for entry, argument in zip(graph.input, arguments, strict=True):
            self.values[entry.name] = argument
        for node in graph.node:
            if node.op_type != "Constant":
                self.values[node.name] = self.evaluate(node)
        self.calls.pop()
        return self.values[graph.output[0].name]

    def evaluate(self, node: NodeProto):
        """Return the value of one node."""
        reference = node.op_type.removeprefix("REF::")
        arguments = [self.values[name] for name in node.input]
        if any(argument is _NEXT_TURN for argument in arguments):  # what is made of it was listed in the turn before
            return _NEXT_TURN
        name = self.primitives.get(reference)
        if name is None:
            return self.call_closure(self.values[reference], arguments, node)
        if name == "Load":
            return arguments[0]
        if name == "Depend":
            return _ordered_after(*arguments)
        if name == "UpdateState":
            return _STATE
        if name in ("MakeTuple", "MakeList"):
            return tuple(arguments)
        if name in ("TupleGetItem", "ListGetItem"):
            return arguments[0][arguments[1].literal]
        if name == "Partial":
            return _Closure(arguments[0].graph, (*arguments[0].arguments, *arguments[1:]))
        if name == "Switch":
            return _Choice(arguments[0], tuple(arguments[1:]), node.domain)
        return self.record(name, arguments, node, node.domain)

    def call_closure(self, function, arguments, node: NodeProto):
        if isinstance(function, _Closure):
            return self.call(self.graphs[function.graph], (*function.arguments, *arguments))
        results = [self.call_closure(branch, arguments, node) for branch in function.branches]
        results = [result for result in results if result is not _NEXT_TURN]
        if not results:  # a loop or a branch within a loop, after which that goes on
            return _NEXT_TURN
        return self.record("Switch", [function.condition, *results], node, function.scope)

    def record(self, name, arguments, node: NodeProto, scope):
        """Append an operator; return its output, or the tuple of its outputs as nested as the node says."""
        index = len(self.operators)
        outputs: list[TensorType] = []

        def output(attribute: AttributeProto):
            if attribute.type in (AttributeProto.TUPLE, AttributeProto.LIST):
                return tuple(output(element) for element in attribute.values)
            if attribute.type in (AttributeProto.UMONAD, AttributeProto.IOMONAD):
                return _STATE
            if attribute.type not in (AttributeProto.TENSORS, AttributeProto.SCALAR):
                kind = AttributeProto.AttributeType.Name(attribute.type)
                raise ValueError(f"{scope or name}: an output of kind {kind} is not understood")
            outputs.append(_attribute_type(attribute))
            return Value("operator", outputs[-1], producer=index, output=len(outputs) - 1)

        result = output(next(attribute for attribute in node.attribute if attribute.name == "shape"))
        inputs = tuple(value for value in _flatten(arguments) if value is not _STATE)
        self.operators.append(Operator(index, name, inputs, tuple(outputs), scope))
        return result


def _tensor_type(tensor: TensorProto) -> TensorType:
    return TensorType(tuple(tensor.dims), _DTYPES[tensor.data_type][0])


def _attribute_type(attribute: AttributeProto) -> TensorType:
    """Return the type of a value that is a tensor or, with dynamic shapes, a number."""
    tensor_type = _tensor_type(attribute.tensors[0])
    return replace(tensor_type, shape=()) if attribute.type == AttributeProto.SCALAR else tensor_type


def _input_value(entry: ValueInfoProto, graph_name: str):
    """Return the value of an input of the cell: a tensor or, given as `ms.mutable`, a number or a tuple."""
    name = entry.name.removeprefix(graph_name + ":")

    def value(attribute: AttributeProto):
        if attribute.type in (AttributeProto.TUPLE, AttributeProto.LIST):
            return tuple(value(element) for element in attribute.values)
        return Value("input", _attribute_type(attribute), name=name)

    return Value("input", _tensor_type(entry.tensor[0]), name=name) if entry.tensor else value(entry.attr_info)


def _ordered_after(value, awaited):
    """Return a value that may be read only once others are computed; tuples of values do not keep the order."""
    if not isinstance(value, Value) or not isinstance(awaited, Value | tuple) or value is _STATE:
        return value
    producers = {other.producer for other in _flatten(awaited) if other.kind == "operator"}
    return replace(value, after=tuple(sorted({*value.after, *producers})))


def _flatten(value):
    """Yield the values in nested tuples, in order."""
    if isinstance(value, Value):
        yield value
    else:
        for element in value:
            yield from _flatten(element)


def _constant_value(attribute: AttributeProto):
    """Return the value of a constant; literals of kinds that no rule here needs (types, names) become None."""
    if attribute.type == AttributeProto.TENSORS:
        return Value("constant", _tensor_type(attribute.tensors[0]))
    if attribute.type in (AttributeProto.UMONAD, AttributeProto.IOMONAD):
        return _STATE
    if attribute.type in (AttributeProto.TUPLE, AttributeProto.LIST):
        elements = tuple(_constant_value(element) for element in attribute.values)
        if any(not isinstance(element, Value) or element.literal is None for element in elements):
            return elements
        return Value("constant", literal=tuple(element.literal for element in elements))
    # The number of a tuple's element is in the repeated field, that of a single constant in the other field.
    if attribute.type in (AttributeProto.FLOAT, AttributeProto.DOUBLE):
        numbers = [*attribute.floats, *attribute.doubles]
        return Value("constant", literal=numbers[0] if numbers else attribute.f or attribute.d)
    if attribute.type == AttributeProto.STRING:
        return Value("constant", literal=attribute.s.decode())
    if attribute.type in _INTEGERS:
        number = attribute.ints[0] if attribute.ints else attribute.i
        return Value("constant", literal=bool(number) if attribute.type == AttributeProto.BOOL else number)
    return Value("constant")


_INTEGERS = (
    AttributeProto.BOOL,
    AttributeProto.INT8,
    AttributeProto.INT16,
    AttributeProto.INT32,
    AttributeProto.INT64,
    AttributeProto.UINT8,
    AttributeProto.UINT16,
    AttributeProto.UINT32,
    AttributeProto.UINT64,
)

# --- multiply-accumulates -------------------------------------------------------------------------------------------


def _matmul_products(operator: Operator) -> int:
    """Count the products of MatMul(a, b, transpose_a, transpose_b), whose outputs sum over the inner dimension."""
    a, transpose_a = operator.inputs[0].tensor, operator.inputs[2].literal
    return operator.outputs[0].elements * a.shape[-2 if transpose_a else -1]


def _last_dimension_products(operator: Operator) -> int:
    """Count the products of an operator whose output elements sum over the last dimension of the first input."""
    return operator.outputs[0].elements * operator.inputs[0].tensor.shape[-1]


def _convolution_products(result: TensorType, weight: TensorType) -> int:
    """Count the products of a convolution with a weight [out, in / groups, height, width].

    Every element of the forward result sums over one kernel. Taps that fall on padding count, as is usual.
    """
    return result.elements * (weight.elements // weight.shape[0])


PRODUCT_RULES: dict[str, Callable[[Operator], int]] = {
    "MatMul": _matmul_products,
    "BatchMatMul": _matmul_products,
    "MatMulExt": _last_dimension_products,
    "BatchMatMulExt": _last_dimension_products,
    "Dense": _last_dimension_products,
    "Conv2D": lambda operator: _convolution_products(operator.outputs[0], operator.inputs[1].tensor),
    # Both backward convolutions read the gradient of the forward result first, and cost as much as the forward one.
    "Conv2DBackpropInput": lambda operator: _convolution_products(operator.inputs[0].tensor, operator.inputs[1].tensor),
    "Conv2DBackpropFilter": lambda operator: _convolution_products(operator.inputs[0].tensor, operator.outputs[0]),
}
SUMS = ("ReduceSum", "SumExt")
_LOOKS_LIKE_A_PRODUCT = re.compile(r"matmul|conv|dense|einsum|attention|mm(ext)?$|^(mv|dot|inner)$", re.IGNORECASE)


def multiply_accumulates(operators: list[Operator]) -> int:
    """Count the multiplications whose results are summed: of matrix products, convolutions and products summed out.

    A product summed out is a Mul whose output goes straight into a sum (the learned window pools of focal attention);
    its multiplications count. Everything else is elementwise work or copying and counts as nothing: normalisation,
    softmax, activations, biases, gathers. Operators that do not depend on the images (MLPs of position biases) are
    computed once a batch and counted once; compiled for one image, the result is the cost of one image.

    Raises:
        ValueError: an operator with the name of a product, for which there is no rule; or dynamic shapes.
    """
    total = 0
    summed_out = set()
    for operator in operators:
        rule = PRODUCT_RULES.get(operator.name)
        if rule is not None:
            total += rule(operator)
        elif _LOOKS_LIKE_A_PRODUCT.search(operator.name):
            raise ValueError(f"{operator.name} ({operator.scope}): no rule in PRODUCT_RULES tells what it costs")
        elif operator.name in SUMS and operator.inputs[0].kind == "operator":
            source = operators[operator.inputs[0].producer]
            if source.name == "Mul":
                summed_out.add(source.index)
    return total + sum(operators[index].outputs[0].elements for index in summed_out)


# --- memory ---------------------------------------------------------------------------------------------------------

VIEWS = ("Reshape", "ExpandDims", "Squeeze", "Flatten")
# Operators whose outputs are inputs under another shape or name, with the number of the input for each output.
SHARED_OUTPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(VIEWS, (0,)),
    "Assign": (0,),
    "AssignAdd": (0,),
    "AssignSub": (0,),
    "Adam": (0, 1, 2),
}


def activation_bytes(operators: list[Operator]) -> int:
    """Add up the bytes of all values computed from the cell's inputs: outputs of the operators that depend on them.

    The sum is an upper bound of what training without recomputation holds for the backward pass (gradients of many
    operators need less than all). Views share their input's memory and add nothing. The inputs themselves, parameters,
    and values computed only from parameters and constants are left out.
    """
    depends: list[bool] = []
    total = 0
    for operator, buffers in zip(operators, _buffers(operators), strict=True):
        depends.append(
            any(
                value.kind == "input" or (value.kind == "operator" and depends[value.producer])
                for value in operator.inputs
            )
        )
        if depends[-1]:
            total += sum(
                operator.outputs[number].nbytes
                for number, buffer in enumerate(buffers)
                if buffer == (operator.index, number)
            )
    return total


def moved_bytes(operator: Operator) -> int:
    """Return the bytes that an operator by itself reads and writes, constants and parameters included; 0 for views.

    A gather reads only as much of its first input as it writes. Scalars that are no tensors are left out.
    """
    if operator.name in VIEWS:
        return 0
    read = [value.type.nbytes for value in operator.inputs if value.type is not None]
    written = sum(output.nbytes for output in operator.outputs)
    if operator.name == "Gather":
        read[0] = min(read[0], written)
    return sum(read) + written


def alive_at_peak(operators: list[Operator]) -> list[tuple[Operator, int]]:
    """List the outputs that are alive when they take most memory together: (operator, number of the output).

    Operators run in the order of the list. An output lives from the operator that computes it to the last that reads it
    or a view of it; outputs that the cell returns live to the end. While an operator runs, its inputs and outputs are
    all alive. The allocator's rounding and the operators' own workspaces come on top.
    """
    buffers = _buffers(operators)
    last_use: dict[tuple[int, int] | None, int] = {}
    for operator in operators:
        for buffer in buffers[operator.index]:
            last_use[buffer] = operator.index
        for value in operator.inputs:
            if value.kind == "operator":
                last_use[buffers[value.producer][value.output]] = operator.index
    for operator in operators:
        for number in operator.returned:
            last_use[buffers[operator.index][number]] = len(operators)

    alive: dict[tuple[int, int], int] = {}  # bytes of every output that lives
    size, peak, at_peak = 0, 0, []
    freed_after: dict[int, list[tuple[int, int]]] = {}
    for operator in operators:
        for number, buffer in enumerate(buffers[operator.index]):
            if buffer == (operator.index, number):
                alive[buffer] = operator.outputs[number].nbytes
                size += alive[buffer]
                freed_after.setdefault(last_use[buffer], []).append(buffer)
        if size > peak:
            peak, at_peak = size, list(alive)
        size -= sum(alive.pop(buffer) for buffer in freed_after.get(operator.index, ()))
    return [(operators[index], number) for index, number in at_peak]


def peak_bytes(operators: list[Operator]) -> int:
    """Return the most bytes that outputs take at one time.

    A graph needs them beside parameters, constants and inputs.
    """
    return sum(operator.outputs[number].nbytes for operator, number in alive_at_peak(operators))


def _buffers(operators: list[Operator]) -> list[list[tuple[int, int] | None]]:
    """Return the buffer of each output of each operator.

    A buffer is the (operator, output) that first wrote it, or None if no operator did.
    """
    buffers: list[list[tuple[int, int] | None]] = []
    for operator in operators:
        shared = SHARED_OUTPUTS.get(operator.name, ())
        own: list[tuple[int, int] | None] = []
        for number in range(len(operator.outputs)):
            source = operator.inputs[shared[number]] if number < len(shared) else None
            if source is None:
                own.append((operator.index, number))
            else:
                own.append(buffers[source.producer][source.output] if source.kind == "operator" else None)
        buffers.append(own)
    return buffers
