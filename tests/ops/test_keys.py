"""Named streams: nobody derives keys otherwise, and no two draws of a run share a key."""

import ast
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives

from jaxrec.data import Dataset, SequenceData
from jaxrec.finetuning import LoRA
from jaxrec.functional import functional_of
from jaxrec.models import sasrec
from jaxrec.objectives import BCE, InBatchSoftmax, SampledSoftmax
from jaxrec.ops.keys import RowKey, Stream, nth, root, stream
from jaxrec.optim import OptimizerConfig
from jaxrec.training import init_state, make_step
from jaxrec.typing import Batch

PACKAGE = Path(__file__).parents[2] / "jaxrec"
DERIVING = {"fold_in", "split", "key", "PRNGKey", "wrap_key_data", "clone", "rbg_key"}


def test_every_key_comes_from_a_named_stream() -> None:
    """Calls of jax.random that make keys are in one file, however the module is named."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file == PACKAGE / "ops" / "keys.py":
            continue
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in ("jax.random", "jax"):
                names = {alias.name for alias in node.names}
                if node.module == "jax.random" or "random" in names:
                    found.append(f"{file.name}:{node.lineno} imports from jax.random")
            if isinstance(node, ast.Attribute) and node.attr in DERIVING:
                module = ast.unparse(node.value)
                if module == "jax.random":
                    found.append(f"{file.name}:{node.lineno} {module}.{node.attr}")
    assert not found


def test_streams_have_numbers_of_their_own_that_no_count_reaches() -> None:
    numbers = [use.number for use in Stream]
    assert len(set(numbers)) == len(Stream)
    assert all(2**31 <= number < 2**32 for number in numbers)


def test_every_stream_is_used() -> None:
    code = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    assert not [use.name for use in Stream if f"Stream.{use.name}" not in code]


def test_a_key_of_rows_stays_one() -> None:
    rows = RowKey(root(3), jnp.int32(5))
    assert stream(rows, Stream.DRAW).first == 5
    assert nth(rows, 2).key == nth(root(3), 2)
    assert nth(rows, 2).key != stream(rows, Stream.DRAW).key


@dataclasses.dataclass
class Uses:
    """Keys by what was done with them, as (2,) words."""

    drawn: Counter[tuple[int, ...]] = dataclasses.field(default_factory=Counter)
    parents: set[tuple[int, ...]] = dataclasses.field(default_factory=set)


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Uses:
    """Notes every key that bits are drawn from, and every key that others are derived from."""
    found = Uses()

    def words(keys: Any) -> list[tuple[int, ...]]:
        return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]

    drawing, folding = primitives.random_bits_p.impl, primitives.random_fold_in_p.impl

    def draw(keys: Any, **options: Any) -> Any:
        found.drawn.update(words(keys))
        return drawing(keys, **options)

    def fold(keys: Any, numbers: Any) -> Any:
        found.parents.update(words(keys))
        return folding(keys, numbers)

    def split(keys: Any, **options: Any) -> Any:
        raise AssertionError("a split key has the children of a folded one")

    monkeypatch.setattr(primitives.random_bits_p, "impl", draw)
    monkeypatch.setattr(primitives.random_fold_in_p, "impl", fold)
    monkeypatch.setattr(primitives.random_split_p, "impl", split)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """An objective that draws beside another, as a distillation with a teacher does."""

    objective: Any
    whole_catalogue: bool = False

    def statistics(self, dataset: Dataset) -> Any:
        return self.objective.statistics(dataset)

    def draw(self, batch: Batch, statistics: Any, key: Any) -> Batch:
        from jaxrec.distillation import Distillation
        from jaxrec.sampling import sample_uniform

        distilled = Distillation(objective=self.objective, teacher="unused", augment=0.5)
        batch = distilled._augmented(batch, RowKey.of(key))
        rows = stream(RowKey.of(key), Stream.CANDIDATES)
        drawn = self.objective.draw(batch, statistics, key)
        candidates = sample_uniform(rows, (*batch.positives.shape, 2), jnp.int32(9))
        return drawn.replace(candidates=candidates)

    def loss(self, model: Any, batch: Batch, key: Any, replica: Any) -> Any:
        return self.objective.loss(model, batch, key, replica)


@pytest.mark.grid
@pytest.mark.parametrize(
    "objective",
    [InBatchSoftmax(), Beside(objective=BCE()), Beside(objective=SampledSoftmax(num_negatives=3))],
)
def test_no_key_of_a_run_is_drawn_from_twice_or_has_children(
    objective: Any, uses: Uses, random_dataset: Callable[..., Dataset]
) -> None:
    dataset = random_dataset(0, num_users=9, num_items=12, mean_length=6)
    trunk = sasrec.Config(max_len=4, dim=4, num_blocks=2, num_heads=1, hidden=4, dropout=0.3)
    config = LoRA(model=trunk, rank=2, dropout=0.5, on=("*/kernel",), also=("items",))
    model = functional_of(config.fit(dataset.manifest))
    optimizer = OptimizerConfig(name="sgd").build(9)
    with jax.disable_jit():
        state = init_state(model, optimizer, 0, table_dtype="bfloat16")
        step = make_step(model, objective, optimizer, seed=0, trained=None)
        statistics = jax.device_put(objective.statistics(dataset))
        batches = SequenceData(max_len=4, targets="all").batches(dataset, 2, 0)
        for number in range(2):
            state, _ = step(state, batches.batch(number), statistics)
    assert len(uses.drawn) > 30
    twice = [key for key, count in uses.drawn.items() if count > 1]
    assert not twice
    assert not uses.drawn.keys() & uses.parents
