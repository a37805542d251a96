"""JAX's operations as ONNX's: what `jaxrec.export.onnx_graph` makes nodes with.

Each function takes the graph, the equation and its inputs, and returns what the equation gives.
What models of this package use is here, at inference, with sizes that are free. An operation that
is used in a way that is not here is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from jax.lax import GatherScatterMode

from jaxrec.export.onnx_graph import INSTEAD, Graph, Lowering, Value
from jaxrec.typing import UserError


def _value(name: str, equation: Any, shape: Sequence[Any] | None = None, output: int = 0) -> Value:
    aval = equation.outvars[output].aval
    return Value(name, tuple(aval.shape if shape is None else shape), np.dtype(aval.dtype))


def _full(graph: Graph, equation: Any, inputs: list[Value], which: int = 0) -> str:
    return graph.full(inputs[which], equation.invars[which].aval.shape)


def _refuse(equation: Any) -> UserError:
    return UserError(f"ONNX export does not know this use of {equation.primitive.name}; {INSTEAD}")


def _broadcast(inputs: list[Value]) -> tuple[Any, ...]:
    """Returns the shape of what works element by element; each size is one or the same."""
    shapes = [x.shape for x in inputs if x.shape]
    if not shapes:
        return ()
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))


def _elementwise(kind: str, *order: int) -> Lowering:
    """Returns what makes one node, of the inputs in another order if one is given."""

    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        chosen = [inputs[i] for i in order] if order else inputs
        name = graph.node(kind, *(graph.use(x) for x in chosen))
        return [_value(name, equation, _broadcast(chosen))]

    return lower


def _composed(make: Callable[..., str]) -> Lowering:
    """Returns what makes several nodes, of names, each of which works element by element."""

    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        name = make(graph, equation, *(graph.use(x) for x in inputs))
        return [_value(name, equation, _broadcast(inputs))]

    return lower


def _cast(graph: Graph, name: str, dtype: Any) -> str:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return str(graph.node("Cast", name, to=kind))


def _convert(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    (value,), dtype = inputs, equation.outvars[0].aval.dtype
    name = graph.use(value) if value.dtype == dtype else _cast(graph, graph.use(value), dtype)
    return [_value(name, equation, value.shape)]


def _same(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    return inputs


def _integer_pow(graph: Graph, equation: Any, x: str) -> str:
    exponent = graph.constant(equation.params["y"], equation.outvars[0].aval.dtype)
    return str(graph.node("Pow", x, exponent))


def _shift_left(graph: Graph, equation: Any, x: str, by: str) -> str:
    # As a product of wider integers, which a cast cuts to the low bits again.
    power = graph.node("Pow", graph.constant(2, np.int32), _cast(graph, by, np.int32))
    wide = graph.node("Mul", _cast(graph, x, np.int32), power)
    return _cast(graph, wide, equation.outvars[0].aval.dtype)


def _shift_right(graph: Graph, equation: Any, x: str, by: str) -> str:
    # A quotient rounded down: ONNX shifts integers without a sign alone, and rounds towards 0.
    power = graph.node("Pow", graph.constant(2, np.int32), _cast(graph, by, np.int32))
    wide = _cast(graph, x, np.int32)
    below = graph.node("Sub", wide, graph.node("Mod", wide, power))
    return _cast(graph, graph.node("Div", below, power), equation.outvars[0].aval.dtype)


def _broadcast_in_dim(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    value, where = inputs[0], equation.params["broadcast_dimensions"]
    rank = len(equation.params["shape"])
    shape = tuple(value.shape[where.index(i)] if i in where else 1 for i in range(rank))
    if value.known is not None:
        return [graph.of(np.reshape(value.known, shape))]
    new = [i for i in range(rank) if i not in where]
    name = graph.node("Unsqueeze", value.name, graph.integers(*new)) if new else value.name
    return [_value(name, equation, shape)]


def _reshape(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    if equation.params["dimensions"] is not None:
        raise _refuse(equation)
    sizes = graph.sizes(equation.params["new_sizes"])
    name = graph.node("Reshape", _full(graph, equation, inputs), sizes)
    return [_value(name, equation)]


def _squeeze(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    axes = graph.integers(*equation.params["dimensions"])
    return [_value(graph.node("Squeeze", _full(graph, equation, inputs), axes), equation)]


def _transpose(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    order = equation.params["permutation"]
    name = graph.node("Transpose", graph.use(inputs[0]), perm=order)
    return [_value(name, equation, [inputs[0].shape[i] for i in order])]


def _concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    parts = [_full(graph, equation, inputs, i) for i in range(len(inputs))]
    return [_value(graph.node("Concat", *parts, axis=equation.params["dimension"]), equation)]


def _slice(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    axes = graph.integers(*range(len(starts)))
    limits = (graph.sizes(starts), graph.sizes(ends), axes, graph.sizes(steps))
    return [_value(graph.node("Slice", _full(graph, equation, inputs), *limits), equation)]


def _split(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    whole, count = _full(graph, equation, inputs), len(sizes)
    names = graph.node("Split", whole, graph.sizes(sizes), outputs=count, axis=axis)
    names = [names] if count == 1 else names
    return [_value(name, equation, output=i) for i, name in enumerate(names)]


def _iota(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    scalar = graph.node("Squeeze", graph.size(shape[axis]))
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    name = _cast(graph, graph.node("Range", zero, scalar, one), equation.params["dtype"])
    others = [i for i in range(len(shape)) if i != axis]
    name = graph.node("Unsqueeze", name, graph.integers(*others)) if others else name
    return [_value(name, equation, [1 if i in others else n for i, n in enumerate(shape)])]


def _dim_as_value(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    scalar = graph.node("Squeeze", graph.size(equation.params["dim"]))
    return [_value(_cast(graph, scalar, equation.outvars[0].aval.dtype), equation)]


def _cumulative_min(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """The smallest of what comes before or after, from all pairs: rows are short."""
    shape = equation.invars[0].aval.shape
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    if axis != len(shape) - 1:
        raise _refuse(equation)
    ones = graph.node("Squeeze", graph.size(shape[axis]))
    order = graph.node("Range", graph.constant(0, np.int64), ones, graph.constant(1, np.int64))
    across = graph.node("Unsqueeze", order, graph.integers(1))
    kept = graph.node("LessOrEqual" if reverse else "GreaterOrEqual", across, order)
    each = graph.node("Unsqueeze", _full(graph, equation, inputs), graph.integers(axis))
    largest = graph.constant(np.iinfo(np.int32).max, np.int32)
    pairs = graph.node("Where", kept, each, largest)
    name = graph.node("ReduceMin", pairs, graph.integers(axis + 1), keepdims=0)
    return [_value(name, equation)]


def _reduce(kind: str) -> Lowering:
    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        axes = graph.integers(*equation.params["axes"])
        name = graph.node(kind, _full(graph, equation, inputs), axes, keepdims=0)
        return [_value(name, equation)]

    return lower


def _dot_general(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Axes in the order batch, free, summed and batch, summed, free; a free one may be missing."""
    (summed, batched) = equation.params["dimension_numbers"]
    names, free = [], []
    for side in (0, 1):
        rank = len(equation.invars[side].aval.shape)
        rest = [i for i in range(rank) if i not in (*summed[side], *batched[side])]
        order = [*batched[side], *rest, *summed[side]]
        order = order if side == 0 else [*batched[side], *summed[side], *rest]
        name = _full(graph, equation, inputs, side)
        if order != list(range(rank)):
            name = graph.node("Transpose", name, perm=order)
        names.append(name)
        free.append(len(rest))
    count = len(batched[0])
    # Several free axes on the left are batches to a matrix on the right.
    if len(summed[0]) != 1 or max(free[1], free[0] * (count > 0)) > 1:
        raise _refuse(equation)
    missing = []
    if free[0] == 0:
        names[0] = graph.node("Unsqueeze", names[0], graph.integers(count))
        missing.append(-2)
    if free[1] == 0:
        names[1] = graph.node("Unsqueeze", names[1], graph.integers(-1))
        missing.append(-1)
    name = graph.node("MatMul", *names)
    name = graph.node("Squeeze", name, graph.integers(*missing)) if missing else name
    return [_value(name, equation)]


def _gather(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    params, rank = equation.params, len(equation.invars[0].aval.shape)
    numbers, whole = params["dimension_numbers"], equation.invars[0].aval.shape
    axes, collapsed = tuple(numbers.start_index_map), tuple(numbers.collapsed_slice_dims)
    if numbers.operand_batching_dims or params["mode"] == GatherScatterMode.FILL_OR_DROP:
        raise _refuse(equation)
    operand, indices = (_full(graph, equation, inputs, i) for i in (0, 1))
    if not collapsed and len(axes) == 1 and len(equation.invars[1].aval.shape) == 1:
        # A part of one axis, such as x[:, 1:] where the length is free.
        start = _cast(graph, indices, np.int64)
        end = graph.node("Add", start, graph.size(params["slice_sizes"][axes[0]]))
        return [_value(graph.node("Slice", operand, start, end, graph.integers(*axes)), equation)]
    rest = [n for i, n in enumerate(whole) if i not in axes]
    sizes = [n for i, n in enumerate(params["slice_sizes"]) if i not in axes]
    outer = len(equation.outvars[0].aval.shape) - len(rest)
    # Where the axes that are not looked up come in the result: behind the others, or for a lookup
    # along one axis with one index, as they were.
    behind = tuple(range(outer, outer + len(rest)))
    single = len(axes) == 1 and len(equation.invars[1].aval.shape) == 1
    if collapsed != axes or rest != sizes or not (single or numbers.offset_dims == behind):
        raise _refuse(equation)
    if params["mode"] == GatherScatterMode.CLIP:
        last = np.array([whole[axis] - 1 for axis in axes], equation.invars[1].aval.dtype)
        indices = graph.node("Max", indices, graph.constant(np.zeros_like(last)))
        indices = graph.node("Min", indices, graph.constant(last))
    if len(axes) == 1:
        flat = graph.node("Squeeze", indices, graph.integers(-1))
        return [_value(graph.node("Gather", operand, flat, axis=axes[0]), equation)]
    if axes != tuple(range(len(axes))) or rank < len(axes):
        raise _refuse(equation)
    return [_value(graph.node("GatherND", operand, _cast(graph, indices, np.int64)), equation)]


def _scatter(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Writing single elements, such as -inf over scores, at indices that are inside."""
    numbers, rank = equation.params["dimension_numbers"], len(equation.invars[0].aval.shape)
    every = tuple(range(rank))
    if (
        numbers.update_window_dims
        or tuple(numbers.scatter_dims_to_operand_dims) != every
        or numbers.operand_batching_dims
        or equation.params["mode"] != GatherScatterMode.PROMISE_IN_BOUNDS
    ):
        raise _refuse(equation)
    operand, indices, updates = (_full(graph, equation, inputs, i) for i in range(3))
    name = graph.node("ScatterND", operand, _cast(graph, indices, np.int64), updates)
    return [_value(name, equation)]


def _top_k(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    # Of equal values ONNX puts the lower index first, as JAX does.
    k, axis = graph.integers(equation.params["k"]), equation.params["axis"]
    values, places = graph.node("TopK", _full(graph, equation, inputs), k, outputs=2, axis=axis)
    return [_value(values, equation), _value(_cast(graph, places, np.int32), equation, output=1)]


LOWERINGS: dict[str, Lowering] = {
    **{name: _elementwise(name.title()) for name in ("abs", "add", "and", "cos", "div", "erf")},
    **{name: _elementwise(name.title()) for name in ("exp", "floor", "log", "max", "min", "mul")},
    **{name: _elementwise(name.title()) for name in ("neg", "not", "or", "pow", "round", "sign")},
    **{name: _elementwise(name.title()) for name in ("sin", "sqrt", "sub", "tanh")},
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _same,
    "cummin": _cumulative_min,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "eq": _elementwise("Equal"),
    "gather": _gather,
    "ge": _elementwise("GreaterOrEqual"),
    "gt": _elementwise("Greater"),
    "integer_pow": _composed(_integer_pow),
    "iota": _iota,
    "le": _elementwise("LessOrEqual"),
    "logistic": _elementwise("Sigmoid"),
    "lt": _elementwise("Less"),
    "ne": _composed(lambda graph, _, x, y: graph.node("Not", graph.node("Equal", x, y))),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "rsqrt": _composed(lambda graph, _, x: graph.node("Reciprocal", graph.node("Sqrt", x))),
    "scatter": _scatter,
    "select_n": _elementwise("Where", 0, 2, 1),
    "shift_left": _composed(_shift_left),
    "shift_right_arithmetic": _composed(_shift_right),
    "slice": _slice,
    "split": _split,
    "square": _composed(lambda graph, _, x: graph.node("Mul", x, x)),
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "top_k": _top_k,
    "transpose": _transpose,
}
