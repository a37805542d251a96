"""Every model of the package has the properties; one that lacks any is refused by its name."""

import dataclasses
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec import models
from jaxrec.data import write_content
from jaxrec.functional import functional
from jaxrec.layers import Embedding
from jaxrec.models import Head, WithContent, WithHeads
from jaxrec.models.wrapper import Wrapper
from jaxrec.testing import check_model, tiny_dataset
from jaxrec.training.segments import check_segments
from jaxrec.typing import Batch, UserError

SMALL: dict[str, Any] = {"dim": 4, "num_blocks": 1, "num_heads": 1, "hidden": 4}


def plain_configs() -> dict[str, Any]:
    """A small config of every module of `jaxrec.models` that has one."""
    found = {}
    for name in models.__all__:
        module = getattr(models, name)
        if isinstance(module, types.ModuleType):
            names = {field.name for field in dataclasses.fields(module.Config)}
            sizes = {key: value for key, value in SMALL.items() if key in names}
            found[name] = module.Config(**sizes)
    return found


PLAIN = plain_configs()
SASREC = PLAIN["sasrec"]
WRAPPERS = [
    name
    for name in models.__all__
    if inspect.isclass(kind := getattr(models, name)) and issubclass(kind, Wrapper)
]
KINDS: list[dict[str, Any]] = [
    {"block": "ligr", "positions": "rotary", "tied": False, "temperature": 0.1, "head_dim": 4},
    {"block": "post_norm", "positions": "none", "activation": "relu"},
    {"compute_dtype": "bfloat16"},
]


@pytest.fixture(autouse=True)
def _quick() -> Any:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Any]:
    """Puts one of the wrappers around a config."""
    content = tmp_path_factory.mktemp("content")
    write_content(tiny_dataset(), content, ["genres"], hashed_width=8)
    options: dict[str, dict[str, Any]] = {
        "WithContent": {"content": str(content)},
        "WithHeads": {"heads": (Head(name="rating"),)},
    }
    kinds = {"WithContent": WithContent, "WithHeads": WithHeads}
    return lambda name, config: kinds[name](model=config, **options[name])


@pytest.mark.parametrize("name", PLAIN)
def test_every_model_has_the_properties(name: str) -> None:
    checked = check_model(PLAIN[name])
    assert "StableHLO and ONNX agree" in checked.held
    assert checked.skipped == []


@pytest.mark.grid
@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: next(iter(changes.values())))
def test_every_kind_of_block_has_the_properties(changes: dict[str, Any]) -> None:
    with jax.numpy_dtype_promotion("standard"):
        checked = check_model(dataclasses.replace(SASREC, **changes), formats=False)
    assert "segments of a row do not see each other" in checked.held


@pytest.mark.parametrize("inside", PLAIN)
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_keeps_the_properties(name: str, inside: str, wrapped: Any) -> None:
    checked = check_model(wrapped(name, PLAIN[inside]), formats=False)
    assert "vectors are finite" in checked.held


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken:
    """A recurrent model with one thing wrong, or none."""

    fault: str = ""
    num_items: int = 0

    def fit(self, manifest: Any) -> "Broken":
        return dataclasses.replace(self, num_items=manifest.num_items)

    def build(self, rngs: nnx.Rngs) -> "Recurrent":
        return Recurrent(self, rngs=rngs)


class Recurrent(nnx.Module):
    """A weighted sum of what came before; the state begins anew with each segment."""

    def __init__(self, config: Broken, *, rngs: nnx.Rngs):
        self.fault = config.fault
        self.items = Embedding(config.num_items, 4, std=0.3, rngs=rngs)
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        if self.fault == "row 0":
            self.items.table[...] = self.items.table[...] + 1

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        if self.fault == "undeclared":
            return {"items": ("history", "positives")}
        return {"items": ("history", "positives", "negatives")}

    def user_vectors(self, batch: Batch, *, key: Any = None) -> jax.Array:
        history = jnp.asarray(batch.history)
        segments = history > 0 if batch.segments is None else batch.segments
        x = self.inner(self.items(history))
        if self.fault == "padding":
            segments = jnp.ones_like(history) if batch.segments is None else segments
        else:
            x = jnp.where((history > 0)[..., None], x, 0)
        if self.fault == "rows":
            x = x - x.mean(axis=0, keepdims=True)
        if self.fault == "future":
            x = x + jnp.pad(x[:, 1:], [(0, 0), (0, 1), (0, 0)])
        if self.fault == "draws":
            x = x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
        order = jnp.arange(history.shape[1])
        weights = 0.5 ** jnp.maximum(order[:, None] - order[None, :], 0)
        seen = jnp.broadcast_to(order[:, None] >= order[None, :], (len(x), *weights.shape))
        if self.fault != "segments":
            seen &= segments[:, :, None] == segments[:, None, :]
        states = jnp.einsum("bqk,bkd->bqd", jnp.where(seen, weights, 0), x)
        if self.fault == "gradients":
            states = jnp.sqrt(jnp.abs(states))
        every = batch.positives is not None and batch.positives.ndim == history.ndim
        if self.fault == "kinds":
            every = batch.positives is not None
        return states if every else states[:, -1]

    def item_vectors(self, ids: Any = None) -> jax.Array:
        return self.items(ids)


def test_a_recurrent_model_that_looks_at_segments_passes() -> None:
    checked = check_model(Broken(), formats=False)
    assert len(checked.held) > 15


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("segments", "segments of a row do not see each other"),
        ("future", "no look into the future|newest position"),
        ("padding", "padding moves no vector"),
        ("rows", "rows of a batch do not see each other"),
        ("draws", "nothing is drawn without a key"),
        ("gradients", "gradients are finite"),
        ("row 0", "row 0 of tables, of padding, is 0"),
        ("kinds", "a target a row"),
    ],
)
def test_a_model_that_lacks_a_property_is_refused_by_its_name(fault: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_model(Broken(fault=fault), formats=False)


def test_lookups_that_tables_do_not_name_are_refused() -> None:
    with pytest.raises(UserError, match="batch.negatives"):
        check_model(Broken(fault="undeclared"), formats=False)


def test_training_on_packed_rows_refuses_a_model_that_mixes_them_up() -> None:
    good, bad = (Broken(fault=fault, num_items=9) for fault in ("", "segments"))
    check_segments(functional(good.build))
    with pytest.raises(UserError, match="mixes up the sequences of a row"):
        check_segments(functional(bad.build))


def test_a_run_is_refused_before_its_first_step(tmp_path: Path) -> None:
    from jaxrec.data import SequenceData
    from jaxrec.objectives import FullSoftmax
    from jaxrec.training import ExperimentConfig, TrainingConfig, train

    config = ExperimentConfig(
        data=SequenceData(max_len=5),
        model=Broken(fault="segments"),
        objective=FullSoftmax(),
        training=TrainingConfig(steps=2, batch_size=2),
    )
    with pytest.raises(UserError, match="mixes up the sequences"):
        train(config, tiny_dataset(), tmp_path, quiet=True)
    apart = dataclasses.replace(config, data=SequenceData(max_len=5, targets="all"))
    assert train(apart, tiny_dataset(), tmp_path, quiet=True)["steps"] == 2


def test_a_check_that_is_not_made_is_in_the_report() -> None:
    checked = check_model(Broken(), causal=False, formats=False)
    assert checked.skipped == ["no look into the future: said to be not causal"]
    assert np.all([isinstance(name, str) for name in checked.held])
