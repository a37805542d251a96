"""Self-attention against a loop in NumPy, and who sees whom."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.functional import Functional, functional
from jaxrec.layers import SelfAttention, causal_mask, rotary
from jaxrec.layers.attention import attend, attend_fused, default_device, has_fused_kernel
from jaxrec.typing import Params, UserError

SEGMENTS = np.array([[0, 0, 1, 1, 1, 2, 2], [1, 1, 2, 3, 3, 0, 0], [0, 0, 0, 0, 0, 0, 0]], np.int32)


def build(dim: int, heads: int, dropout_rate: float = 0.0) -> tuple[Functional, Params]:
    model = functional(
        lambda rngs: SelfAttention(
            dim, heads, dropout_rate=dropout_rate, dtype=jnp.float32, rngs=rngs
        )
    )
    params = model.init(jax.random.key(0))
    biases = jax.random.normal(jax.random.key(1), (4 * dim,))
    params["project_in"]["bias"] = biases[: 3 * dim]
    params["project_out"]["bias"] = biases[3 * dim :]
    return model, params


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rotate(vector: np.ndarray, position: int) -> np.ndarray:
    """Turns feature i and feature i + half as a complex number."""
    half = len(vector) // 2
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(
        1j * position * 10_000.0 ** (-np.arange(half) / half)
    )
    return np.concatenate([turned.real, turned.imag])


def by_loops(
    params: Params, x: np.ndarray, segments: np.ndarray, heads: int, positions: np.ndarray | None
) -> np.ndarray:
    weights = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    out = np.zeros(x.shape)
    dim, size = x.shape[-1], x.shape[-1] // heads
    for b in range(x.shape[0]):
        qkv = x[b] @ weights["project_in"]["kernel"] + weights["project_in"]["bias"]
        q, k, v = (qkv[:, i * dim : (i + 1) * dim] for i in range(3))
        for t in range(x.shape[1]):
            seen = [
                s
                for s in range(t + 1)
                if s == t or (segments[b, s] == segments[b, t] and segments[b, s] > 0)
            ]
            mixed = np.zeros(dim)
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                query, keys = q[t, part], k[seen][:, part]
                if positions is not None:
                    query = rotate(query, positions[b, t])
                    pairs = zip(keys, seen, strict=True)
                    keys = np.stack([rotate(key, positions[b, s]) for key, s in pairs])
                logits = keys @ query / np.sqrt(size)
                share = np.exp(logits - logits.max())
                mixed[part] = share / share.sum() @ v[seen][:, part]
            out[b, t] = mixed @ weights["project_out"]["kernel"] + weights["project_out"]["bias"]
    return out


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("turned", [False, True])
def test_it_is_the_textbooks_attention(heads: int, turned: bool) -> None:
    model, params = build(8, heads)
    x = normal(0, 3, 7, 8)
    positions = np.random.default_rng(1).integers(0, 50, (3, 7)) if turned else None
    out = model.apply(params, x, causal_mask(jnp.asarray(SEGMENTS)), positions=positions)
    expected = by_loops(params, x, SEGMENTS, heads, positions)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_the_mask_by_hand() -> None:
    mask = causal_mask(jnp.array([[0, 1, 1, 2]]))
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(mask[0, 0], np.array(expected, bool))


@pytest.mark.parametrize("changed", range(7))
def test_a_position_moves_only_later_ones_of_its_own_sequence(changed: int) -> None:
    model, params = build(8, 2)
    mask = causal_mask(jnp.asarray(SEGMENTS))
    x = normal(0, 3, 7, 8)
    other = x.copy()
    other[:, changed] += 1
    moved = np.asarray(model.apply(params, x, mask) != model.apply(params, other, mask)).any(-1)
    same = (SEGMENTS[:, changed : changed + 1] == SEGMENTS) & (SEGMENTS > 0)
    expected = same & (np.arange(7) >= changed)
    expected[:, changed] = True
    np.testing.assert_array_equal(moved, expected)


def test_padding_in_front_changes_nothing() -> None:
    model, params = build(8, 2)
    x, pad = normal(0, 2, 5, 8), normal(1, 2, 3, 8)
    alone = model.apply(params, x, causal_mask(jnp.ones((2, 5), jnp.int32)))
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    padded = model.apply(params, np.concatenate([pad, x], 1), causal_mask(segments))
    np.testing.assert_allclose(padded[:, 3:], alone, rtol=1e-5, atol=1e-6)


def test_shifting_all_positions_leaves_rotary_attention_as_it_is() -> None:
    model, params = build(8, 2)
    mask = causal_mask(jnp.asarray(SEGMENTS))
    x, positions = normal(0, 3, 7, 8), np.tile(np.arange(7), (3, 1))
    here = model.apply(params, x, mask, positions=positions)
    there = model.apply(params, x, mask, positions=positions + 100)
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)
    reversed_order = model.apply(params, x, mask, positions=positions[:, ::-1])
    assert np.abs(np.asarray(here - reversed_order)).max() > 1e-3


def test_rotary_keeps_lengths_and_leaves_position_zero() -> None:
    x = normal(0, 2, 3, 2, 6)
    positions = np.array([[0, 1, 2], [0, 500, 3]])
    turned = np.asarray(rotary(jnp.asarray(x), positions))
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(turned[1, 1, 0], rotate(x[1, 1, 0], 500), rtol=1e-3, atol=1e-4)


def test_dropout_runs_with_a_key_only() -> None:
    model, params = build(8, 2, dropout_rate=0.5)
    x, mask = normal(0, 3, 7, 8), causal_mask(jnp.asarray(SEGMENTS))
    still = model.apply(params, x, mask)
    np.testing.assert_array_equal(still, model.apply(params, x, mask))
    assert not np.array_equal(still, model.apply(params, x, mask, key=jax.random.key(0)))


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="dim=10 must be a multiple of num_heads=4"):
        build(10, 4)
    with pytest.raises(UserError, match="even number of features"):
        rotary(jnp.ones((1, 1, 1, 3)), jnp.zeros((1, 1), jnp.int32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_fused_way_gives_the_values_and_gradients_of_the_other(dtype: Any) -> None:
    q, k, v = (jnp.asarray(normal(seed, 3, 7, 2, 8), dtype) for seed in range(3))
    mask = causal_mask(jnp.asarray(SEGMENTS))

    def run(way: Any, **options: Any) -> tuple[jax.Array, Any]:
        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = way(q, k, v, mask, **options)
            return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

        gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    # jax.nn.dot_product_attention mixes dtypes in its own code.
    with jax.numpy_dtype_promotion("standard"):
        found = run(attend_fused, implementation="xla")
    tolerance = 1e-5 if dtype == jnp.float32 else 0.03
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run(attend)), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance
        )


def test_the_device_that_decides_is_the_one_computed_on() -> None:
    first, other = jax.devices()[0], jax.devices()[-1]
    assert default_device() == first != other
    with jax.default_device(other):
        assert default_device() == other
    with jax.default_device("cpu"):
        assert default_device().platform == "cpu"


def test_the_fused_kernel_is_used_where_cudnn_has_it() -> None:
    def device(platform: str, version: str, capability: str) -> Any:
        client = SimpleNamespace(platform_version=version)
        return SimpleNamespace(platform=platform, client=client, compute_capability=capability)

    def q(length: int, features: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct((2, length, 4, features), dtype)

    hopper = device("gpu", "PJRT C API cuda 12090", "9.0")
    assert has_fused_kernel(q(50, 32), hopper)
    assert has_fused_kernel(q(50, 128, jnp.float16), hopper)
    for refused in (q(51, 32), q(50, 36), q(50, 136), q(50, 32, jnp.float32)):
        assert not has_fused_kernel(refused, hopper)
    for other in (("gpu", "cuda 12090", "7.5"), ("gpu", "rocm 60000", ""), ("cpu", "", "")):
        assert not has_fused_kernel(q(50, 32), device(*other))
    assert not has_fused_kernel(q(50, 32), jax.devices()[0])
