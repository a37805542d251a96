"""Tables in the host's memory: the numbers of tables on the device."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxrec.data import Dataset, SequenceData
from jaxrec.functional import functional
from jaxrec.models import sasrec
from jaxrec.objectives import BCE
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import TrainState, init_state, load_trained, make_step, train
from jaxrec.training.host import HostStep, host_tables, to_host
from jaxrec.typing import UserError

CONFIG = sasrec.Config(
    num_items=600, max_len=6, dim=8, num_blocks=1, num_heads=2, hidden=8, tied=False
)
ADAGRAD = OptimizerConfig(name="adagrad", learning_rate=0.05)
HOST = MeshConfig(tables="host", replicate_below=0)
OPTIMIZERS = {
    "adagrad": ADAGRAD,
    "momentum": OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9, clip_norm=0.1),
    "pulled": OptimizerConfig(name="sgd", learning_rate=0.5, l2_to_start=0.7),
}
BOTH, ONE = ("items", "outputs"), ("outputs",)


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("adagrad", BOTH),
        ("momentum", BOTH),
        ("pulled", BOTH),
        ("momentum", ONE),
        pytest.param("adagrad", ONE, marks=pytest.mark.slow),
        pytest.param("pulled", ONE, marks=pytest.mark.slow),
    ],
)
def test_steps_give_what_tables_on_the_device_give(
    random_dataset: Callable[..., Dataset], name: str, tables: tuple[str, ...]
) -> None:
    dataset = random_dataset(0, num_users=200, num_items=600, mean_length=12)
    model, objective = functional(CONFIG.build), BCE(num_negatives=2)
    transform = OPTIMIZERS[name].build(100)
    batches = SequenceData(max_len=6).batches(dataset, 8, 0)
    statistics = objective.statistics(dataset)
    options: dict[str, Any] = {"seed": 1, "accumulate": 2}

    device = make_step(model, objective, transform, **options)
    state: TrainState = init_state(model, transform, 0)
    host = HostStep(model, objective, transform, tables=tables, **options)
    kept = to_host(init_state(model, transform, 0), tables)
    assert host_tables(kept.params) == tables
    for step in range(9):
        # The same batch twice in a row touches the rows that are still on their way back.
        batch = batches.batch(step // 2)
        state, metrics = device(state, batch, statistics)
        kept, told = host(kept, batch, statistics)
        np.testing.assert_allclose(told.loss, metrics.loss, rtol=1e-6)
        if step == 4:
            kept = host.settle(kept)
            chex.assert_trees_all_close(kept, jax.device_get(state), rtol=1e-4, atol=2e-5)
    kept = host.settle(kept)
    chex.assert_trees_all_close(kept, jax.device_get(state), rtol=1e-4, atol=2e-5)
    assert isinstance(kept.params[tables[0]]["table"], np.ndarray)


def test_more_rows_than_the_capacity_are_an_error(random_dataset: Callable[..., Dataset]) -> None:
    dataset = random_dataset(0, num_users=200, num_items=600, mean_length=12)
    model, objective = functional(CONFIG.build), BCE()
    optimizer = OptimizerConfig().build(100)
    step = HostStep(model, objective, optimizer, tables=("items",), seed=0, capacity=3)
    state = to_host(init_state(model, optimizer, 0), ("items",))
    batch = SequenceData(max_len=6).batches(dataset, 8, 0).batch(0)
    with pytest.raises(UserError, match=r"rows of table 'items', which is \d+ more than"):
        step(state, batch, objective.statistics(dataset))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bpr", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sampled", "ratings"))]
)
def test_a_run_gives_what_tables_on_the_device_give(
    name: str, config_of: Callable[..., Any], dataset: Dataset, tmp_path: Path
) -> None:
    results, parameters = [], []
    for mesh in (MeshConfig(), HOST):
        workdir = tmp_path / mesh.tables
        # In two halves, so that tables are saved and read again.
        short = config_of(name, mesh=mesh, steps=7, optimizer=ADAGRAD)
        train(short, dataset, workdir, quiet=True)
        result = train(config_of(name, mesh=mesh, optimizer=ADAGRAD), dataset, workdir, quiet=True)
        results.append({split: result[split] for split in ("valid", "test")})
        parameters.append(load_trained(workdir, dataset)[1])
    chex.assert_trees_all_close(results[0], results[1], rtol=1e-5)
    chex.assert_trees_all_close(parameters[0], parameters[1], rtol=1e-3, atol=1e-5)


def test_what_cannot_be_on_the_host_is_refused(
    config_of: Callable[..., Any], dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the loss reads all of table 'items'"):
        train(config_of("full", mesh=HOST), dataset, tmp_path, quiet=True)
    several = dataclasses.replace(HOST, data=2)
    with pytest.raises(UserError, match="is for one device"):
        train(config_of("bpr", mesh=several), dataset, tmp_path, quiet=True)
