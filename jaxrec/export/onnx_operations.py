"""JAX's operations as ONNX's: what `jaxrec.export.onnx_graph` makes nodes with.

Each function takes the graph, the equation and its inputs, and returns what the equation gives.
Here are those about shapes, sums and products, and the table of all. What models use is here, at
inference, with sizes that are free. An operation that is used in a way that is not here is refused.
"""

from typing import Any

import numpy as np

from jaxrec.export.onnx_control import lower_cond, lower_scan, lower_while
from jaxrec.export.onnx_elementwise import (
    ELEMENTWISE,
    cast,
    narrowed,
    refuse,
    same,
    value_of,
    wide,
    widened,
)
from jaxrec.export.onnx_graph import Graph, Lowering, Value
from jaxrec.export.onnx_indexing import INDEXING


def _full(graph: Graph, equation: Any, inputs: list[Value], which: int = 0) -> str:
    return graph.full(inputs[which], equation.invars[which].aval.shape)


def _broadcast_in_dim(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    value, where = inputs[0], equation.params["broadcast_dimensions"]
    rank = len(equation.params["shape"])
    shape = tuple(value.shape[where.index(i)] if i in where else 1 for i in range(rank))
    if value.known is not None:
        return [graph.of(np.reshape(value.known, shape))]
    new = [i for i in range(rank) if i not in where]
    name = graph.node("Unsqueeze", value.name, graph.integers(*new)) if new else value.name
    return [value_of(name, equation, shape)]


def _reshape(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    if equation.params["dimensions"] is not None:
        raise refuse(equation)
    sizes = graph.sizes(equation.params["new_sizes"])
    name = graph.node("Reshape", _full(graph, equation, inputs), sizes, allowzero=1)
    return [value_of(name, equation)]


def _squeeze(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    if not equation.params["dimensions"]:
        return inputs  # ONNX takes no axes for all of them
    axes = graph.integers(*equation.params["dimensions"])
    return [value_of(graph.node("Squeeze", _full(graph, equation, inputs), axes), equation)]


def _transpose(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    order = equation.params["permutation"]
    name = graph.node("Transpose", graph.use(inputs[0]), perm=order)
    return [value_of(name, equation, [inputs[0].shape[i] for i in order])]


def _concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    parts = [_full(graph, equation, inputs, i) for i in range(len(inputs))]
    return [value_of(graph.node("Concat", *parts, axis=equation.params["dimension"]), equation)]


def _slice(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    axes = graph.integers(*range(len(starts)))
    limits = (graph.sizes(starts), graph.sizes(ends), axes, graph.sizes(steps))
    return [value_of(graph.node("Slice", _full(graph, equation, inputs), *limits), equation)]


def _split(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    whole, count = _full(graph, equation, inputs), len(sizes)
    names = graph.node("Split", whole, graph.sizes(sizes), outputs=count, axis=axis)
    names = [names] if count == 1 else names
    return [value_of(name, equation, output=i) for i, name in enumerate(names)]


def _iota(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    scalar = graph.node("Squeeze", graph.size(shape[axis]))
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    name = cast(graph, graph.node("Range", zero, scalar, one), equation.params["dtype"])
    others = [i for i in range(len(shape)) if i != axis]
    name = graph.node("Unsqueeze", name, graph.integers(*others)) if others else name
    return [value_of(name, equation, [1 if i in others else n for i, n in enumerate(shape)])]


def _dim_as_value(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    scalar = graph.node("Squeeze", graph.size(equation.params["dim"]))
    return [value_of(cast(graph, scalar, equation.outvars[0].aval.dtype), equation)]


def _rev(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    axes = equation.params["dimensions"]
    if not axes:
        return inputs
    steps = graph.integers(*[-1] * len(axes))
    ends = graph.integers(*[np.iinfo(np.int64).min] * len(axes))
    name = _full(graph, equation, inputs)
    return [
        value_of(graph.node("Slice", name, steps, ends, graph.integers(*axes), steps), equation)
    ]


def _running_extreme(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """The smallest or largest of what comes before or after, from all pairs: rows are short."""
    shape, dtype = equation.invars[0].aval.shape, np.dtype(equation.invars[0].aval.dtype)
    axis, smallest = equation.params["axis"], equation.primitive.name == "cummin"
    if axis != len(shape) - 1:
        raise refuse(equation)
    ones = graph.node("Squeeze", graph.size(shape[axis]))
    order = graph.node("Range", graph.constant(0, np.int64), ones, graph.constant(1, np.int64))
    across = graph.node("Unsqueeze", order, graph.integers(1))
    reverse = equation.params["reverse"]
    kept = graph.node("LessOrEqual" if reverse else "GreaterOrEqual", across, order)
    name = widened(graph, equation, _full(graph, equation, inputs), dtype)
    each = graph.node("Unsqueeze", name, graph.integers(axis))
    kind = wide(equation, dtype)
    if kind.kind == "f":
        last = np.inf if smallest else -np.inf
    else:
        last = np.iinfo(kind).max if smallest else np.iinfo(kind).min
    pairs = graph.node("Where", kept, each, graph.constant(last, kind))
    chosen = "ReduceMin" if smallest else "ReduceMax"
    name = graph.node(chosen, pairs, graph.integers(axis + 1), keepdims=0)
    return [value_of(narrowed(graph, equation, name, dtype), equation)]


def _running_sum(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    dtype = np.dtype(equation.invars[0].aval.dtype)
    name = widened(graph, equation, _full(graph, equation, inputs), dtype)
    axis = graph.constant(equation.params["axis"], np.int64)
    name = graph.node("CumSum", name, axis, reverse=int(equation.params["reverse"]))
    return [value_of(narrowed(graph, equation, name, dtype), equation)]


def _reduce(kind: str) -> Lowering:
    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        if not equation.params["axes"]:
            return inputs  # ONNX takes no axes for all of them
        axes = graph.integers(*equation.params["axes"])
        dtype = np.dtype(equation.invars[0].aval.dtype)
        name = widened(graph, equation, _full(graph, equation, inputs), dtype)
        if kind == "ReduceSum" and dtype.kind in "iu":
            # Sums of int32 end at its ends in a runtime, and go round in JAX.
            name = graph.node(kind, cast(graph, name, np.int64), axes, keepdims=0)
            return [value_of(cast(graph, name, dtype), equation)]
        name = graph.node(kind, name, axes, keepdims=0)
        return [value_of(narrowed(graph, equation, name, dtype), equation)]

    return lower


def _dot_general(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Axes in the order batch, free, summed and batch, summed, free; a free one may be missing."""
    (summed, batched) = equation.params["dimension_numbers"]
    names, free = [], []
    # Sums are in the type of the result, or in one that is cut to it.
    kind = wide(equation, equation.outvars[0].aval.dtype)
    for side in (0, 1):
        rank = len(equation.invars[side].aval.shape)
        rest = [i for i in range(rank) if i not in (*summed[side], *batched[side])]
        order = [*batched[side], *rest, *summed[side]]
        order = order if side == 0 else [*batched[side], *summed[side], *rest]
        name = _full(graph, equation, inputs, side)
        wide(equation, equation.invars[side].aval.dtype)
        if equation.invars[side].aval.dtype != kind:
            name = cast(graph, name, kind)
        if order != list(range(rank)):
            name = graph.node("Transpose", name, perm=order)
        names.append(name)
        free.append(len(rest))
    count = len(batched[0])
    # Several free axes on the left are batches to a matrix on the right.
    if len(summed[0]) != 1 or max(free[1], free[0] * (count > 0)) > 1:
        raise refuse(equation)
    missing = []
    if free[0] == 0:
        names[0] = graph.node("Unsqueeze", names[0], graph.integers(count))
        missing.append(-2)
    if free[1] == 0:
        names[1] = graph.node("Unsqueeze", names[1], graph.integers(-1))
        missing.append(-1)
    name = graph.node("MatMul", *names)
    name = graph.node("Squeeze", name, graph.integers(*missing)) if missing else name
    if kind != equation.outvars[0].aval.dtype:
        name = cast(graph, name, equation.outvars[0].aval.dtype)
    return [value_of(name, equation)]


LOWERINGS: dict[str, Lowering] = {
    **ELEMENTWISE,
    **INDEXING,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "cond": lower_cond,
    "cummax": _running_extreme,
    "cummin": _running_extreme,
    "cumsum": _running_sum,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "iota": _iota,
    "name": same,
    "reduce_and": _reduce("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "rev": _rev,
    "scan": lower_scan,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "while": lower_while,
}
