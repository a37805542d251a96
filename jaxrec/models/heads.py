"""Heads on a trunk: the same user vectors, put to other uses than the next item."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.models.wrapper import Wrapper
from jaxrec.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One linear head.

    Attributes:
      name: of its parameters, heads/NAME, and of the task that trains it.
      outputs: numbers that it gives: 1 for a rating or the logit of a click, else one a class.
      sees_item: whether it is about a user and an item, as ratings and clicks are, or about the
        user alone, as the category of whatever comes next is.
    """

    name: str
    outputs: int = 1
    sees_item: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.outputs < 1:
            raise ValueError(
                f"a head wants a name that is a word and at least 1 output; got {self.name!r} and "
                f"{self.outputs}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithHeads(Wrapper):
    """The model of another config with heads. Its other parameters keep their paths.

    So a checkpoint of the trunk alone starts this model, with fresh heads, and the other way round.

    Attributes:
      model: the trunk's config, such as that of SASRec. For adapters or integers, put their config
        around this one.
      heads: at least one, of different names.
    """

    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        if not names or len(set(names)) < len(names):
            raise UserError(f"heads want at least one, of different names; got {names}.")
        self._check_has_module()
        self._check_alone("name all heads in one.")

    def build(self, rngs: nnx.Rngs) -> Any:
        """Returns the trunk's module with `heads` beside its own parts."""
        module = self.model.build(rngs)
        width = jax.eval_shape(lambda: module.item_vectors(jnp.zeros(1, jnp.int32))).shape[-1]
        module.heads = nnx.Dict(
            {
                head.name: nnx.Linear(width * (3 if head.sees_item else 1), head.outputs, rngs=rngs)
                for head in self.heads
            }
        )
        return module
