"""The properties of a loss that objectives rely on."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.testing.report import Checked
from jaxrec.typing import UserError

_EXAMPLES, _CHOICES, _WIDTH = 6, 5, 3
_MASKS = ("where", "where_negatives")


def _inputs() -> dict[str, Any]:
    """Arguments by name, the first axis of each that of examples."""
    random = np.random.default_rng(0)

    def scores(*shape: int) -> np.ndarray:
        return random.normal(0, 2, shape).astype(np.float32)

    return {
        "positives": scores(_EXAMPLES),
        "predictions": scores(_EXAMPLES),
        "labels": scores(_EXAMPLES),
        "values": scores(_EXAMPLES),
        "negatives": scores(_EXAMPLES, _CHOICES),
        "logits": scores(_EXAMPLES, _CHOICES),
        "students": scores(_EXAMPLES, _CHOICES),
        "teachers": scores(_EXAMPLES, _CHOICES),
        "users": scores(_EXAMPLES, _WIDTH),
        "items": scores(_EXAMPLES, _WIDTH),
        "targets": np.array([1, 4, 2, 2, 3, 1], np.int32),
        "ids": np.array([3, 7, 9, 4, 1, 8], np.int32),
        "beta": np.float32(0.7),
    }


def check_loss(
    loss: Callable[..., jax.Array],
    inputs: Mapping[str, Any] | None = None,
    *,
    shrinks: bool = False,
) -> Checked:
    """Checks a loss of examples on a few of them.

    Args:
      loss: a pure function of arrays whose first axis is that of examples. A mask is an argument
        `where`, of the shape of what it returns or of the candidates, or `where_negatives`.
      inputs: its arguments by name; None makes them up for the names that losses here have, such as
        `positives` (B,), `negatives` (B, N), `logits` (B, N), `targets` (B,), `users` (B, D).
      shrinks: whether it returns one number for all examples, as a mean does.

    Returns:
      What was checked.

    Raises:
      AssertionError: names the property that does not hold.
      UserError: for an argument that is not known and not given.
    """
    name = getattr(loss, "__name__", str(loss))
    case = _Case(loss, _arguments(loss, inputs, name), Checked(name), shrinks)
    value = case.check_value()
    case.check_order(value)
    case.check_extremes()
    for mask in _MASKS:
        if mask in inspect.signature(loss).parameters:
            case.check_mask(mask)
    return case.report


def _arguments(
    loss: Callable[..., Any], inputs: Mapping[str, Any] | None, name: str
) -> dict[str, Any]:
    if inputs is not None:
        return dict(inputs)
    known, found = _inputs(), {}
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.name in known:
            found[parameter.name] = known[parameter.name]
        elif parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"check_loss does not know what {name} wants as {parameter.name!r}. Give it: "
                f"check_loss({name}, inputs={{{parameter.name!r}: ..., ...}})."
            )
    return found


class _Case:
    """A loss and arguments for it."""

    def __init__(
        self, loss: Callable[..., Any], given: dict[str, Any], report: Checked, shrinks: bool
    ):
        self.loss, self.given, self.report, self.shrinks = loss, given, report, shrinks
        self.count = max(np.shape(x)[0] for x in given.values() if np.ndim(x))

    def __call__(self, **changes: Any) -> np.ndarray:
        return np.asarray(self.loss(**(self.given | changes)))

    def floats(self) -> dict[str, Any]:
        """Returns the arguments that scores are made of."""
        return {
            key: x
            for key, x in self.given.items()
            if np.ndim(x) and np.issubdtype(np.asarray(x).dtype, np.floating)
        }

    def check_value(self) -> np.ndarray:
        """One float32 an example, finite, with finite gradients, compiled or not."""
        value = self()
        shape = () if self.shrinks else (self.count,)
        name = "one value for all examples" if self.shrinks else "one value an example"
        self.report.require(
            name, value.shape[: len(shape)] == shape, f"Its shape is {value.shape}."
        )
        half = {key: jnp.asarray(x, jnp.bfloat16) for key, x in self.floats().items()}
        for found in (value, self(**half)):
            self.report.require("float32 comes out", found.dtype == np.float32, str(found.dtype))
        self.report.require_finite("values are finite", [value])
        compiled = jax.jit(lambda floats: self.loss(**(self.given | floats)))
        self.report.require_equal("jit gives what eager gives", compiled(self.floats()), value)
        self.report.require_finite("gradients are finite", self.gradient({}).values())
        return value

    def gradient(self, changes: dict[str, Any]) -> dict[str, jax.Array]:
        """Returns the gradient of the sum of values by the arguments that scores are made of."""
        rest = self.given | changes

        def total(floats: dict[str, Any]) -> jax.Array:
            return jnp.sum(self.loss(**(rest | floats)))

        return jax.grad(total)({key: jnp.asarray(rest[key]) for key in self.floats()})

    def check_order(self, value: np.ndarray) -> None:
        """Examples in another order have the same values in that order."""
        order = np.random.default_rng(1).permutation(self.count)
        moved = {key: x[order] if np.ndim(x) else x for key, x in self.given.items()}
        wanted = value if self.shrinks else value[order]
        name = "the order of examples does not matter"
        self.report.require_equal(name, self(**moved), wanted)

    def check_extremes(self) -> None:
        """Scores of ten thousand, equal ones and zeros have finite values and gradients."""
        for scale in (1e4, -1e4, 0.0):
            extreme = {key: np.float32(scale) * np.sign(x) for key, x in self.floats().items()}
            name = f"finite at scores of {scale:g}"
            self.report.require_finite(name, [self(**extreme), *self.gradient(extreme).values()])

    def check_mask(self, mask: str) -> None:
        """What is masked changes nothing, and nothing left gives 0 and no gradient."""
        shape, value = self._shape_of(mask), self()
        everything = self(**{mask: np.ones(shape, bool)})
        self.report.require_equal(f"{mask} of ones is none at all", everything, value)
        where = np.ones(shape, bool)
        where[-1] = False
        changed = {key: self._with_other(x) for key, x in self.floats().items()}
        if mask == "where_negatives":
            changed = {key: x for key, x in changed.items() if key == "negatives"}
        before, after = self(**{mask: where}), self(**{mask: where}, **changed)
        name = f"what {mask} leaves out changes nothing"
        wanted, found = (x if self.shrinks else x[:-1] for x in (before, after))
        self.report.require_equal(name, found, wanted)
        if mask == "where_negatives":
            self.report.require_equal(name, after, before)
            return
        nothing = {mask: np.zeros(shape, bool)}
        if len(shape) == 1 and not self.shrinks and self._keeps_own(nothing):
            return
        self.report.require("all masked gives 0", self(**nothing) == 0)
        gradients = self.gradient(nothing).values()
        self.report.require_finite("all masked has finite gradients", gradients)
        self.report.require("all masked has no gradient", not any(map(np.any, gradients)))

    def _keeps_own(self, nothing: dict[str, Any]) -> bool:
        """Whether the mask says which examples are choices of others, and not which count."""
        return "ids" in self.given

    def _shape_of(self, mask: str) -> tuple[int, ...]:
        if mask == "where_negatives":
            return np.shape(self.given["negatives"])
        value = np.shape(self())
        names = [key for key in ("students", "values") if key in self.given]
        shapes = [np.shape(self.given[key]) for key in names] or [value]
        try:
            self(**{mask: np.ones(shapes[0], bool)})
        except (TypeError, ValueError):
            return value
        return shapes[0]

    def _with_other(self, x: np.ndarray) -> np.ndarray:
        changed = np.array(x)
        changed[-1] = changed[-1] * -3 + 1
        return changed
