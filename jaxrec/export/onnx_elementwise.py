"""JAX's operations element by element as ONNX's, with JAX's meaning at the ends of each type.

ONNX Runtime computes in few types, so narrow integers go through wider ones and back, which wraps
around as JAX does; types that it has no arithmetic for, such as bfloat16, are refused. What C++
leaves undefined (division by 0, floats beyond an integer's ends) is written out. Not followed: NaN
that enters a maximum, a minimum or a sign.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from jax import lax

from jaxrec.export.golden import INSTEAD
from jaxrec.export.onnx_graph import Graph, Lowering, Value
from jaxrec.typing import UserError

_WIDE: dict[np.dtype, np.dtype] = {
    np.dtype(kind): np.dtype(larger)
    for larger, kinds in {
        np.int32: (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32),
        np.int64: (np.uint32, np.int64),
        np.float32: (np.float32,),
    }.items()
    for kind in kinds
}


def refuse(equation: Any) -> UserError:
    """Returns the error for a use of an operation that is not here."""
    return UserError(f"ONNX export does not know this use of {equation.primitive.name}; {INSTEAD}")


def value_of(
    name: str, equation: Any, shape: Sequence[Any] | None = None, output: int = 0
) -> Value:
    """Returns what an equation gives under a name, in another shape if one is given."""
    aval = equation.outvars[output].aval
    return Value(name, tuple(aval.shape if shape is None else shape), np.dtype(aval.dtype))


def cast(graph: Graph, name: str, dtype: Any) -> str:
    """Returns the name of a tensor in another type, by ONNX's own rules."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return str(graph.node("Cast", name, to=kind))


def wide(equation: Any, dtype: Any) -> np.dtype:
    """Returns the type in which a runtime computes what is of a type. Raises UserError for none."""
    found = _WIDE.get(np.dtype(dtype))
    if found is None:
        raise UserError(
            f"ONNX export does not know {equation.primitive.name} of {np.dtype(dtype).name}; "
            f"{INSTEAD}"
        )
    return found


def widened(graph: Graph, equation: Any, name: str, dtype: Any) -> str:
    """Returns the name of a tensor of a type, in the type in which a runtime computes."""
    kind = wide(equation, dtype)
    return name if kind == dtype else cast(graph, name, kind)


def narrowed(graph: Graph, equation: Any, name: str, dtype: Any, output: int = 0) -> str:
    """Returns what was computed for inputs of a type in the type of the result."""
    kind = np.dtype(equation.outvars[output].aval.dtype)
    return name if wide(equation, dtype) == kind else cast(graph, name, kind)


def _broadcast(inputs: list[Value]) -> tuple[Any, ...]:
    """Returns the shape of what works element by element; each size is one or the same."""
    shapes = [x.shape for x in inputs if x.shape]
    if not shapes:
        return ()
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))


def _composed(make: Callable[..., str]) -> Lowering:
    """Returns what makes nodes of names, in types that a runtime computes in."""

    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        names = [widened(graph, equation, graph.use(x), x.dtype) for x in inputs]
        name = make(graph, equation, *names)
        name = narrowed(graph, equation, name, inputs[0].dtype)
        return [value_of(name, equation, _broadcast(inputs))]

    return lower


def _plain(kind: str) -> Lowering:
    return _composed(lambda graph, equation, *names: graph.node(kind, *names))


def _compared(kind: str) -> Lowering:
    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        names = [widened(graph, equation, graph.use(x), x.dtype) for x in inputs]
        name = graph.node(kind, *names)
        name = graph.node("Not", name) if equation.primitive.name == "ne" else name
        return [value_of(name, equation, _broadcast(inputs))]

    return lower


def _of_bits(kind: str) -> Lowering:
    """Of truth values, or bit by bit of integers."""

    def lower(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        prefix = "" if inputs[0].dtype == np.bool_ else "Bitwise"
        name = graph.node(prefix + kind, *map(graph.use, inputs))
        return [value_of(name, equation, _broadcast(inputs))]

    return lower


def _is_float(equation: Any, which: int = 0) -> bool:
    return np.dtype(equation.invars[which].aval.dtype) == np.float32


def _div(graph: Graph, equation: Any, x: str, y: str) -> str:
    if _is_float(equation):
        return str(graph.node("Div", x, y))
    # In C++ a division by 0, and that of the least number by -1, end the process.
    dtype = wide(equation, equation.invars[0].aval.dtype)
    zero, one, minus = (graph.constant(n, dtype) for n in (0, 1, -1))
    by_zero, by_minus = graph.node("Equal", y, zero), graph.node("Equal", y, minus)
    safe = graph.node("Where", graph.node("Or", by_zero, by_minus), one, y)
    quotient = graph.node("Where", by_minus, graph.node("Neg", x), graph.node("Div", x, safe))
    return str(graph.node("Where", by_zero, minus, quotient))


def _rem(graph: Graph, equation: Any, x: str, y: str) -> str:
    if _is_float(equation):
        return str(graph.node("Mod", x, y, fmod=1))
    dtype = wide(equation, equation.invars[0].aval.dtype)
    zero, one, minus = (graph.constant(n, dtype) for n in (0, 1, -1))
    by_zero, by_minus = graph.node("Equal", y, zero), graph.node("Equal", y, minus)
    safe = graph.node("Where", graph.node("Or", by_zero, by_minus), one, y)
    # Of the sign of what is divided; a remainder by 1 is 0, and so is one by -1.
    return str(graph.node("Where", by_zero, x, graph.node("Mod", x, safe, fmod=1)))


def _integer_pow(graph: Graph, equation: Any, x: str) -> str:
    exponent = int(equation.params["y"])
    dtype = wide(equation, equation.invars[0].aval.dtype)
    if exponent < 0 and not _is_float(equation):
        raise refuse(equation)
    result, left = "", abs(exponent)
    # By squaring, as JAX does: a runtime's power of integers goes through floats.
    while left:
        if left & 1:
            result = graph.node("Mul", result, x) if result else x
        x, left = (graph.node("Mul", x, x) if left > 1 else x), left >> 1
    if not result:
        return str(graph.node("Expand", graph.constant(1, dtype), graph.node("Shape", x)))
    return str(graph.node("Reciprocal", result) if exponent < 0 else result)


def _pow(graph: Graph, equation: Any, x: str, y: str) -> str:
    if not _is_float(equation):
        raise refuse(equation)
    return str(graph.node("Pow", x, y))


def _round(graph: Graph, equation: Any, x: str) -> str:
    if equation.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return str(graph.node("Round", x))
    size = graph.node("Abs", x)  # halves go away from 0
    whole = graph.node("Floor", size)
    up = graph.node(
        "GreaterOrEqual", graph.node("Sub", size, whole), graph.constant(0.5, "float32")
    )
    return str(
        graph.node(
            "Mul", graph.node("Sign", x), graph.node("Add", whole, cast(graph, up, "float32"))
        )
    )


def _rsqrt(graph: Graph, equation: Any, x: str) -> str:
    return str(graph.node("Reciprocal", graph.node("Sqrt", x)))


def _square(graph: Graph, equation: Any, x: str) -> str:
    return str(graph.node("Mul", x, x))


def _clamp(graph: Graph, equation: Any, low: str, x: str, high: str) -> str:
    return str(graph.node("Min", graph.node("Max", x, low), high))


def _is_finite(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    if inputs[0].dtype != np.float32:
        raise refuse(equation)
    name = graph.use(inputs[0])
    # What is not finite gives NaN, which is not equal to itself.
    off = graph.node("Sub", name, name)
    return [value_of(graph.node("Equal", off, off), equation, inputs[0].shape)]


def _shifted(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Shifts, as products and quotients of int64: ONNX shifts integers without a sign alone.

    A shift by less than 0 or by all bits leaves none of them, or only the sign.
    """
    (value, by), kind = inputs, equation.primitive.name
    dtype = value.dtype
    if dtype.itemsize > 4 or (kind == "shift_right_arithmetic" and dtype.kind != "i"):
        raise refuse(equation)
    if kind == "shift_right_logical" and dtype.kind != "u":
        raise refuse(equation)
    bits = 8 * dtype.itemsize
    count = cast(graph, graph.use(by), np.int64)
    low = graph.node("Less", count, graph.constant(0, np.int64))
    high = graph.node("GreaterOrEqual", count, graph.constant(bits, np.int64))
    outside = graph.node("Or", low, high)
    inside = graph.node("Where", outside, graph.constant(bits - 1, np.int64), count)
    power = graph.node("Gather", graph.constant([2**n for n in range(bits)], np.int64), inside)
    wide_value = cast(graph, graph.use(value), np.int64)
    if kind == "shift_left":
        name = graph.node("Mul", wide_value, power)
    else:  # a quotient rounded down: ONNX rounds towards 0, and its remainder has the sign of 2
        below = graph.node("Sub", wide_value, graph.node("Mod", wide_value, power))
        name = graph.node("Div", below, power)
    if kind != "shift_right_arithmetic":
        name = graph.node("Where", outside, graph.constant(0, np.int64), name)
    return [value_of(cast(graph, name, dtype), equation, _broadcast(inputs))]


def convert(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Changes the type of elements."""
    (value,), dtype = inputs, np.dtype(equation.outvars[0].aval.dtype)
    name = graph.use(value)
    if value.dtype.kind == "f" and dtype.kind in "iu":
        # In C++ what lies beyond the ends is undefined; JAX takes the end, and 0 for NaN.
        name = cast(graph, name, np.float64)
        ends = np.iinfo(dtype)
        there = graph.node("Equal", name, name)
        name = graph.node("Where", there, name, graph.constant(0, np.float64))
        name = graph.node("Max", name, graph.constant(ends.min, np.float64))
        name = graph.node("Min", name, graph.constant(ends.max, np.float64))
    if value.dtype != dtype:
        name = cast(graph, name, dtype)
    return [value_of(name, equation, value.shape)]


def same(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """What changes nothing at inference."""
    return inputs


def _select(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    which, *cases = inputs
    dtype = cases[0].dtype
    kind = wide(equation, dtype)
    names = [widened(graph, equation, graph.use(x), dtype) for x in cases]
    number = graph.use(which)
    if which.dtype == np.bool_:
        name = graph.node("Where", number, names[1], names[0])
    else:
        name = names[0]
        for index, other in enumerate(names[1:], 1):
            chosen = graph.node("GreaterOrEqual", number, graph.constant(index, which.dtype))
            name = graph.node("Where", chosen, other, name)
    name = name if kind == dtype else cast(graph, name, dtype)
    return [value_of(name, equation, _broadcast(inputs))]


ELEMENTWISE: dict[str, Lowering] = {
    **{
        name: _plain(name.title())
        for name in ("abs", "add", "ceil", "cos", "erf", "exp", "floor", "log", "max", "min")
    },
    **{name: _plain(name.title()) for name in ("mul", "sign", "sin", "sqrt", "sub", "tanh")},
    **{name: _of_bits(name.title()) for name in ("and", "not", "or", "xor")},
    "clamp": _composed(_clamp),
    "convert_element_type": convert,
    "copy": same,
    "div": _composed(_div),
    "eq": _compared("Equal"),
    "ge": _compared("GreaterOrEqual"),
    "gt": _compared("Greater"),
    "integer_pow": _composed(_integer_pow),
    "is_finite": _is_finite,
    "le": _compared("LessOrEqual"),
    "logistic": _plain("Sigmoid"),
    "lt": _compared("Less"),
    "ne": _compared("Equal"),
    "neg": _plain("Neg"),
    "pow": _composed(_pow),
    "rem": _composed(_rem),
    "round": _composed(_round),
    "rsqrt": _composed(_rsqrt),
    "select_n": _select,
    "shift_left": _shifted,
    "shift_right_arithmetic": _shifted,
    "shift_right_logical": _shifted,
    "square": _composed(_square),
    "stop_gradient": same,
}
