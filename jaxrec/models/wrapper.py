"""Configs of models around the config of another model."""

import dataclasses
from typing import Any, Self

from jaxrec.data.dataset import Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapper:
    """What all configs around another model's config share.

    Attributes:
      model: the config inside.
    """

    model: Any

    @property
    def max_len(self) -> int | None:
        """The longest history that the model inside is shown; None when it does not say."""
        return getattr(self.model, "max_len", None)

    def fit(self, manifest: Manifest) -> Self:
        """Returns the config with the dataset's counts; UserError when it was set to others."""
        return dataclasses.replace(self, model=self.model.fit(manifest))
