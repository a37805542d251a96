"""Schedules, decay masks and Optax transforms that a config builds."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.optim import OptimizerConfig
from jaxrec.typing import Params, UserError

PARAMS: Params = {
    "items": {"table": jnp.ones((3, 2))},
    "linear": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
}


def gradients(step: int) -> Params:
    random = np.random.default_rng(step)
    return {
        group: {k: jnp.asarray(random.standard_normal(v.shape), jnp.float32) for k, v in p.items()}
        for group, p in PARAMS.items()
    }


def run(optimizer: optax.GradientTransformation, steps: int) -> Params:
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_warm_up_rises_in_a_line_and_a_cosine_falls_to_its_fraction() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay="cosine", final_fraction=0.1)
    schedule = config.schedule(110)
    expected = {
        0: 2 / 11,
        5: 12 / 11,
        9: 20 / 11,
        10: 2.0,
        35: 2 * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2),
        60: 2 * (0.1 + 0.9 / 2),
        110: 0.2,
        200: 0.2,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-7)


def test_the_first_step_moves_parameters() -> None:
    for config in (OptimizerConfig(warmup_steps=1), OptimizerConfig(warmup_steps=1000)):
        assert float(config.schedule(2000)(0)) > 0


def test_a_constant_rate_is_constant_after_warm_up() -> None:
    assert float(OptimizerConfig(learning_rate=0.5).schedule(10)(7)) == 0.5
    warm = OptimizerConfig(learning_rate=0.5, warmup_steps=4).schedule(10)
    np.testing.assert_allclose([warm(s) for s in (0, 1, 4, 9)], [0.1, 0.2, 0.5, 0.5])


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warmup_steps=10 must be less than the run's 10 steps"):
        OptimizerConfig(warmup_steps=10).schedule(10)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (OptimizerConfig(name="adam", b1=0.8, eps=1e-6), optax.adam(1e-3, b1=0.8, eps=1e-6)),
        (OptimizerConfig(name="adagrad", eps=1e-7), optax.adagrad(1e-3)),
        (OptimizerConfig(name="sgd"), optax.sgd(1e-3)),
        (OptimizerConfig(name="sgd", momentum=0.9), optax.sgd(1e-3, 0.9)),
        (OptimizerConfig(name="lion", b2=0.99), optax.lion(1e-3, weight_decay=0.0)),
    ],
    ids=lambda value: value.name if isinstance(value, OptimizerConfig) else "",
)
def test_each_name_is_optaxs_optimiser(
    config: OptimizerConfig, reference: optax.GradientTransformation
) -> None:
    # Optax raises a Python number to the power of an integer count.
    with jax.numpy_dtype_promotion("standard"):
        chex.assert_trees_all_close(run(config.build(10), 4), run(reference, 4), rtol=1e-6)


@pytest.mark.parametrize("tables", [False, True])
def test_only_matrices_decay_and_tables_when_asked(tables: bool) -> None:
    config = OptimizerConfig(name="sgd", learning_rate=0.5, weight_decay=0.2, decay_tables=tables)
    optimizer = config.build(10)
    still = {g: {k: jnp.zeros_like(v) for k, v in p.items()} for g, p in PARAMS.items()}
    updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
    assert (np.asarray(updates["linear"]["kernel"]) == -0.5 * np.float32(0.2)).all()
    assert not updates["linear"]["bias"].any() and not updates["norm"]["scale"].any()
    assert bool(updates["items"]["table"].any()) == tables


def test_gradients_are_clipped_to_the_global_norm() -> None:
    optimizer = OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=0.25).build(10)
    updates, _ = optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.0},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"clip_norm": -1.0},
        {"final_fraction": 1.5},
    ],
)
def test_values_outside_of_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimizerConfig(**values)
