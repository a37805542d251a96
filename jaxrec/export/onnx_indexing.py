"""JAX's look-ups and writes as ONNX's, with JAX's meaning of indices that lie outside.

ONNX counts negative indices from the end and refuses what lies beyond it while it runs; JAX keeps
indices inside ("clip") or fills in a value ("fill"), so that is written out.
"""

from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxrec.export.onnx_elementwise import cast, narrowed, refuse, value_of, wide, widened
from jaxrec.export.onnx_graph import Graph, Lowering, Value


def _full(graph: Graph, equation: Any, inputs: list[Value], which: int = 0) -> str:
    return graph.full(inputs[which], equation.invars[which].aval.shape)


def _between(graph: Graph, name: str, dtype: Any, last: str) -> str:
    """Returns indices kept between 0 and the last one, which is int64."""
    name = cast(graph, name, np.int64) if np.dtype(dtype) != np.int64 else name
    name = graph.node("Max", name, graph.constant(0, np.int64))
    return str(graph.node("Min", name, last))


def _lasts(graph: Graph, sizes: list[Any]) -> str:
    """Returns the name of the last index of each axis, int64 of shape (axes,)."""
    return str(graph.node("Sub", graph.sizes(sizes), graph.constant(1, np.int64)))


def _filler(equation: Any) -> Any:
    """Returns what JAX fills in for indices outside, where a look-up does not say."""
    given, dtype = equation.params["fill_value"], np.dtype(equation.outvars[0].aval.dtype)
    if given is not None:
        return given
    if dtype.kind == "f":
        return np.nan
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind == "u" else np.iinfo(dtype).min


def _gather(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    params, whole = equation.params, equation.invars[0].aval.shape
    numbers, mode = params["dimension_numbers"], params["mode"]
    axes, collapsed = tuple(numbers.start_index_map), tuple(numbers.collapsed_slice_dims)
    known_modes = (
        GatherScatterMode.CLIP,
        GatherScatterMode.FILL_OR_DROP,
        GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    if numbers.operand_batching_dims or mode not in known_modes:
        raise refuse(equation)
    single = len(axes) == 1 and len(equation.invars[1].aval.shape) == 1
    rest = [n for i, n in enumerate(whole) if i not in axes]
    sizes = [n for i, n in enumerate(params["slice_sizes"]) if i not in axes]
    if rest != sizes:
        raise refuse(equation)
    operand, indices = (_full(graph, equation, inputs, i) for i in (0, 1))
    dtype = equation.invars[1].aval.dtype
    if not collapsed and single:
        # A part of one axis, such as x[:, 1:] where the length is free.
        size = params["slice_sizes"][axes[0]]
        if mode == GatherScatterMode.FILL_OR_DROP and inputs[1].known is None:
            raise refuse(equation)
        start = _between(graph, indices, dtype, graph.size(whole[axes[0]] - size))
        end = graph.node("Add", start, graph.size(size))
        return [value_of(graph.node("Slice", operand, start, end, graph.integers(*axes)), equation)]
    outer = len(equation.outvars[0].aval.shape) - len(rest)
    # Where the axes that are not looked up come in the result: behind the others, or for a lookup
    # along one axis with one index, as they were.
    behind = tuple(range(outer, outer + len(rest)))
    if collapsed != axes or not (single or numbers.offset_dims == behind):
        raise refuse(equation)
    if len(axes) > 1 and axes != tuple(range(len(axes))):
        raise refuse(equation)
    lasts = _lasts(graph, [whole[axis] for axis in axes])
    given = cast(graph, indices, np.int64)
    # Also where it is promised that they are inside: XLA's own look-ups keep them there.
    inside = _between(graph, given, np.int64, lasts)
    if len(axes) == 1:
        flat = graph.node("Squeeze", inside, graph.integers(-1))
        name = graph.node("Gather", operand, flat, axis=axes[0])
    else:
        name = graph.node("GatherND", operand, inside)
    if mode == GatherScatterMode.FILL_OR_DROP:
        fits = cast(graph, graph.node("Equal", given, inside), np.int32)
        fits = graph.node("ReduceMin", fits, graph.integers(-1), keepdims=0)
        fits = cast(graph, fits, np.bool_)
        if rest and not single:
            fits = graph.node("Unsqueeze", fits, graph.integers(*range(-len(rest), 0)))
        kind = equation.outvars[0].aval.dtype
        found = widened(graph, equation, name, kind)
        fill = np.asarray(_filler(equation), kind).astype(wide(equation, kind))
        name = graph.node("Where", fits, found, graph.constant(fill))
        name = narrowed(graph, equation, name, kind)
    return [value_of(name, equation)]


def _dynamic_slice(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    whole, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    if len(inputs) != 1 + len(whole):
        raise refuse(equation)  # sizes that are free
    starts = []
    for value, size, count in zip(inputs[1:], whole, sizes, strict=True):
        one = graph.node("Unsqueeze", graph.use(value), graph.integers(0))
        starts.append(_between(graph, one, value.dtype, graph.size(size - count)))
    start = starts[0] if len(starts) == 1 else graph.node("Concat", *starts, axis=0)
    end = graph.node("Add", start, graph.sizes(sizes))
    name = graph.node("Slice", _full(graph, equation, inputs), start, end)
    return [value_of(name, equation)]


def _dynamic_update_slice(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Writes a part that is whole along all axes but one, or a single element."""
    whole, part = (equation.invars[i].aval.shape for i in (0, 1))
    if len(inputs) != 2 + len(whole):
        raise refuse(equation)
    name, new = _full(graph, equation, inputs), _full(graph, equation, inputs, 1)
    cut = [axis for axis in range(len(whole)) if whole[axis] != part[axis]]
    if len(cut) > 1:
        raise refuse(equation)
    if not cut:
        return [value_of(new, equation)]
    (axis,) = cut
    value = inputs[2 + axis]
    start = graph.node("Unsqueeze", graph.use(value), graph.integers(0))
    start = _between(graph, start, value.dtype, graph.size(whole[axis] - part[axis]))
    end = graph.node("Add", start, graph.size(part[axis]))
    axes = graph.integers(axis)
    before = graph.node("Slice", name, graph.integers(0), start, axes)
    after = graph.node("Slice", name, end, graph.size(whole[axis]), axes)
    return [value_of(graph.node("Concat", before, new, after, axis=axis), equation)]


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
        raise refuse(equation)
    operand, indices, updates = (_full(graph, equation, inputs, i) for i in range(3))
    name = graph.node("ScatterND", operand, cast(graph, indices, np.int64), updates)
    return [value_of(name, equation)]


def _top_k(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    # Of equal values ONNX puts the lower index first, as JAX does.
    k, axis = graph.integers(equation.params["k"]), equation.params["axis"]
    dtype = equation.invars[0].aval.dtype
    name = widened(graph, equation, _full(graph, equation, inputs), dtype)
    values, places = graph.node("TopK", name, k, outputs=2, axis=axis)
    return [
        value_of(narrowed(graph, equation, values, dtype), equation),
        value_of(cast(graph, places, np.int32), equation, output=1),
    ]


def _arg_extreme(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    kind = "ArgMax" if equation.primitive.name == "argmax" else "ArgMin"
    dtype = equation.invars[0].aval.dtype
    name = widened(graph, equation, _full(graph, equation, inputs), dtype)
    (axis,) = equation.params["axes"]
    name = graph.node(kind, name, axis=axis, keepdims=0)
    return [value_of(cast(graph, name, equation.params["index_dtype"]), equation)]


INDEXING: dict[str, Lowering] = {
    "argmax": _arg_extreme,
    "argmin": _arg_extreme,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter,
    "top_k": _top_k,
}
