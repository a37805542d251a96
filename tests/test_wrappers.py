"""Configs around configs: every pair works, or is refused in a sentence that names both.

The wrappers are found in the code, so that one that is added later is in every pair.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import objectives
from jaxrec.data import Dataset, PairData, SequenceData, write_content
from jaxrec.data.replay import TRAINING_EVENTS
from jaxrec.data.taught import ITEMS
from jaxrec.distillation import Distillation, write_labels
from jaxrec.functional import functional_of
from jaxrec.models import Head, matrix_factorization, sasrec
from jaxrec.models.wrapper import Wrapper
from jaxrec.objectives import MultiTask
from jaxrec.training import Experiment, ExperimentConfig
from jaxrec.training.trained import save_trained
from jaxrec.typing import Batch, UserError

ROOT = Path(__file__).parent.parent
TRUNK = sasrec.Config(max_len=4, dim=4, num_blocks=1, num_heads=1, hidden=4, dropout=0.0)
HEADS = (Head(name="category", outputs=3, sees_item=False), Head(name="rating"), Head(name="click"))
NO_OBJECTIVES = {"Negatives", "Objective", "Replica", "Retriever", "MultiTask"}


def classes() -> Iterator[type]:
    for file in sorted((ROOT / "jaxrec").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if kind.__module__ == name and dataclasses.is_dataclass(kind):
                yield kind


def around(field: str, offers: str) -> list[type]:
    """The dataclasses that hold another config in a field, and offer what configs of it offer."""
    return [
        kind
        for kind in classes()
        if field in {f.name for f in dataclasses.fields(kind)} and hasattr(kind, offers)
    ]


MODELS = [kind for kind in around("model", "fit") if kind is not Wrapper]
DATA = around("data", "requests")
OBJECTIVES = around("objective", "loss")


def test_the_wrappers_are_found() -> None:
    assert {kind.__name__ for kind in MODELS} >= {"LoRA", "Quantized", "WithContent", "WithHeads"}
    assert {kind.__name__ for kind in DATA} >= {"Replay", "Taught"}
    assert {kind.__name__ for kind in OBJECTIVES} >= {"Distillation", "MultiTask"}


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    dataset = random_dataset(0, num_users=20, num_items=30, mean_length=8)
    labels = np.random.default_rng(0).integers(1, 6, len(dataset.items)).astype(np.float32)
    genres = np.array(["Art", "Beat", "Craft"])[np.arange(30) % 3]
    vocabulary = dataset.item_vocabulary.assign(genres=genres)
    return dataclasses.replace(dataset, labels=labels, item_vocabulary=vocabulary)


@pytest.fixture(scope="module")
def teacher(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = ExperimentConfig(
        data=SequenceData(max_len=4), model=TRUNK, objective=objectives.FullSoftmax()
    )
    experiment = Experiment.of(config, dataset)
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    save_trained(experiment, experiment.model.init(jax.random.key(1)), workdir)
    return str(workdir)


@pytest.fixture(scope="module")
def made(
    dataset: Dataset, teacher: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Makes a wrapper around a config, with what else it wants."""
    directory = tmp_path_factory.mktemp("wrapped")
    write_content(dataset, directory / "content", ["genres"], hashed_width=8)
    users = dataset.user_vocabulary[["id"]].assign(**{TRAINING_EVENTS: 1})
    users.to_parquet(directory / "users.parquet")
    write_labels(teacher, dataset, directory / "labels", k=3)
    options: dict[str, dict[str, Any]] = {
        "LoRA": {"rank": 1},
        "WithContent": {"content": str(directory / "content")},
        "WithHeads": {"heads": HEADS},
        "Quantized": {},
        "QuantizationAware": {},
        "Replay": {"since": str(directory / "users.parquet"), "fraction": 0.5},
        "Taught": {"labels": str(directory / "labels")},
        "Distillation": {"teacher": teacher, "top_k": 3},
        "MultiTask": {"tasks": (objectives.Rating(), objectives.Category(), objectives.Click())},
    }

    def make(kind: type, **inside: Any) -> Any:
        return kind(**inside, **options[kind.__name__])

    return make


def built(make: Callable[[], Any], *names: str) -> Any:
    """What `make` returns, or None when it is refused in a sentence that names all of these."""
    try:
        return make()
    except UserError as refused:
        assert all(name in str(refused) for name in names), refused
        return None


@pytest.mark.parametrize("inner", MODELS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("outer", MODELS, ids=lambda kind: kind.__name__)
def test_models_around_models(outer: type, inner: type, made: Any, dataset: Dataset) -> None:
    def make() -> Any:
        config = made(outer, model=made(inner, model=TRUNK))
        fitted = config.fit(dataset.manifest)
        assert fitted.max_len == TRUNK.max_len
        return functional_of(fitted)

    model = built(make, outer.__name__, inner.__name__)
    if model is None:
        return
    history = np.array([[0, 3, 5, 7], [1, 2, 3, 4]], np.int32)
    params = model.init(jax.random.key(0))
    vectors = model.apply(params, Batch(history=history), method="user_vectors")
    items = model.apply(params, method="item_vectors")
    assert np.isfinite(vectors).all() and np.isfinite(items).all()
    assert vectors.shape[1] == items.shape[1] and len(items) == dataset.num_items + 1
    if "WithHeads" in (outer.__name__, inner.__name__):
        assert set(model.bind(params).heads) == {head.name for head in HEADS}
    if "WithContent" in (outer.__name__, inner.__name__):
        assert model.given
    if "Quantized" not in (outer.__name__, inner.__name__):
        trunk = functional_of(TRUNK.fit(dataset.manifest))
        assert model.tables == trunk.tables and model.layers[: len(trunk.layers)]
        given = functional_of(made(inner, model=TRUNK).fit(dataset.manifest))
        assert given.given <= model.frozen | model.given


@pytest.mark.parametrize("data", [SequenceData(max_len=4, labels=True), PairData()])
@pytest.mark.parametrize("inner", DATA, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("outer", DATA, ids=lambda kind: kind.__name__)
def test_data_around_data(outer: type, inner: type, data: Any, made: Any, dataset: Dataset) -> None:
    names = outer.__name__, inner.__name__
    config = built(lambda: made(outer, data=made(inner, data=data)), *names)
    if config is None:
        return
    assert config.max_len == data.max_len
    batches = config.batches(dataset, 4, 0)
    batch = batches.batch(0)
    assert batch.labels is not None and batch.where.any()
    if "Taught" in names:
        assert batch.features[ITEMS].shape == (*batch.positives.shape, 3)
    if "Replay" in names:
        assert batches.steps_per_epoch <= data.batches(dataset, 4, 0).steps_per_epoch


def plain_objectives() -> dict[str, Any]:
    kinds = {name: getattr(objectives, name) for name in objectives.__all__}
    return {
        name: kind()
        for name, kind in kinds.items()
        if inspect.isclass(kind) and hasattr(kind, "draw") and name not in NO_OBJECTIVES
    }


PLAIN = plain_objectives()


@pytest.mark.grid(quick=8)
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("inner", [None, *OBJECTIVES], ids=lambda k: getattr(k, "__name__", "-"))
@pytest.mark.parametrize("outer", OBJECTIVES, ids=lambda kind: kind.__name__)
def test_objectives_around_objectives(
    outer: type, inner: type | None, name: str, made: Any, dataset: Dataset
) -> None:
    plain = PLAIN[name]
    names = [outer.__name__, inner.__name__] if inner else [outer.__name__]
    objective = built(
        lambda: made(outer, objective=made(inner, objective=plain) if inner else plain), *names
    )
    if objective is None:
        return
    trunk: Any = matrix_factorization.Config(dim=4, init_std=0.3)
    if Distillation in (outer, inner):
        trunk = dataclasses.replace(TRUNK, attention_dropout=0.0)
    data: Any = SequenceData(max_len=4, labels=True) if trunk is not None else None
    if not isinstance(trunk, sasrec.Config):
        data = PairData()
    with_heads = next(kind for kind in MODELS if kind.__name__ == "WithHeads")
    config = made(with_heads, model=trunk)
    model = functional_of(config.fit(dataset.manifest))
    batch = data.batches(dataset, 4, 0).batch(0)
    batch, statistics = jax.device_put((batch, objective.statistics(dataset)))
    params = model.init(jax.random.key(0))

    def total(params: Any) -> jax.Array:
        drawn = objective.draw(batch, statistics, jax.random.key(2))
        loss, weight = objective.loss(model.bind(params), drawn, None)
        return loss / weight

    loss, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(loss) and objective.whole_catalogue == plain.whole_catalogue
    assert float(jnp.abs(gradient["items"]["table"]).max()) > 0
    if MultiTask in (outer, inner):
        assert len(objective.tasks) == 3
        kernels = [gradient["heads"][head.name]["kernel"] for head in HEADS]
        assert all(float(jnp.abs(kernel).max()) > 0 for kernel in kernels)
