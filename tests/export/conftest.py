"""These tests compile many tiny programs once, so the compiler does not optimise them."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.compression import QuantizationAware, Quantized
from jaxrec.data import PairData, SequenceData, write_content
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import EvaluationConfig
from jaxrec.export import Artefact, load_artefact
from jaxrec.export.run import FORMATS, export_run
from jaxrec.finetuning import LoRA
from jaxrec.models import Head, WithHeads, matrix_factorization, sasrec
from jaxrec.models.content import WithContent
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.training import Experiment, ExperimentConfig, TrainingConfig, save_trained
from jaxrec.typing import Params

MAX_LEN = 8
SASREC = sasrec.Config(max_len=MAX_LEN, dim=8, num_blocks=1, num_heads=2, hidden=12)
MF = matrix_factorization.Config(dim=5)  # tables of width 6
MODELS: dict[str, Any] = {
    "sasrec": SASREC,
    "ligr": dataclasses.replace(
        SASREC, tied=False, block="ligr", temperature=0.1, positions="rotary"
    ),
    "post_norm": dataclasses.replace(
        SASREC, block="post_norm", compute_dtype="bfloat16", remat=True
    ),
    "mf": MF,
    "bfloat16": MF,  # whose tables were trained as such
    "int8": Quantized(model=SASREC),
    "int4": Quantized(model=dataclasses.replace(SASREC, tied=False), tables="int4", group=2),
    "pq": Quantized(model=MF, tables="pq", pq_parts=2),
    "aware": QuantizationAware(model=SASREC, bits=4),
    "lora": LoRA(model=SASREC, rank=2, on=("*/kernel", "items/table")),
    "pruned": SASREC.narrowed(dim=6, num_heads=1, hidden=5),
    "heads": WithHeads(
        model=dataclasses.replace(SASREC, positions="none", activation="relu"),
        heads=(Head(name="rating"),),
    ),
    "content": SASREC,  # wrapped in `experiment_of`, which knows where content is
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model with parameters none of which is what it was born with, and its artefact."""

    experiment: Experiment
    params: Params
    workdir: Path
    artefact: Artefact


def _experiment_of(name: str, dataset: Dataset, directory: Path) -> Experiment:
    model = MODELS[name]
    if name == "content":
        vectors = np.random.default_rng(1).normal(size=(dataset.num_items, 4))
        known = dataset.item_vocabulary.assign(vector=list(vectors))
        write_content(
            dataclasses.replace(dataset, item_vocabulary=known), directory / "content", ["vector"]
        )
        model = WithContent(model=model, content=str(directory / "content"))
    pairs = isinstance(getattr(model, "model", model), matrix_factorization.Config)
    config = ExperimentConfig(
        data=PairData() if pairs else SequenceData(max_len=MAX_LEN),
        model=model,
        objective=BPR(num_negatives=2) if pairs else FullSoftmax(),
        training=TrainingConfig(table_dtype="bfloat16" if name == "bfloat16" else "float32"),
        evaluation=EvaluationConfig(ks=(10,), batch_size=16, item_chunk=16, bootstrap_samples=20),
    )
    return Experiment.of(config, dataset)


def _params_of(experiment: Experiment) -> Params:
    random = np.random.default_rng(0)

    dtype = experiment.config.training.table_dtype

    def drawn(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "table":
            return jnp.asarray(random.normal(0, 0.5, leaf.shape), dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(random.normal(0, 0.5, leaf.shape), leaf.dtype)
        return jnp.asarray(random.integers(-7, 8, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, experiment.model.shapes)


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    """All rows count as trained; tests/export/test_known.py is about those that were not."""
    made: Dataset = random_dataset(0, num_users=40, num_items=30, mean_length=8)
    rows = {"user": np.arange(made.num_users + 1) > 0, "item": np.arange(made.num_items + 1) > 0}
    return dataclasses.replace(made, trained_rows=rows)


@pytest.fixture(scope="session")
def exported(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """Exports a model of `MODELS`, once. Tests that change an artefact work on a copy."""
    made: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            experiment = _experiment_of(name, dataset, directory)
            params = _params_of(experiment)
            save_trained(experiment, params, directory / "run")
            options: dict[str, Any] = {"formats": tuple(FORMATS), "k": 7, "measure": False}
            export_run(directory / "run", dataset, directory / "artefact", **options)
            artefact = load_artefact(directory / "artefact")
            made[name] = Exported(experiment, params, directory / "run", artefact)
        return made[name]

    return export
