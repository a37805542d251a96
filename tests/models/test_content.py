"""Models whose item vectors follow from content: values, what is trained, every kind of step."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, PairData, SequenceData, write_content
from jaxrec.data.content import read_content
from jaxrec.functional import functional
from jaxrec.models import WithContent, matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten
from jaxrec.sharding import Layout, MeshConfig, replicate, shard_batch
from jaxrec.training import (
    Experiment,
    ExperimentConfig,
    TrainingConfig,
    TrainState,
    init_state,
    load_trained,
    make_step,
    train,
)
from jaxrec.typing import Batch, UserError

SASREC = sasrec.Config(
    max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=8, dropout=0.0, attention_dropout=0.0
)
FACTORS = matrix_factorization.Config(dim=3)
SEQUENCES = SequenceData(max_len=6)


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    dataset = random_dataset(0, num_users=80, num_items=602, mean_length=12)
    kinds = [f"{i % 7}|{i % 11}" for i in range(602)]
    return dataclasses.replace(
        dataset, item_vocabulary=dataset.item_vocabulary.assign(attributes=kinds)
    )


@pytest.fixture(scope="module")
def content(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("content")
    write_content(dataset, output, ["attributes"], hashed_width=32)
    return str(output)


def config_of(content: str, model: Any, objective: Any, **options: Any) -> ExperimentConfig:
    data = PairData() if isinstance(model, matrix_factorization.Config) else SEQUENCES
    return ExperimentConfig(
        data=data,
        model=WithContent(model=model, content=content, **options),
        objective=objective,
        optimizer=OptimizerConfig(name="adagrad", learning_rate=0.1),
        training=TrainingConfig(steps=4, batch_size=16, evaluate_every=4),
    )


def run(
    dataset: Dataset, config: ExperimentConfig, mesh: MeshConfig | None = None
) -> tuple[Experiment, TrainState]:
    """Trains three steps, on a mesh with tables split by row; the state is without filling rows."""
    experiment = Experiment.of(config, dataset)
    model, optimizer = experiment.model, experiment.optimizer(100)
    devices, names = (mesh or MeshConfig()).build(), experiment.tables
    layout = Layout(
        axes=("data", "model"), table_axis="model", placements=dict.fromkeys(names, "row")
    )
    where: dict[str, Any] = {"mesh": devices, "layout": layout} if mesh else {}
    where["trained"] = experiment.trained
    state = init_state(model, optimizer, 0, **where)
    step = make_step(model, config.objective, optimizer, seed=0, **where)
    statistics = replicate(config.objective.statistics(dataset), devices)
    batches = config.data.batches(dataset, 16, 0)
    for number in range(3):
        state, _ = step(state, shard_batch(batches.batch(number), devices), statistics)
    shapes = model.shapes
    params = jax.tree.map(lambda x, s: np.asarray(x)[: s.shape[0]], state.params, shapes)
    return experiment, dataclasses.replace(jax.device_get(state), params=params)


@pytest.mark.parametrize("id_vectors", [True, False])
def test_vectors_are_a_row_and_the_map_of_content(
    id_vectors: bool, dataset: Dataset, content: str
) -> None:
    config = WithContent(model=SASREC, content=content, id_vectors=id_vectors)
    model = functional(config.fit(dataset.manifest).build)
    params = model.init(jax.random.key(0))
    known, _ = read_content(content)
    items = params["items"]
    wanted = np.asarray(known) @ np.asarray(items["projection"])
    if id_vectors:
        wanted = wanted + items["table"]
        np.testing.assert_array_equal(items["table_content"], known)
        plain = functional(SASREC.fit(dataset.manifest).build).init(jax.random.key(0))
        chex.assert_trees_all_equal(items["table"], plain["items"]["table"])
    else:
        np.testing.assert_array_equal(items["table"], known)
        assert (wanted[0] == 0).all()
    np.testing.assert_allclose(
        model.apply(params, method="item_vectors"), wanted, rtol=1e-5, atol=1e-6
    )
    ids = np.array([[3, 0], [602, 7]])
    np.testing.assert_allclose(
        model.apply(params, ids, method="item_vectors"), wanted[ids], rtol=1e-5, atol=1e-6
    )
    spread = np.std(np.asarray(items["projection"]))
    np.testing.assert_allclose(spread, SASREC.init_std, rtol=0.2)


def test_every_item_table_has_content_and_no_other(dataset: Dataset, content: str) -> None:
    untied = WithContent(model=dataclasses.replace(SASREC, tied=False), content=content)
    model = functional(untied.fit(dataset.manifest).build)
    assert model.frozen == {"items/table_content", "outputs/table_content"}
    model = functional(WithContent(model=FACTORS, content=content).fit(dataset.manifest).build)
    assert model.frozen == {"items/table_content"}
    params = model.init(jax.random.key(0))
    assert set(params["users"]) == {"table"}
    # The bias of an item, the last column, follows from content as well.
    assert params["items"]["projection"].shape == (32, 4)


OBJECTIVES: dict[str, Any] = {"sampled": SampledSoftmax(num_negatives=4), "full": FullSoftmax()}


@pytest.mark.grid
@pytest.mark.parametrize(
    ("model", "name", "id_vectors"),
    [
        (SASREC, "sampled", True),
        (FACTORS, "sampled", False),  # the step knows tables alone, and these compile sooner
        (FACTORS, "full", True),
        (FACTORS, "full", False),
        pytest.param(SASREC, "full", False, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_what_one_device_gives_and_content_stays(
    model: Any, name: str, id_vectors: bool, dataset: Dataset, content: str
) -> None:
    config = config_of(content, model, OBJECTIVES[name], id_vectors=id_vectors)
    experiment, alone = run(dataset, config)
    known, _ = read_content(content)
    (path,) = experiment.model.frozen
    np.testing.assert_array_equal(flatten(alone.params)[path], known)
    slots = jax.tree.leaves(alone.optimizer)
    assert all(slot.shape != known.shape for slot in slots)
    _, together = run(dataset, config, MeshConfig(data=2, model=4, tables="row"))
    chex.assert_trees_all_close(together.params, alone.params, rtol=1e-5, atol=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(SampledSoftmax):
    """Sampled softmax whose step is made to take whole tables."""

    @property
    def whole_catalogue(self) -> bool:
        return True


def test_touched_rows_give_what_the_dense_step_gives(dataset: Dataset, content: str) -> None:
    _, touched = run(dataset, config_of(content, FACTORS, SampledSoftmax(num_negatives=4)))
    _, dense = run(dataset, config_of(content, FACTORS, Dense(num_negatives=4)))
    chex.assert_trees_all_close(touched.params, dense.params, rtol=1e-5, atol=1e-6)


@pytest.mark.grid
@pytest.mark.parametrize("id_vectors", [True, False])
def test_a_run_with_tables_on_the_host_is_that_with_tables_on_the_device(
    id_vectors: bool, dataset: Dataset, content: str, tmp_path: Path
) -> None:
    config = config_of(content, FACTORS, BPR(num_negatives=2), id_vectors=id_vectors)
    host = dataclasses.replace(config, mesh=MeshConfig(tables="host", replicate_below=0))
    results, params = [], []
    for name, one in (("device", config), ("host", host)):
        results.append(train(one, dataset, tmp_path / name, quiet=True))
        experiment, found, _ = load_trained(tmp_path / name, dataset)
        params.append(jax.device_get(found))
        again = experiment.evaluate(found, "valid", intervals=False)
        assert again.metrics == results[-1]["valid"]
    chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-6)
    assert results[0]["valid"] == pytest.approx(results[1]["valid"], rel=1e-5)


def test_without_id_vectors_items_of_one_content_have_one_score(
    dataset: Dataset, content: str
) -> None:
    config = WithContent(model=SASREC, content=content, id_vectors=False)
    model = functional(config.fit(dataset.manifest).build)
    params = model.init(jax.random.key(0))
    vectors = model.apply(params, np.array([1, 78, 155, 2]), method="item_vectors")
    np.testing.assert_array_equal(vectors[0], vectors[1])  # items 77 apart have the same kinds
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert (vectors[0] != vectors[3]).any()
    users = [
        model.apply(params, Batch(history=np.array([[1, item]])), method="user_vectors")
        for item in (1, 78)
    ]
    np.testing.assert_array_equal(*users)


def test_content_of_other_items_is_refused(dataset: Dataset, content: str) -> None:
    manifest = dataclasses.replace(dataset.manifest, item_fingerprint="another")
    with pytest.raises(UserError, match="is of other items"):
        WithContent(model=SASREC, content=content).fit(manifest)
