"""Codes with scales against NumPy, at the ends of what floats can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.compression.integers import (
    IntegerTable,
    dequantize_rows,
    pack,
    quantize_rows,
    quantized,
    unpack,
)

CASES = [(8, 0), (4, 0), (8, 3), (4, 3)]


def rows(seed: int = 0, count: int = 50, width: int = 12) -> np.ndarray:
    """Rows whose lengths lie many powers of ten apart."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, width)) * 10.0 ** random.uniform(-8, 8, (count, 1))
    return values.astype(np.float32)


def by_hand(x: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, one group at a time in float64, the scale by search in bfloat16."""
    most, group = 2 ** (bits - 1) - 1, group or x.shape[1]
    codes = np.zeros(x.shape, np.int8)
    scales = np.zeros((len(x), x.shape[1] // group), np.float64)
    for i, row in enumerate(x.astype(np.float64)):
        for j in range(0, len(row), group):
            wanted = np.abs(row[j : j + group]).max() / most
            near = np.asarray(wanted, jnp.bfloat16)
            steps = [near.view(np.uint16) + np.uint16(k) for k in (0, 1)]
            candidates = [float(np.asarray(s, np.uint16).view(jnp.bfloat16)) for s in steps]
            # A hair of room, as the float32 quotient is itself rounded.
            scale = min(c for c in candidates if c >= wanted * (1 - 1e-7))
            scales[i, j // group] = scale
            codes[i, j : j + group] = np.clip(np.round(row[j : j + group] / scale), -most, most)
    return codes, scales


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_codes_and_scales_are_those_of_numpy(bits: int, group: int) -> None:
    x = rows()
    codes, scale = quantize_rows(x, bits, group)
    expected, scales = by_hand(x, bits, group)
    np.testing.assert_array_equal(scale.astype(jnp.float32), scales)
    # A value within rounding of the middle between two codes may go either way.
    middle = np.abs(np.abs(x / np.repeat(scales, x.shape[1] // scales.shape[1], 1)) % 1 - 0.5)
    assert (np.asarray(codes) == expected)[middle > 1e-4].all() and (middle > 1e-4).mean() > 0.99


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_no_value_is_off_by_more_than_half_a_scale(bits: int, group: int) -> None:
    x = rows(1, 500)
    codes, scale = quantize_rows(x, bits, group)
    back = np.asarray(dequantize_rows(codes, scale), np.float64)
    half = np.repeat(np.asarray(scale, np.float64), x.shape[1] // scale.shape[1], axis=1) / 2
    assert (np.abs(back - x) <= half * (1 + 1e-5)).all()
    # A scale is that of the largest value, and no more than bfloat16 makes it.
    largest = np.abs(x).reshape(len(x), scale.shape[1], -1).max(-1)
    ratio = np.asarray(scale, np.float64) * (2 ** (bits - 1) - 1) / largest
    assert ratio.min() > 1 - 1e-6 and ratio.max() <= 1 + 2**-7


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_constant_and_extreme_rows(bits: int) -> None:
    huge = 3e38
    x = np.array(
        [[0, 0, 0], [5, 5, 5], [-2, -2, -2], [huge, -huge, 0], [1e-38, 0, -1e-45]], np.float32
    )
    codes, scale = quantize_rows(x, bits)
    back = np.asarray(dequantize_rows(codes, scale), np.float64)
    assert (np.abs(back - x) <= np.asarray(scale, np.float64) / 2 + 2.0**-100).all()
    np.testing.assert_array_equal(back[[0, 4]], 0)
    assert codes[3, 0] == -codes[3, 1] >= 2 ** (bits - 1) - 2 and codes[3, 2] == 0
    for row, value in ((1, 5), (2, -2)):
        assert len(set(back[row])) == 1
        assert abs(back[row, 0] - value) <= float(scale[row, 0]) / 2


def test_what_needs_no_more_bits_stays_as_it_is() -> None:
    x = np.array([[127, -127, 1, 0, 64], [254, -2, 4, 0, 126]], np.float32)  # scales 1 and 2
    np.testing.assert_array_equal(dequantize_rows(*quantize_rows(x, 8)), x)
    x = np.array([[7, -7, 1, 0, 3], [14, -2, 4, 0, -6]], np.float32)
    np.testing.assert_array_equal(dequantize_rows(*quantize_rows(x, 4)), x)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_two_codes_share_a_byte_for_odd_widths_too(width: int) -> None:
    codes = np.random.default_rng(0).integers(-7, 8, (30, width)).astype(np.int8)
    packed = pack(jnp.asarray(codes))
    assert packed.dtype == jnp.int8 and packed.shape == (30, (width + 1) // 2)
    np.testing.assert_array_equal(unpack(packed, width), codes)
    first, second = np.asarray(packed).view(np.uint8) % 16, np.asarray(packed).view(np.uint8) // 16
    np.testing.assert_array_equal(first, codes[:, : (width + 1) // 2].view(np.uint8) % 16)
    np.testing.assert_array_equal(
        second[:, : width // 2], codes[:, (width + 1) // 2 :].view(np.uint8) % 16
    )


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_rows_of_a_table_are_those_of_the_whole_of_it(bits: int, group: int) -> None:
    codes, scale = quantize_rows(rows(), bits, group)
    table = IntegerTable(codes if bits == 8 else pack(codes), scale, bits, 12)
    np.testing.assert_array_equal(table.whole(), dequantize_rows(codes, scale))
    ids = np.array([[3, 3], [49, 0]])
    np.testing.assert_array_equal(table.rows(ids), table.whole()[ids])
    # As of a table of floats, an id beyond the end has no row, and cannot pass for another.
    assert np.isnan(table.rows(np.array([99]))).all()


def test_the_gradient_passes_as_if_nothing_was_rounded() -> None:
    x, weights = jnp.asarray(rows(2, 4)), jnp.asarray(rows(3, 4))
    gradient = jax.grad(lambda x: jnp.sum(quantized(x, 4, 3) * weights))(x)
    np.testing.assert_array_equal(gradient, weights)
    np.testing.assert_array_equal(quantized(x, 4, 3), dequantize_rows(*quantize_rows(x, 4, 3)))
