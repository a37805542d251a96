"""Quantised models: every family, through the same evaluation as the models they come from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import config as configs
from jaxrec.compression import QuantizationAware, Quantized, num_bytes, quantize, start_from
from jaxrec.compression.integers import dequantize_rows, quantize_rows
from jaxrec.data import PairData, SequenceData
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation import EvaluationConfig, requests_of
from jaxrec.finetuning import LoRA
from jaxrec.functional import functional_of
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.objectives import BPR, FullSoftmax, SampledSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.paths import flatten
from jaxrec.sharding import Layout, MeshConfig, shardings
from jaxrec.training import (
    Experiment,
    ExperimentConfig,
    TrainingConfig,
    init_state,
    load_trained,
    make_step,
    save_trained,
    train,
)
from jaxrec.typing import Batch, Params, UserError

SASREC = sasrec.Config(max_len=8, dim=8, num_blocks=1, num_heads=2, hidden=12)
MODELS: dict[str, Any] = {
    "tied": SASREC,
    "untied": dataclasses.replace(SASREC, tied=False, block="ligr", temperature=0.1),
    "mf": matrix_factorization.Config(dim=5),  # tables of width 6
    "adapted": LoRA(model=SASREC, rank=2, on=("*/kernel", "items/table")),
}
KINDS: dict[str, dict[str, Any]] = {
    "int8": {"tables": "int8"},
    "int4": {"tables": "int4", "group": 2},
    "pq": {"tables": "pq", "pq_parts": 2},
    "dense": {"tables": "float32"},
}
EVALUATION = EvaluationConfig(ks=(5, 10), batch_size=16, bootstrap_samples=0)


@pytest.fixture(scope="module")
def dataset(random_dataset: Callable[..., Dataset]) -> Dataset:
    return random_dataset(0, num_users=40, num_items=30, mean_length=8)


def experiment_of(model: Any, dataset: Dataset) -> Experiment:
    inner = getattr(model, "model", model)
    pairs = isinstance(inner, matrix_factorization.Config)
    config = ExperimentConfig(
        data=PairData() if pairs else SequenceData(max_len=8),
        model=model,
        objective=BPR(num_negatives=2) if pairs else FullSoftmax(),
        evaluation=EVALUATION,
    )
    return Experiment.of(config, dataset)


def params_of(experiment: Experiment) -> Params:
    """Parameters none of which is left at zero or one."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: p + random.normal(0, 0.3, p.shape).astype(np.float32),
        experiment.model.init(jax.random.key(0)),
    )


def decoded(stored: Any) -> np.ndarray:
    """The floats that stored arrays stand for, by plain NumPy."""
    if "codebooks" in stored:
        books, codes = np.asarray(stored["codebooks"], np.float32), np.asarray(stored["codes"])
        parts = [books[m][codes[:, m]] for m in range(len(books))]
        return np.concatenate(parts, axis=1) * np.asarray(stored["norms"], np.float32)
    codes, scale = np.asarray(stored["codes"]), np.asarray(stored["scale"], np.float32)
    if codes.shape[1] < 2 * scale.shape[1]:  # two codes a byte, groups of two
        low = (codes.view(np.uint8) % 16 + 8) % 16
        high = (codes.view(np.uint8) // 16 + 8) % 16
        codes = np.concatenate([low, high], axis=1).astype(np.int32) - 8
    return codes * np.repeat(scale, codes.shape[1] // scale.shape[1], axis=1)


def expanded(params: Params, shapes: Params) -> Params:
    """The parameters of the model inside a quantised one."""
    tree: Params = {}
    for key, like in shapes.items():
        stored = params[key]
        if isinstance(like, dict):
            tree[key] = expanded(stored, like)
        elif isinstance(stored, dict):
            kernel = key == "kernel"
            tree[key] = jnp.asarray(decoded(stored).T if kernel else decoded(stored))
        else:
            tree[key] = stored
    return tree


@pytest.mark.grid(quick=6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_it_scores_as_a_model_of_the_decoded_floats(dataset: Dataset, name: str, kind: str) -> None:
    source = experiment_of(MODELS[name], dataset)
    config = Quantized(model=source.config.model, **KINDS[kind])
    params = quantize(params_of(source), config)
    quantised = experiment_of(config, dataset)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, quantised.model.shapes)
    floats = expanded(params, source.model.shapes)
    users = np.arange(1, 11, dtype=np.int32)
    histories = np.random.default_rng(1).integers(0, 31, (10, 8)).astype(np.int32)
    batch = source.config.data.requests(users, histories)
    for experiment, tree in ((quantised, params), (source, floats)):
        assert np.isfinite(experiment.user_vectors(tree, batch)).all()
    np.testing.assert_allclose(
        quantised.user_vectors(params, batch),
        source.user_vectors(floats, batch),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        quantised.item_vectors(params, users), source.item_vectors(floats, users), rtol=1e-6
    )
    requests = requests_of(dataset, "test")
    found, expected = (
        experiment.recommender(tree).recommend(requests, 10, mask_seen=True)
        for experiment, tree in ((quantised, params), (source, floats))
    )
    np.testing.assert_array_equal(found, expected)
    metrics = [e.evaluate(t, "test").metrics for e, t in ((quantised, params), (source, floats))]
    assert metrics[0] == metrics[1]


def test_the_bytes_are_those_of_codes_and_scales(dataset: Dataset) -> None:
    source = experiment_of(SASREC, dataset)
    params = params_of(source)
    table = {
        kind: num_bytes(quantize(params, Quantized(model=source.config.model, **options))["items"])
        for kind, options in KINDS.items()
    }
    assert table == {
        "int8": 31 * (8 + 2),
        "int4": 31 * (4 + 4 * 2),
        "pq": 31 * (2 + 2) + 2 * 256 * 4 * 2,
        "dense": 31 * 8 * 4,
    }
    kernel = quantize(params, Quantized(model=source.config.model))["blocks"]["0"]["feed_forward"]
    assert num_bytes(kernel["up"]["kernel"]) == 8 * 12 + 12 * 2  # a scale for each output
    codes, scale = quantize_rows(params["blocks"]["0"]["feed_forward"]["up"]["kernel"].T, 8)
    chex.assert_trees_all_equal(kernel["up"]["kernel"], {"codes": codes, "scale": scale})


@pytest.mark.parametrize("kind", ["int8", "int4", "pq"])
def test_a_lookup_decodes_the_rows_of_the_batch_alone(kind: str) -> None:
    rows, dim = 2**16, 32
    config = sasrec.Config(num_items=rows - 1, max_len=8, dim=dim, num_blocks=1, hidden=16)
    options = KINDS[kind] | ({"pq_parts": 8} if kind == "pq" else {})
    model = functional_of(Quantized(model=config, **options))
    params = model.shapes
    history = jax.ShapeDtypeStruct((4, 8), jnp.int32)

    def vectors(params: Params, history: jax.Array) -> jax.Array:
        return model.apply(params, Batch(history=history), method="user_vectors")

    def whole(params: Params) -> jax.Array:
        return model.apply(params, method="item_vectors").sum(-1) + model.apply(
            params, method="item_vectors"
        ).max(-1)

    few, all_rows = (jax.jit(vectors).lower(params, history), jax.jit(whole).lower(params))
    compiled: Any = few.compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * dim  # not even a byte a value
    of_all: Any = all_rows.compile()
    assert compiled.cost_analysis()["flops"] < rows * dim < of_all.cost_analysis()["flops"]


def test_parameters_on_a_mesh_are_those_of_one_device(dataset: Dataset) -> None:
    source = experiment_of(SASREC, dataset)
    mesh = MeshConfig(data=2, model=4).build()
    layout = Layout(axes=("data", "model"), table_axis="model", placements={"items": "row"})
    optimizer = OptimizerConfig().build(1)
    split = init_state(source.model, optimizer, 0, mesh=mesh, layout=layout).params
    whole = init_state(source.model, optimizer, 0).params
    assert split["items"]["table"].shape == (32, 8)  # a row more than there are
    assert split["items"]["table"].sharding == shardings(split, mesh, layout)["items"]["table"]
    for options in KINDS.values():
        config = Quantized(model=source.config.model, **options)
        chex.assert_trees_all_equal(quantize(split, config), quantize(whole, config))


def test_bfloat16_tables_are_quantised_from_what_they_hold(dataset: Dataset) -> None:
    source = experiment_of(SASREC, dataset)
    config = Quantized(model=source.config.model)
    params = params_of(source)
    params["items"]["table"] = params["items"]["table"].astype(jnp.bfloat16)
    codes, scale = quantize_rows(params["items"]["table"].astype(jnp.float32), 8)
    chex.assert_trees_all_equal(
        quantize(params, config)["items"]["table"], {"codes": codes, "scale": scale}
    )


@pytest.mark.grid(quick=4)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_training_sees_exactly_the_numbers_of_the_quantised_model(
    dataset: Dataset, name: str, bits: Any
) -> None:
    config = QuantizationAware(model=MODELS[name], bits=bits, group=2)
    aware = experiment_of(config, dataset)
    params = params_of(aware)
    quantised = experiment_of(aware.config.model.quantized(), dataset)
    stored = quantize(params, quantised.config.model)
    module, other = aware.model.bind(params), quantised.model.bind(stored)
    for table in aware.tables:
        np.testing.assert_array_equal(
            getattr(module, table)(), getattr(other, table)(), strict=True
        )
    for path, leaf in flatten(expanded(stored, params)).items():
        if path.endswith("kernel") and name != "adapted":  # where adapters are added to them
            block = module.blocks[int(path.split("/")[1])]
            for key in path.split("/")[2:-1]:
                block = getattr(block, key)
            np.testing.assert_array_equal(block.kernel[...], leaf)
    metrics = [e.evaluate(p, "test").metrics for e, p in ((aware, params), (quantised, stored))]
    assert metrics[0] == metrics[1]


@pytest.mark.grid
@pytest.mark.parametrize("objective", [FullSoftmax(), SampledSoftmax(num_negatives=2)])
def test_aware_training_updates_the_rows_of_a_batch_by_the_gradient_of_the_rounded(
    dataset: Dataset, objective: Any
) -> None:
    model = dataclasses.replace(SASREC, dropout=0.0, attention_dropout=0.0, num_items=30)
    aware = functional_of(QuantizationAware(model=model, bits=4, dense="float32"))
    data = SequenceData(max_len=8)
    batch = data.batches(dataset, 2, 0).batch(0)
    statistics = objective.statistics(dataset)
    optimizer = OptimizerConfig(name="sgd", learning_rate=1.0).build(1)
    state = init_state(aware, optimizer, 0)
    before = jax.tree.map(np.array, state.params)
    after = make_step(aware, objective, optimizer, seed=0)(state, batch, statistics)[0].params
    # A step of the plain model that starts from the rounded table moves it by the same.
    plain = functional_of(model)
    rounded = jax.tree.map(jnp.asarray, before)
    rounded["items"]["table"] = dequantize_rows(*quantize_rows(before["items"]["table"], 4))
    state = dataclasses.replace(init_state(plain, optimizer, 0), params=rounded)
    rounded = jax.tree.map(np.array, rounded)
    moved = make_step(plain, objective, optimizer, seed=0)(state, batch, statistics)[0].params
    for path, value in flatten(after).items():
        step = np.asarray(value) - flatten(before)[path]
        expected = np.asarray(flatten(moved)[path]) - flatten(rounded)[path]
        np.testing.assert_allclose(step, expected, atol=1e-6)
    changed = (np.asarray(after["items"]["table"]) != before["items"]["table"]).any(1)
    assert changed.any() and (changed[1:].all() or not objective.whole_catalogue)


def test_a_quantised_config_is_saved_and_asks_for_what_fits(dataset: Dataset) -> None:
    config = experiment_of(Quantized(model=SASREC, tables="int4"), dataset).config
    assert configs.from_dict(configs.to_dict(config)) == config
    assert config.model.model.num_items == 30 and config.model.max_len == 8
    with pytest.raises(
        UserError, match=r"pq_parts=3 does not divide the width 8 of items/table.*1, 2, 4"
    ):
        functional_of(Quantized(model=config.model.model, tables="pq", pq_parts=3))
    with pytest.raises(UserError, match=r"group=5 does not divide the width 8.*or 0 for the whole"):
        functional_of(Quantized(model=config.model.model, tables="int4", group=5))
    bad: Any = "int2"
    with pytest.raises(UserError, match="tables is one of int8, int4, pq, float32; got 'int2'"):
        Quantized(model=SASREC, tables=bad)
    bits: Any = 3
    with pytest.raises(UserError, match="bits is one of 8, 4; got 3"):
        QuantizationAware(model=SASREC, bits=bits)
    with pytest.raises(UserError, match="a Quantized model cannot be quantised again"):
        Quantized(model=config.model)
    with pytest.raises(
        UserError, match="not the parameters of Config: they differ in.*items/table"
    ):
        quantize({"other": {"table": jnp.zeros((3, 3))}}, config.model)
    # ExperimentConfig still sees a model that is too short for the data.
    with pytest.raises(UserError, match="longer than model.max_len=8"):
        dataclasses.replace(config, data=SequenceData(max_len=9))


def test_codes_are_not_trained_but_what_is_float_may_be(dataset: Dataset, tmp_path: Path) -> None:
    source = experiment_of(SASREC, dataset)
    config = Quantized(model=source.config.model)
    params = quantize(params_of(source), config)
    experiment = dataclasses.replace(
        source.config, model=config, training=TrainingConfig(steps=2, batch_size=4)
    )
    with pytest.raises(UserError, match="/codes is int8, which has no gradient"):
        train(experiment, dataset, tmp_path / "all", quiet=True)
    training = dataclasses.replace(experiment.training, trained=("*/bias",))
    experiment = dataclasses.replace(experiment, training=training)
    train(experiment, dataset, tmp_path / "biases", start=start_from(params), quiet=True)
    _, after, _ = load_trained(tmp_path / "biases", dataset)
    for path, leaf in flatten(after).items():
        same = np.array_equal(leaf, flatten(params)[path])
        assert same != path.endswith("/bias"), path


def test_a_saved_model_is_opened_as_a_run_and_is_no_run_to_go_on_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    source = experiment_of(SASREC, dataset)
    averaged = dataclasses.replace(source.config.training, average=0.9, trained=("items",))
    config = dataclasses.replace(
        source.config, model=Quantized(model=source.config.model), training=averaged
    )
    experiment = Experiment.of(config, dataset)
    params = quantize(params_of(source), experiment.config.model)
    save_trained(experiment, params, tmp_path, data="somewhere", step=7)
    opened, restored, step = load_trained(tmp_path, dataset)
    assert step == 7 and opened.config.model == experiment.config.model
    chex.assert_trees_all_equal(restored, params)
    chex.assert_trees_all_equal_dtypes(restored, params)
    with pytest.raises(UserError, match="holds a run already"):
        save_trained(experiment, params, tmp_path)
    again = dataclasses.replace(opened.config, training=TrainingConfig(trained=("*/bias",)))
    with pytest.raises(UserError, match="a model without the state of its training"):
        train(again, dataset, tmp_path, quiet=True)
