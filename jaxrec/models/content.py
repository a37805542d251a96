"""Item vectors that follow from what is known of an item, for any model."""

import dataclasses
from typing import Any

from flax import nnx

from jaxrec.data.content import read_content
from jaxrec.data.dataset import Manifest
from jaxrec.layers import ContentEmbedding
from jaxrec.models.wrapper import Wrapper
from jaxrec.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithContent(Wrapper):
    """The model of another config, whose item vectors are a table's row plus a map of content.

    So items with few events borrow from those like them, and without `id_vectors` all parameters
    that are trained have a meaning in another catalogue with the same kind of content: whatever
    lies below NAME/projection and the trunk goes with the model, and NAME/table stays behind.

    Every table that is indexed by items has content and a projection of its own. Content is in the
    parameters, and so in checkpoints, and training leaves it as it is.

    Attributes:
      model: the config of a model with `Embedding` tables, such as that of SASRec.
      content: directory that `jaxrec.data.write_content` made, or scripts/content.py.
      id_vectors: whether items have vectors of their own as well.
    """

    content: str
    id_vectors: bool = True

    def __post_init__(self) -> None:
        self._check_has_module()
        self._check_alone("write all content into one directory.")

    def fit(self, manifest: Manifest) -> "WithContent":
        """Returns the config with the dataset's counts; UserError for content of other items."""
        _, told = read_content(self.content)
        if told["items"] != manifest.item_fingerprint:
            raise UserError(
                f"the content in {self.content} is of other items ({told['items'][:12]}) than the "
                f"dataset has ({manifest.item_fingerprint[:12]}). Write it for this dataset: "
                "scripts/content.py."
            )
        return super().fit(manifest)

    def build(self, rngs: nnx.Rngs) -> Any:
        """Returns the trunk's module with its item tables replaced."""
        module = self.model.build(rngs)
        content, _ = read_content(self.content)
        given = []
        for name, fields in module.tables.items():
            if not {"history", "positives", "negatives"} & set(fields):
                continue
            known = ContentEmbedding(
                getattr(module, name),
                content,
                id_vectors=self.id_vectors,
                std=self.model.init_std,
                rngs=rngs,
            )
            setattr(module, name, known)
            given.append(f"{name}/{known.given}")
        module.given = tuple(given)
        return module
