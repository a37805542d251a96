"""Configs of models around the config of another model."""

import dataclasses
from typing import Any, Self

from jaxrec.data.dataset import Manifest
from jaxrec.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapper:
    """What all configs around another model's config share.

    Attributes:
      model: the config inside.
    """

    model: Any

    @property
    def init_std(self) -> float:
        """The standard deviation of initial values of the model inside."""
        return float(self.model.init_std)

    def _check_has_module(self) -> None:
        """Refuses a config inside that changes parameters and has no module to put something on."""
        if not hasattr(self.model, "build"):
            inner, outer = type(self.model).__name__, type(self).__name__
            raise UserError(
                f"{inner} has no module for {outer} to change. Put it around: "
                f"{inner}(model={outer}(...))."
            )

    def _check_alone(self, instead: str) -> None:
        """Refuses another wrapper of this kind inside; says what to do instead."""
        inner, kind = self.model, type(self)
        while isinstance(inner, Wrapper):
            if isinstance(inner, kind):
                raise UserError(f"{kind.__name__} of a {kind.__name__}: {instead}")
            inner = inner.model

    @property
    def max_len(self) -> int | None:
        """The longest history that the model inside is shown; None when it does not say."""
        return getattr(self.model, "max_len", None)

    def fit(self, manifest: Manifest) -> Self:
        """Returns the config with the dataset's counts; UserError when it was set to others."""
        return dataclasses.replace(self, model=self.model.fit(manifest))
