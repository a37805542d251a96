"""JAX's loops and branches as ONNX's: nodes with graphs inside.

A scan becomes a `Loop` with a count, so do `lax.map` and `fori_loop` with a count; `while_loop`
becomes a `Loop` with a condition, and `cond` and `switch` become `If`. What these graphs read from
around them, such as weights, they read by name.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrec.export.onnx_graph import Graph, Value

_TO_THE_BEGINNING = np.iinfo(np.int64).min


def lower_scan(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Goes over the leading axis of arrays, and carries values from step to step."""
    function, length = equation.params["jaxpr"], equation.params["length"]
    taken, given = equation.invars, equation.outvars
    # What is scanned over has one axis more around the loop than inside of it.
    scanned = _longer(taken, function.invars)
    carried = len(given) - _longer(given, function.outvars)
    first = len(inputs) - scanned
    wholes = [graph.full(inputs[i], taken[i].aval.shape) for i in range(first, len(inputs))]
    begin = [graph.full(inputs[i], taken[i].aval.shape) for i in range(first - carried, first)]

    inner = graph.inner()
    step, going = _loop_inputs(inner)
    if equation.params["reverse"]:
        last = inner.node("Sub", _scalar(inner, length), inner.constant(1, np.int64))
        step = inner.node("Sub", last, step)
    states = [
        inner.fresh("carried", atom.aval) for atom in function.invars[first - carried : first]
    ]
    parts = [
        Value(inner.node("Gather", whole, step, axis=0), tuple(aval.shape), np.dtype(aval.dtype))
        for whole, aval in zip(wholes, (x.aval for x in function.invars[first:]), strict=True)
    ]
    found = inner.results(function, [*inputs[: first - carried], *states, *parts])
    body = inner.part([going, *found])
    names = _names(
        graph.node("Loop", _scalar(graph, length), "", *begin, outputs=len(given), body=body)
    )
    if equation.params["reverse"]:
        names[carried:] = [_reversed(graph, name) for name in names[carried:]]
    return _values(names, given)


def lower_while(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Repeats a function while a condition holds."""
    asked, function = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    of_asked, of_function = inputs[:first], inputs[first : first + second]
    states = inputs[first + second :]
    holds = graph.use(graph.results(asked, [*of_asked, *states])[0])
    begin = [
        graph.full(x, atom.aval.shape) for x, atom in zip(states, equation.outvars, strict=True)
    ]
    inner = graph.inner()
    _loop_inputs(inner)
    carried = [inner.fresh("carried", atom.aval) for atom in function.invars[second:]]
    found = inner.results(function, [*of_function, *carried])
    going = inner.results(asked, [*of_asked, *found])[0]
    body = inner.part([going, *found])
    names = graph.node("Loop", "", holds, *begin, outputs=len(begin), body=body)
    return _values(_names(names), equation.outvars)


def lower_cond(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Chooses one of several functions by a number, the nearest that there is."""
    branches, which, arguments = equation.params["branches"], inputs[0], inputs[1:]
    if which.known is not None:
        chosen = int(np.clip(int(np.asarray(which.known)), 0, len(branches) - 1))
        return graph.results(branches[chosen], arguments)

    def from_branch(graph: Graph, number: int) -> list[Value]:
        """Returns what the functions from one on give."""
        if number == len(branches) - 1:
            return graph.results(branches[number], arguments)
        index = graph.use(which)
        later = graph.node("GreaterOrEqual", index, graph.constant(number + 1, which.dtype))
        then, otherwise = graph.inner(), graph.inner()
        names = graph.node(
            "If",
            later,
            outputs=len(equation.outvars),
            then_branch=then.part(from_branch(then, number + 1)),
            else_branch=otherwise.part(otherwise.results(branches[number], arguments)),
        )
        return _values(_names(names), equation.outvars)

    return from_branch(graph, 0)


def _loop_inputs(inner: Graph) -> tuple[str, Value]:
    """Makes what the graph of a `Loop` is given first: the number of the step, and true."""
    step = inner.fresh("step", jax.ShapeDtypeStruct((), np.int64))
    return step.name, inner.fresh("going", jax.ShapeDtypeStruct((), np.bool_))


def _longer(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """Returns how many values have more axes outside of a loop than inside."""
    pairs = zip(outside, inside, strict=True)
    return sum(len(x.aval.shape) > len(y.aval.shape) for x, y in pairs)


def _scalar(graph: Graph, size: Any) -> str:
    return str(graph.node("Squeeze", graph.size(size)))


def _reversed(graph: Graph, name: str) -> str:
    ends = (graph.integers(-1), graph.integers(_TO_THE_BEGINNING), graph.integers(0))
    return str(graph.node("Slice", name, *ends, graph.integers(-1)))


def _names(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _values(names: Sequence[str], atoms: Sequence[Any]) -> list[Value]:
    return [
        Value(name, tuple(atom.aval.shape), np.dtype(atom.aval.dtype))
        for name, atom in zip(names, atoms, strict=True)
    ]
