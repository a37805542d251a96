"""Models whose parameters are stored as integers, and training that knows that they will be."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.compression import products
from jaxrec.compression.integers import (
    IntegerTable,
    dequantize_rows,
    pack,
    quantize_rows,
    quantized,
)
from jaxrec.functional import Functional, functional_of, reparametrise
from jaxrec.layers.embedding import on_rows
from jaxrec.models.wrapper import Wrapper
from jaxrec.ops.keys import Stream, root, stream
from jaxrec.paths import flatten, nest
from jaxrec.typing import Array, Params, UserError

_BLOCK_ROWS = 2**18  # of a table that are encoded together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized(Wrapper):
    """The model of another config with its parameters stored in fewer bits.

    Its parameters come from `quantize`. A lookup decodes the rows that are asked for and no others.
    Tables are whole on each device of a mesh, and nothing of them can be trained.

    Attributes:
      model: the config of the model.
      tables: how embedding tables are stored: "int8" or "int4" with scales, "pq" (product
        quantisation: a byte for each of `pq_parts` parts of a row), or "float32" as they are.
      dense: how kernels of dense layers are stored: "int8" with a scale for each output, or
        "float32". Biases, norms and positions always stay as they are.
      group: values along a row that share a scale, for int8 and int4 tables; 0 is the whole row.
      pq_parts: parts of a row, a divisor of its width.
      seed: of the codebooks.
    """

    tables: Literal["int8", "int4", "pq", "float32"] = "int8"
    dense: Literal["int8", "float32"] = "int8"
    group: int = 0
    pq_parts: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("tables", self.tables, ("int8", "int4", "pq", "float32"))
        _check_choice("dense", self.dense, ("int8", "float32"))
        if isinstance(self.model, Quantized | QuantizationAware):
            raise UserError(
                f"a {type(self.model).__name__} model cannot be quantised again, by "
                f"{type(self).__name__}. Give the model inside, model.model."
            )

    def functional(self) -> Functional:
        """Returns the model as pure functions; `init` gives zeros of the right shapes.

        Raises:
          UserError: when a table's width cannot be divided as asked.
        """
        inner = functional_of(self.model)
        stored = {
            path: _of(self, inner, path, leaf) for path, leaf in flatten(inner.shapes).items()
        }

        def init(key: jax.Array) -> Params:
            shapes = {path: kind.shapes() for path, kind in stored.items()}
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nest(shapes))

        def expand(params: Params, key: jax.Array | None) -> Params:
            return nest({path: kind.decode(_at(params, path)) for path, kind in stored.items()})

        # Without tables: no step could look up and write rows of codes.
        return reparametrise(inner, init, expand)._replace(tables={})


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationAware(Wrapper):
    """The model of another config, trained as if its parameters were integers already.

    Each use of a table or kernel sees what quantisation leaves of it, and gradients pass straight
    through (arXiv 1712.05877). Parameters stay floats, and `quantize(params, config.quantized())`
    gives a model of exactly the numbers that training saw.

    Attributes:
      model: the config of the model.
      bits: 8 or 4, of embedding tables.
      group: values along a row that share a scale; 0 is the whole row.
      dense: "int8" does the same to kernels of dense layers, "float32" leaves them.
    """

    bits: Literal[8, 4] = 8
    group: int = 0
    dense: Literal["int8", "float32"] = "int8"

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (8, 4))
        if isinstance(self.model, Quantized | QuantizationAware):
            raise UserError(
                f"a {type(self.model).__name__} model cannot be quantised again, by "
                "QuantizationAware. Give the model inside, model.model."
            )
        self.quantized()

    def quantized(self) -> Quantized:
        """Returns the config that stores the integers."""
        tables: Literal["int8", "int4"] = "int8" if self.bits == 8 else "int4"
        return Quantized(model=self.model, tables=tables, group=self.group, dense=self.dense)

    def functional(self) -> Functional:
        """Returns the model as pure functions of the same parameters as the model inside."""
        inner, config = functional_of(self.model), self.quantized()
        stored = {
            path: _of(config, inner, path, leaf) for path, leaf in flatten(inner.shapes).items()
        }

        def expand(params: Params, key: jax.Array | None) -> Params:
            return nest(
                {path: stored[path].imitate(leaf) for path, leaf in flatten(params).items()}
            )

        return reparametrise(inner, inner.init, expand, frozen=inner.frozen)


def quantize(params: Params, config: Quantized) -> Params:
    """Returns the parameters of `config` that come nearest to those of the model inside it.

    Args:
      params: of `config.model`, wherever they are: on one device, on a mesh, tables on the host.
        Tables are read some rows at a time.
      config: what to make.

    Returns:
      A tree of arrays on one device; `num_bytes` says how large.

    Raises:
      UserError: when the parameters are not those of `config.model`, or a table's width cannot be
        divided as asked.
    """
    inner = functional_of(config.model)
    shapes, leaves = flatten(inner.shapes), flatten(params)
    if shapes.keys() != leaves.keys():
        raise UserError(
            f"these are not the parameters of {type(config.model).__name__}: they differ in "
            f"{', '.join(sorted(shapes.keys() ^ leaves.keys()))}."
        )
    stored = {path: _of(config, inner, path, shape) for path, shape in shapes.items()}
    # Rows at the end that only make parts on a mesh equal are left out.
    return nest(
        {path: kind.encode(leaves[path], shapes[path].shape) for path, kind in stored.items()}
    )


def num_bytes(params: Params) -> int:
    """Returns the bytes of all arrays of a tree, which is what storing them takes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A parameter that is stored as it is."""

    shape: tuple[int, ...]
    dtype: Any

    def shapes(self) -> Any:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def encode(self, leaf: Any, shape: tuple[int, ...]) -> Any:
        return jnp.asarray(np.asarray(leaf)[: shape[0]] if shape else leaf, self.dtype)

    def decode(self, stored: Any) -> Any:
        return stored

    def imitate(self, leaf: Any) -> Any:
        return leaf


@dataclasses.dataclass(frozen=True)
class _Kernel(_Plain):
    """A dense layer's kernel (..., in, out) with a scale for each output."""

    def shapes(self) -> Any:
        return jax.eval_shape(self._encoded, jax.ShapeDtypeStruct(self.shape, self.dtype))

    def _encoded(self, kernel: jax.Array) -> Params:
        codes, scale = quantize_rows(jnp.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1), 8)
        return {"codes": codes, "scale": scale}

    def encode(self, leaf: Any, shape: tuple[int, ...]) -> Any:
        return self._encoded(jnp.asarray(np.asarray(leaf)))

    def decode(self, stored: Any) -> jax.Array:
        return self._kernel(dequantize_rows(stored["codes"], stored["scale"]))

    def _kernel(self, rows: jax.Array) -> jax.Array:
        outputs = rows.reshape(self.shape[-1], *self.shape[:-1])
        return jnp.moveaxis(outputs, 0, -1).astype(self.dtype)

    def imitate(self, leaf: jax.Array) -> jax.Array:
        return self._kernel(quantized(jnp.moveaxis(leaf, -1, 0).reshape(leaf.shape[-1], -1), 8))


@dataclasses.dataclass(frozen=True)
class _Integers(_Plain):
    """A table of integers."""

    bits: int
    group: int

    def shapes(self) -> Any:
        return jax.eval_shape(self._encoded, jax.ShapeDtypeStruct(self.shape, self.dtype))

    def _encoded(self, rows: jax.Array) -> Params:
        codes, scale = quantize_rows(rows, self.bits, self.group)
        return {"codes": codes if self.bits == 8 else pack(codes), "scale": scale}

    def encode(self, leaf: Any, shape: tuple[int, ...]) -> Any:
        return _in_blocks(jax.jit(self._encoded), leaf, shape[0])

    def decode(self, stored: Any) -> IntegerTable:
        return IntegerTable(stored["codes"], stored["scale"], self.bits, self.shape[1])

    def imitate(self, leaf: Any) -> Any:
        return on_rows(leaf, functools.partial(quantized, bits=self.bits, group=self.group))


@dataclasses.dataclass(frozen=True)
class _Products(_Plain):
    """A product-quantised table."""

    parts: int
    seed: int

    def shapes(self) -> Any:
        books = (self.parts, products.NUM_CODES, self.shape[1] // self.parts)
        return {
            "codes": jax.ShapeDtypeStruct((self.shape[0], self.parts), jnp.uint8),
            "norms": jax.ShapeDtypeStruct((self.shape[0], 1), jnp.bfloat16),
            "codebooks": jax.ShapeDtypeStruct(books, jnp.bfloat16),
        }

    def encode(self, leaf: Any, shape: tuple[int, ...]) -> Any:
        rows = _rows(leaf, products.sample_rows(shape[0], self.seed))
        books = products.fit_codebooks(rows, self.parts, stream(root(self.seed), Stream.CODEBOOKS))

        @jax.jit
        def encoded(rows: jax.Array) -> Params:
            codes, norms = products.encode(rows, books)
            return {"codes": codes, "norms": norms}

        return _in_blocks(encoded, leaf, shape[0]) | {"codebooks": books}

    def decode(self, stored: Any) -> products.ProductTable:
        return products.ProductTable(stored["codes"], stored["norms"], stored["codebooks"])


def _of(config: Quantized, inner: Functional, path: str, leaf: jax.ShapeDtypeStruct) -> _Plain:
    """Returns how a parameter is stored."""
    name, _, last = path.rpartition("/")
    if last == "table" and name in inner.tables:
        width = leaf.shape[1]
        match config.tables:
            case "int8" | "int4":
                _check_divides("group", config.group, width, path, zero=True)
                bits = 8 if config.tables == "int8" else 4
                return _Integers(leaf.shape, leaf.dtype, bits, config.group)
            case "pq":
                _check_divides("pq_parts", config.pq_parts, width, path)
                return _Products(leaf.shape, leaf.dtype, config.pq_parts, config.seed)
    elif last == "kernel" and config.dense == "int8":
        return _Kernel(leaf.shape, leaf.dtype)
    return _Plain(leaf.shape, leaf.dtype)


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is one of {', '.join(map(str, choices))}; got {value!r}.")


def _check_divides(name: str, value: int, width: int, path: str, *, zero: bool = False) -> None:
    if not (zero and value == 0) and (value < 1 or width % value):
        divisors = [i for i in range(1, width + 1) if width % i == 0]
        raise UserError(
            f"{name}={value} does not divide the width {width} of {path}. Choose one of "
            f"{', '.join(map(str, divisors))}{', or 0 for the whole row' * zero}."
        )


def _at(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _rows(table: Array, rows: Any) -> jax.Array:
    """Returns some rows of a table in float32, wherever it is, on one device."""
    return jnp.asarray(np.asarray(table[rows]), jnp.float32)


def _in_blocks(encode: Callable[[jax.Array], Params], table: Array, num_rows: int) -> Params:
    """Returns the encoded first rows of a table, some at a time."""
    blocks = [
        jax.device_get(encode(_rows(table, slice(start, min(start + _BLOCK_ROWS, num_rows)))))
        for start in range(0, num_rows, _BLOCK_ROWS)
    ]
    return jax.tree.map(lambda *arrays: jnp.asarray(np.concatenate(arrays)), *blocks)
