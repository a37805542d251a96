"""Artefacts of tiny models, and what a site would have beside them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrec.data import PairData, SequenceData
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import EvaluationConfig
from jaxrec.export import Artefact, load_artefact
from jaxrec.export.run import export_run
from jaxrec.models import matrix_factorization
from jaxrec.models import sasrec as sasrec_model
from jaxrec.objectives import BPR, FullSoftmax
from jaxrec.training import Experiment, ExperimentConfig, save_trained

CATEGORIES = ("Comedy", "Drama", "Comedy|Drama")


@pytest.fixture(scope="session")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    """40 users and 60 items; item iN is called "Film N" and has a category and a maker."""
    made: Dataset = random_dataset(0, num_users=40, num_items=60, mean_length=9)
    count = range(1, made.num_items + 1)
    known = made.item_vocabulary.assign(
        title=[f"Film {n}" for n in count],
        category=[CATEGORIES[n % 3] for n in count],
        maker=[f"maker {n % 7}" for n in count],
        released=[1_700_000_000.0 + 86_400 * n for n in count],
    )
    return dataclasses.replace(made, item_vocabulary=known)


@pytest.fixture(scope="session")
def exported(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """Exports "sasrec" or "mf" with random parameters of a seed, once; tests change copies."""
    made: dict[tuple[str, int], Path] = {}

    def export(name: str, seed: int = 0) -> Path:
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{name}{seed}")
            model: Any = matrix_factorization.Config(dim=4)
            if name == "sasrec":
                model = sasrec_model.Config(max_len=8, dim=8, num_blocks=1, num_heads=1, hidden=8)
            config = ExperimentConfig(
                data=SequenceData(max_len=8) if name == "sasrec" else PairData(),
                model=model,
                objective=FullSoftmax() if name == "sasrec" else BPR(num_negatives=1),
                evaluation=EvaluationConfig(ks=(10,), item_chunk=32),
            )
            experiment = Experiment.of(config, dataset)
            random = np.random.default_rng(seed)
            params = jax.tree.map(
                lambda leaf: random.normal(0, 0.5, leaf.shape).astype(leaf.dtype),
                experiment.model.shapes,
            )
            save_trained(experiment, params, folder / "run")
            export_run(folder / "run", dataset, folder / "artefact", k=20, measure=False)
            made[name, seed] = folder / "artefact"
        return made[name, seed]

    return export


@pytest.fixture(scope="session")
def sasrec(exported: Callable[[str, int], Path]) -> Artefact:
    return load_artefact(exported("sasrec", 0))


@pytest.fixture(scope="session")
def factorization(exported: Callable[[str, int], Path]) -> Artefact:
    return load_artefact(exported("mf", 0))
