"""Low-rank adapters: what they compute, what they cost, where they may go."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import Dataset, SequenceData
from jaxrec.finetuning import (
    LoRA,
    load_adapter,
    merge,
    save_adapter,
    split_adapter,
    user_vectors_each,
)
from jaxrec.functional import functional_of
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BCE, BPR, FullSoftmax
from jaxrec.ops.keys import Stream, root, stream
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten, nest, unite
from jaxrec.training import (
    ExperimentConfig,
    TrainingConfig,
    init_state,
    load_trained,
    make_step,
    train,
)
from jaxrec.typing import Batch, Params, UserError

TRUNK = sasrec.Config(num_items=40, max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=12)
LORA = LoRA(model=TRUNK, rank=2, alpha=3.0)
BATCH = Batch(history=np.arange(1, 25, dtype=np.int32).reshape(4, 6))
KERNEL = "blocks/0/feed_forward/up/kernel"


def drawn(params: Params, seed: int = 0) -> Params:
    """The parameters with values in place of the zeros that adapters begin with."""
    flat, rng = flatten(params), np.random.default_rng(seed)
    new = {k: rng.normal(size=v.shape) * 0.3 for k, v in flat.items() if "lora" in k}
    return unite(params, nest({k: jnp.asarray(v, jnp.float32) for k, v in new.items()}))


@pytest.fixture(scope="module")
def params() -> Params:
    return functional_of(LORA).init(jax.random.key(0))


def vectors(config: Any, params: Params, batch: Batch = BATCH) -> np.ndarray:
    return np.asarray(functional_of(config).apply(params, batch, method="user_vectors"))


@pytest.mark.parametrize("on", [("*/kernel",), ("items/table",), ("blocks", "items")])
def test_an_adapted_model_begins_as_its_trunk(on: tuple[str, ...]) -> None:
    config = dataclasses.replace(LORA, on=on)
    trunk = functional_of(TRUNK).init(jax.random.key(0))
    params = functional_of(config).init(jax.random.key(0))
    np.testing.assert_array_equal(vectors(config, params), vectors(TRUNK, trunk))
    for path, value in flatten(trunk).items():
        np.testing.assert_array_equal(flatten(params)[path], value)


def test_matrices_act_as_the_sum_of_trunk_and_product(params: Params) -> None:
    flat = flatten(drawn(params))
    a, b = np.asarray(flat[f"{KERNEL}_lora"]), np.asarray(flat[f"{KERNEL}_lora_out"])
    assert a.shape == (8, 2)
    assert b.shape == (2, 12)
    _, merged = merge(LORA, drawn(params))
    expected = np.asarray(flat[KERNEL]) + 1.5 * a @ b
    np.testing.assert_allclose(flatten(merged)[KERNEL], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("on", [("*/kernel",), ("items/table",)])
def test_merging_gives_the_same_scores_to_the_bit(on: tuple[str, ...]) -> None:
    config = dataclasses.replace(LORA, on=on)
    params = drawn(functional_of(config).init(jax.random.key(0)))
    trunk, merged = merge(config, params)
    assert trunk == TRUNK
    assert flatten(merged).keys() == flatten(functional_of(TRUNK).init(jax.random.key(0))).keys()
    np.testing.assert_array_equal(vectors(TRUNK, merged), vectors(config, params))
    compiled = jax.jit(lambda p: functional_of(config).apply(p, BATCH, method="user_vectors"))
    np.testing.assert_allclose(compiled(params), vectors(TRUNK, merged), atol=1e-5)


def test_a_lookup_makes_the_rows_asked_for_alone() -> None:
    trunk = dataclasses.replace(TRUNK, num_items=5_000)
    model = functional_of(LoRA(model=trunk, rank=2, on=("items/table",)))
    params = model.init(jax.random.key(0))
    lowered = jax.jit(lambda p: model.apply(p, BATCH, method="user_vectors")).lower(params)
    memory: Any = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 5_000 * 8 * 4 / 2


def test_dropout_leaves_out_inputs_of_adapters_and_only_in_training(params: Params) -> None:
    config = dataclasses.replace(LORA, dropout=0.5)
    params = drawn(params)
    model = functional_of(config)

    def kernel(key: jax.Array | None) -> np.ndarray:
        return np.asarray(model.bind(params, key).blocks[0].feed_forward.up.kernel[...])

    flat = flatten(params)
    product = 1.5 * np.asarray(flat[f"{KERNEL}_lora"]) @ np.asarray(flat[f"{KERNEL}_lora_out"])
    np.testing.assert_allclose(kernel(None) - flat[KERNEL], product, atol=1e-6)
    changes = [kernel(jax.random.key(i)) - np.asarray(flat[KERNEL]) for i in range(400)]
    for change in changes[:20]:
        kept = np.abs(change).sum(axis=1) > 1e-6
        np.testing.assert_allclose(change, 2 * product * kept[:, None], atol=1e-5)
    rate = np.mean([np.abs(change).sum(axis=1) > 1e-6 for change in changes])
    assert abs(rate - 0.5) < 0.04  # 3,200 draws
    np.testing.assert_allclose(np.mean(changes, axis=0), product, atol=0.25)


def stepped(
    config: Any, objective: Any, optimizer: OptimizerConfig, dataset: Dataset, steps: int = 3
) -> tuple[Any, Any, Any]:
    """The states before and after some steps, and the compiled step."""
    model, transform = functional_of(config), optimizer.build(10)
    shapes = model.shapes
    trained = flatten(shapes).keys() - model.frozen
    state = init_state(model, transform, 0, trained=trained)
    before = jax.device_get(state)
    step: Any = make_step(model, objective, transform, seed=0, trained=trained)
    batches = SequenceData(max_len=6).batches(dataset, 16, 0)
    statistics = objective.statistics(dataset)
    compiled = step.lower(state, batches.batch(0), statistics).compile()
    for number in range(steps):
        state, _ = step(state, batches.batch(number), statistics)
    return before, jax.device_get(state), compiled


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return random_dataset(0, num_users=100, num_items=40, mean_length=12)


ADAM = OptimizerConfig(learning_rate=0.01)


@pytest.mark.grid(quick=2)
@pytest.mark.parametrize("objective", [FullSoftmax(), BCE(num_negatives=2)], ids=["full", "bce"])
@pytest.mark.parametrize("on", [("*/kernel",), ("items/table",)], ids=["kernels", "table"])
def test_training_moves_adapters_alone(
    objective: Any, on: tuple[str, ...], dataset: Dataset
) -> None:
    config = dataclasses.replace(LORA, on=on, also=("*/bias",))
    before, after, _ = stepped(config, objective, ADAM, dataset)
    for path, value in flatten(after.params).items():
        moved = not np.array_equal(value, flatten(before.params)[path])
        # The key's bias changes nothing, but it lies in one array with those that do.
        assert moved == ("lora" in path or path.endswith("/bias")), path
    slots = {
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(after.optimizer)
    }
    assert any("lora" in slot for slot in slots)
    assert not [slot for slot in slots if slot.endswith(("['kernel']", "['table']"))]


def test_the_rows_of_a_tables_adapter_move_when_they_are_touched(
    random_dataset: Callable[..., Dataset],
) -> None:
    # 600 items and some 200 ids a batch: the step of touched rows.
    dataset = random_dataset(0, num_users=100, num_items=600, mean_length=12)
    trunk = dataclasses.replace(TRUNK, num_items=600, dropout=0.0, attention_dropout=0.0)
    config = LoRA(model=trunk, rank=2, on=("items/table",))
    sgd = OptimizerConfig(name="sgd", learning_rate=0.5)
    objective = BCE(num_negatives=1)
    before, after, _ = stepped(config, objective, sgd, dataset, steps=1)
    batch = SequenceData(max_len=6).batches(dataset, 16, 0).batch(0)
    moved = np.flatnonzero(np.any(after.params["items"]["table_lora"] != 0, axis=1))
    named = set(np.unique(batch.history)) | set(np.unique(batch.positives))
    assert set(np.unique(batch.positives)) - {0} <= set(moved)
    assert len(moved) < 250
    assert len(set(moved) - named) > 20  # negatives
    # As the dense step would have it.
    dense = type("Dense", (BCE,), {"whole_catalogue": True})(num_negatives=1)
    _, whole, _ = stepped(config, dense, sgd, dataset, steps=1)
    for path, value in flatten(whole.params).items():
        np.testing.assert_allclose(flatten(after.params)[path], value, atol=1e-6)


def test_a_frozen_trunk_takes_no_memory_for_gradients_and_slots(
    random_dataset: Callable[..., Dataset],
) -> None:
    dataset = random_dataset(0, num_users=60, num_items=20_000, mean_length=12)
    trunk = dataclasses.replace(TRUNK, num_items=20_000)
    table = 20_001 * 8 * 4
    lora = LoRA(model=trunk, rank=2)
    used = {}
    for name, config in (("all", trunk), ("lora", lora)):
        _, _, compiled = stepped(config, FullSoftmax(), ADAM, dataset, steps=0)
        used[name] = compiled.memory_analysis()
    # A table, and two moments of it; the step gives back what it was given.
    assert used["all"].argument_size_in_bytes > 3 * table
    assert used["lora"].argument_size_in_bytes < 1.2 * table
    saved = used["all"].temp_size_in_bytes - used["lora"].temp_size_in_bytes
    assert saved > 0.9 * table  # the gradient


def test_an_adapter_is_saved_alone_and_belongs_to_its_trunk(tmp_path: Path) -> None:
    model = functional_of(LORA)
    params = drawn(model.init(jax.random.key(0)))
    trunk, trained = split_adapter(LORA, params)
    path = tmp_path / "a.npz"
    save_adapter(path, LORA, params)
    assert path.stat().st_size < 8_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    config, loaded = load_adapter(path, TRUNK, trunk)
    assert config == LORA
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

    rounded = nest({k: v.astype(jnp.bfloat16) for k, v in flatten(params).items()})
    save_adapter(tmp_path / "b.npz", LORA, rounded)
    _, again = load_adapter(tmp_path / "b.npz", TRUNK, split_adapter(LORA, rounded)[0])
    jax.tree.map(np.testing.assert_array_equal, again, rounded)

    other = functional_of(TRUNK).init(jax.random.key(1))
    with pytest.raises(UserError, match="another trunk"):
        load_adapter(path, TRUNK, other)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(path, TRUNK, trunk)
    with pytest.raises(UserError, match="does not exist"):
        load_adapter(tmp_path / "c.npz", TRUNK, trunk)
    assert trained


def test_each_row_of_a_batch_may_have_an_adapter_of_its_own(params: Params) -> None:
    trunk, _ = split_adapter(LORA, params)
    adapters = [split_adapter(LORA, drawn(params, seed))[1] for seed in range(3)]
    which = np.array([2, 0, 0, 1])
    found = jax.jit(lambda batch: user_vectors_each(LORA, trunk, adapters, which, batch))(BATCH)
    for row, number in enumerate(which):
        alone = Batch(history=BATCH.history[row : row + 1])
        expected = vectors(LORA, unite(trunk, adapters[number]), alone)[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    config = dataclasses.replace(LORA, on=("items/table",))
    table = split_adapter(config, functional_of(config).init(jax.random.key(0)))[1]
    with pytest.raises(UserError, match="cannot be chosen row by row"):
        user_vectors_each(config, trunk, [table], which, BATCH)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 9}, r"rank=9 is above .* 8 x .* at most 8"),
        ({"on": ("blocks/0/feed_forward/op",)}, "mean 'blocks/0/feed_forward/up'"),
        ({"on": ("*/bias",)}, "matches no matrix"),
        ({"on": ()}, r"lora\.on is empty"),
        ({"also": ("norm",)}, r"lora\.also: 'norm' matches no parameter"),
        ({"model": LORA, "on": ("items/table",)}, "has adapters already"),
    ],
)
def test_options_that_do_not_fit_the_trunk(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(LORA, **changes).functional()


def test_values_out_of_range() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        LoRA(model=TRUNK, rank=0)
    with pytest.raises(ValueError, match="dropout must be in"):
        LoRA(model=TRUNK, dropout=1.0)


def test_an_adapted_model_goes_through_the_loop(dataset: Dataset, tmp_path: Path) -> None:
    trunk = dataclasses.replace(TRUNK, num_items=0)
    config = ExperimentConfig(
        data=SequenceData(max_len=6),
        model=LoRA(model=trunk, rank=2, dropout=0.1),
        objective=FullSoftmax(),
        training=TrainingConfig(steps=4, batch_size=16, average=0.9),
    )
    result = train(config, dataset, tmp_path, quiet=True)
    experiment, params, _ = load_trained(tmp_path, dataset)
    assert experiment.config.model.model.num_items == 40
    assert experiment.evaluate(params, "test").metrics["ndcg@10"] == result["test"]["ndcg@10"]
    fresh = functional_of(experiment.config.model).init(stream(root(0), Stream.INITIAL))
    first, last = flatten(fresh), flatten(params)
    assert not np.array_equal(first[f"{KERNEL}_lora_out"], last[f"{KERNEL}_lora_out"])
    np.testing.assert_array_equal(first[KERNEL], last[KERNEL])


def test_matrix_factorisation_is_adapted_by_its_tables() -> None:
    factors = matrix_factorization.Config(num_users=9, num_items=7, dim=4)
    model = functional_of(LoRA(model=factors, rank=2, on=("*/table",)))
    params = drawn(model.init(jax.random.key(0)))
    batch = Batch(
        users=np.array([1, 5]), positives=np.array([2, 3]), negatives=np.array([[4], [6]])
    )
    total, _ = BPR().loss(model.bind(params), batch, None)
    merged = merge(LoRA(model=factors, rank=2, on=("*/table",)), params)[1]
    expected, _ = BPR().loss(functional_of(factors).bind(merged), batch, None)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
