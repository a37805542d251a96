"""Whole runs on meshes: trained, saved, moved to others and measured, with the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import pytest

from jaxrec.data import Dataset
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training import ExperimentConfig, load_trained, train
from jaxrec.typing import UserError

type ConfigOf = Callable[..., ExperimentConfig]
ADAGRAD = OptimizerConfig(name="adagrad", learning_rate=0.05)


def row(data: int, model: int) -> MeshConfig:
    return MeshConfig(data=data, model=model, tables="row")


def unpadded(tree: Any, like: Any) -> Any:
    """The tree without the rows that make the parts of a table equal."""
    return jax.tree.map(lambda x, y: x[: len(y)], tree, like)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        ("sampled", [row(1, 8), row(1, 2), MeshConfig()]),
        pytest.param("full", [row(2, 4), MeshConfig(data=4)], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_changes_its_mesh_ends_as_one_that_does_not(
    name: str, meshes: list[MeshConfig], config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    ends, measured = [], []
    for workdir, chosen in (("alone", [MeshConfig()]), ("moved", meshes)):
        for steps, mesh in zip((8, 14, 20)[-len(chosen) :], chosen, strict=True):
            config = config_of(name, mesh=mesh, steps=steps, optimizer=ADAGRAD, evaluate_every=20)
            train(config, dataset, tmp_path / workdir, quiet=True)
        experiment, params, _ = load_trained(tmp_path / workdir, dataset, step=20)
        ends.append(jax.device_get(params))
        measured.append(experiment.evaluate(params, "test").metrics)
    chex.assert_trees_all_close(unpadded(ends[1], ends[0]), ends[0], rtol=1e-4, atol=1e-5)
    assert measured[0] == pytest.approx(measured[1])


def test_parameters_on_a_mesh_are_measured_as_on_one_device(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """61 rows in blocks of 8: the last block has rows that are no items."""
    config = config_of("bpr", mesh=row(1, 8), optimizer=ADAGRAD)
    result = train(config, dataset, tmp_path, quiet=True)
    experiment, params, _ = load_trained(tmp_path, dataset)
    assert len(params["items"]["table"].sharding.device_set) == 8
    monkeypatch.setattr(jax, "devices", lambda *name: jax.local_devices()[:1])
    _, single, _ = load_trained(tmp_path, dataset)
    assert single["items"]["table"].shape == (61, 5)
    for split in ("valid", "test"):
        for loaded in (params, single):
            assert experiment.evaluate(loaded, split).metrics == pytest.approx(result[split])


@pytest.mark.slow
def test_bfloat16_tables_train_and_come_back_as_such(
    config_of: ConfigOf, dataset: Dataset, tmp_path: Path
) -> None:
    config = config_of("bpr", table_dtype="bfloat16", mesh=row(2, 2))
    result = train(config, dataset, tmp_path, quiet=True)
    _, params, _ = load_trained(tmp_path, dataset)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    single = train(config_of("bpr"), dataset, tmp_path / "single", quiet=True)
    assert result["test"]["ndcg@10"] == pytest.approx(single["test"]["ndcg@10"], abs=0.1)
    with pytest.raises(UserError, match="training.table_dtype='bfloat16' and the config has"):
        train(config_of("bpr", table_dtype="float32"), dataset, tmp_path, quiet=True)


def test_a_table_too_large_for_the_devices_leaves_the_earlier_run_as_it_was(
    config_of: ConfigOf, dataset: Dataset, trained: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    small = MeshConfig(memory_gb=1e-6)
    with pytest.raises(UserError, match="the model needs"):
        train(config_of(mesh=small, steps=40), dataset, trained, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
