"""From a traced function to an ONNX graph, with what depends on constants alone worked out.

`make_graph` walks a jaxpr. An equation whose inputs are all known is run by JAX here and now, so
that decoded kernels, merged adapters and the vectors of all items become constants; the others
become nodes, by the functions of `jaxrec.export.onnx_operations`. Calls, which are known by name,
are walked as if they stood there; what else carries a function, such as a loop, becomes a node with
a graph of its own (`Graph.inner`) or is refused. Free dimensions stay free: sizes that a node wants
are computed in the graph from the shapes of its inputs.
"""

import ast
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
import onnx
from jax import export
from jax.extend.core import Literal

from jaxrec.export.golden import INSTEAD
from jaxrec.typing import UserError

OPSET, IR_VERSION = 20, 10  # what ONNX Runtime reads from 1.18 on
# Primitives that mean what their function means, once; the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_INLINE = 256  # bytes above which a constant lies in the file of constants
_ALIGNMENT = 4096  # so that a runtime can map constants into memory

type Known = jax.Array | np.ndarray
type Lowering = Callable[["Graph", Any, list["Value"]], Sequence["Value"]]


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
      name: of the tensor.
      shape: sizes as they are in the graph, where a size may be 1 that JAX has repeated already:
        nodes that work element by element repeat it themselves.
      dtype: of its elements.
      known: its content, of a constant.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype
    known: Known | None = None


class Constants:
    """A file of large constants that several graphs share; the same array is there once.

    Args:
      file: open for writing.
      name: of the file, beside which the graphs lie.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self.name = file, name
        self._places: dict[tuple[str, bytes], tuple[int, int]] = {}

    def tensor(self, name: str, array: np.ndarray) -> onnx.TensorProto:
        """Returns a constant of a graph, whose content is in the file where it is large."""
        if array.nbytes <= _INLINE:
            return onnx.numpy_helper.from_array(array, name)
        place = self._place(array)
        tensor = onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        told = {"location": self.name, "offset": place[0], "length": place[1]}
        for key, value in told.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _place(self, array: np.ndarray) -> tuple[int, int]:
        key = digest(array)
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            self._places[key] = (self._file.tell(), array.nbytes)
            self._file.write(_bytes(array))
        return self._places[key]


def digest(array: np.ndarray) -> tuple[str, bytes]:
    """Returns the dtype of an array, and a hash of its elements."""
    return array.dtype.name, hashlib.sha256(_bytes(array)).digest()


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Graph:
    """An ONNX graph that is being written.

    Args:
      name: of the graph.
      constants: the file of its large constants.
      lowerings: by primitive of JAX, what makes nodes of an equation.
    """

    def __init__(self, name: str, constants: Constants, lowerings: Mapping[str, Lowering]):
        self.name, self.constants, self.lowerings = name, constants, lowerings
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._names: dict[Any, str] = {}
        self._sizes: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def inner(self) -> "Graph":
        """Returns a graph inside of this one, whose nodes may use what is named here.

        Constants lie in the outermost graph; names differ in all of them.
        """
        graph = Graph(f"{self.name}_{next(self._numbers)}", self.constants, self.lowerings)
        graph.initializers, graph._names, graph._numbers = (
            self.initializers,
            self._names,
            self._numbers,
        )
        graph._sizes = dict(self._sizes)
        return graph

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of what it gives, or their names when they are several."""
        number = next(self._numbers)
        names = [f"{kind}_{number}" + f"_{i}" * (outputs > 1) for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, names, names[0], **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Returns the name of a constant; the same one is there once."""
        array = np.asarray(array, dtype)
        key = (array.shape, *digest(array))
        if key not in self._names:
            self._names[key] = f"constant_{next(self._numbers)}"
            self.initializers.append(self.constants.tensor(self._names[key], array))
        return self._names[key]

    def integers(self, *values: int) -> str:
        """Returns the name of a constant of int64, as axes and sizes are given."""
        return self.constant(values, np.int64)

    def of(self, array: Known) -> Value:
        """Returns a known array as a value, which becomes a constant once a node wants it."""
        array = np.asarray(array)
        return Value("", array.shape, array.dtype, array)

    def use(self, value: Value) -> str:
        """Returns the name of a value, to be put into a node that repeats sizes of 1 itself."""
        return value.name if value.known is None else self.constant(value.known)

    def full(self, value: Value, shape: Sequence[Any]) -> str:
        """Returns the name of a value in the shape that JAX says."""
        if tuple(value.shape) == tuple(shape):
            return self.use(value)
        return str(self.node("Expand", self.use(value), self.sizes(shape)))

    def sizes(self, shape: Sequence[Any]) -> str:
        """Returns the name of a shape, as int64."""
        if all(isinstance(n, int | np.integer) for n in shape):
            return self.integers(*(int(n) for n in shape))
        parts = [self.size(n) for n in shape]
        return parts[0] if len(parts) == 1 else str(self.node("Concat", *parts, axis=0))

    def size(self, size: Any) -> str:
        """Returns the name of one size, as int64 of shape (1,)."""
        if isinstance(size, int | np.integer):
            return self.integers(int(size))
        text = str(size)
        if text not in self._sizes:
            self._sizes[text] = self._computed(ast.parse(text, mode="eval").body)
        return self._sizes[text]

    def _computed(self, tree: ast.expr) -> str:
        kinds: dict[type, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
        match tree:
            case ast.Name(id=name) if name in self._sizes:
                return self._sizes[name]
            case ast.Constant(value=int(value)):
                return self.integers(value)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in kinds:
                sides = self._computed(left), self._computed(right)
                return str(self.node(kinds[type(op)], *sides))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return str(self.node("Neg", self._computed(operand)))
        raise UserError(f"a size of {ast.unparse(tree)} cannot be had in ONNX; {INSTEAD}")

    def input(self, name: str, shape: Sequence[Any], dtype: Any) -> Value:
        """Makes an input, whose free sizes are known from here on."""
        measured = ""
        for axis, size in enumerate(shape):
            if not isinstance(size, int) and str(size) not in self._sizes:
                measured = measured or self.node("Shape", name)
                found = self.node("Gather", measured, self.integers(axis))
                self._sizes[str(size)] = found
        self._inputs.append(_told(name, shape, dtype))
        return Value(name, tuple(shape), np.dtype(dtype))

    def fresh(self, kind: str, aval: Any) -> Value:
        """Makes an input of an inner graph, such as what a loop carries, under a new name."""
        return self.input(f"{kind}_{next(self._numbers)}", aval.shape, aval.dtype)

    def model(self, outputs: Mapping[str, Value]) -> onnx.ModelProto:
        """Returns the model that gives these values, without nodes that nothing wants."""
        graph, wanted = self._made(outputs)
        graph.initializer.extend(x for x in self.initializers if x.name in wanted)
        opset = onnx.helper.make_opsetid("", OPSET)
        made = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        made.producer_name = "jaxrec"
        return made

    def part(self, outputs: Sequence[Value]) -> onnx.GraphProto:
        """Returns an inner graph, the attribute of a node, that gives these values."""
        names = [f"result_{next(self._numbers)}" for _ in outputs]
        return self._made(dict(zip(names, outputs, strict=True)))[0]

    def _made(self, outputs: Mapping[str, Value]) -> tuple[onnx.GraphProto, set[str]]:
        """Returns the graph without constants, and all names that it reads."""
        for name, value in outputs.items():
            self.nodes.append(onnx.helper.make_node("Identity", [self.use(value)], [name], name))
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted |= _reads(node)
                kept.append(node)
        told = [_told(name, x.shape, x.dtype) for name, x in outputs.items()]
        return onnx.helper.make_graph(kept[::-1], self.name, self._inputs, told), wanted

    def results(self, jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
        """Adds a function's equations; returns its results in the shapes that JAX says."""
        found = zip(self.run(jaxpr, arguments), jaxpr.outvars, strict=True)
        return [
            x
            if tuple(x.shape) == tuple(atom.aval.shape)
            else Value(self.full(x, atom.aval.shape), tuple(atom.aval.shape), x.dtype)
            for x, atom in found
        ]

    def run(self, jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
        """Adds a function's equations; returns its results."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= zip(jaxpr.constvars, map(self.of, jaxpr.consts), strict=True)

        def read(atom: Any) -> Value:
            return (
                self.of(np.asarray(atom.val, atom.aval.dtype)) if is_literal(atom) else known[atom]
            )

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            known |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Value]) -> Sequence[Value]:
        name = equation.primitive.name
        if name in _CALLS:
            return self.run(equation.params[_CALLS[name]], inputs)
        if name != "dim_as_value" and _is_foldable(equation, inputs):
            results = equation.primitive.bind(*(x.known for x in inputs), **equation.params)
            several = equation.primitive.multiple_results
            return [self.of(x) for x in (results if several else [results])]
        if name not in self.lowerings:
            raise UserError(f"ONNX export does not know {name}, an operation of JAX; {INSTEAD}")
        return self.lowerings[name](self, equation, inputs)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Returns the names that a node reads, also those that graphs inside of it read."""
    inside = (x.g.node for x in node.attribute if x.type == onnx.AttributeProto.GRAPH)
    return set(node.input).union(*(_reads(one) for nodes in inside for one in nodes))


def _told(name: str, shape: Sequence[Any], dtype: Any) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sizes = [n if isinstance(n, int) else str(n) for n in shape]
    return onnx.helper.make_tensor_value_info(name, kind, sizes)


def is_literal(atom: Any) -> bool:
    """Returns whether what an equation takes is written in it."""
    return isinstance(atom, Literal)


def _is_foldable(equation: Any, inputs: list[Value]) -> bool:
    sizes = [n for x in equation.outvars for n in x.aval.shape]
    return all(x.known is not None for x in inputs) and not any(map(export.is_symbolic_dim, sizes))
