"""Which example comes when: shuffles that are computed, not stored, and the rows of a batch."""

import functools
import math

import numpy as np

_ROUNDS, _ROUNDS_OF_FEW = 6, 12  # more where halves take so few values that six leave a pattern
_FEW = 256
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))  # odd, half of the bits set
_HIGH = np.uint64(32)


def permute(indices: np.ndarray, n: int, *key: int) -> np.ndarray:
    """Returns where a shuffle of 0 .. n - 1 sends each index, in time and memory of the indices.

    The shuffle is a Feistel network on pairs (i // b, i % b), the rounds of which add hashes of one
    half to the other; results outside the range go through it again, which few do since the pairs
    are fewer than n + sqrt(n) (ciphers on small domains: Black and Rogaway, CT-RSA 2002).

    Args:
      indices: integers in [0, n), any shape.
      n: length of the range, from 1 to 2^50.
      key: integers in [0, 2^64); each key gives a shuffle of its own.

    Returns:
      int64 in [0, n), of the shape of the indices; different for different indices.
    """
    assert 1 <= n <= 2**50  # halves far below the 2^32 values of a hash, so that `mod` is fair
    flat = np.asarray(indices).reshape(-1).astype(np.uint64)
    if n > 1:
        keys = _round_keys(key)[: _ROUNDS_OF_FEW if n < _FEW else _ROUNDS]
        flat = _rounds(flat, n, keys)
        outside = np.flatnonzero(flat >= n)
        while len(outside):
            flat[outside] = _rounds(flat[outside], n, keys)
            outside = outside[flat[outside] >= n]
    return flat.astype(np.int64).reshape(np.shape(indices))


def chance(indices: np.ndarray, *key: int) -> np.ndarray:
    """Returns float64 in [0, 1), a hash of each index: a number drawn for it under this key.

    Args:
      indices: integers from 0, any shape.
      key: integers in [0, 2^64).
    """
    first, second = _round_keys(key)[:2]
    bits = (np.asarray(indices).astype(np.uint64) + first) * _MIX[0]
    bits = ((bits ^ (bits >> _HIGH)) + second) * _MIX[1]
    bits = (bits ^ (bits >> _HIGH)) * _MIX[0]
    return (bits >> np.uint64(11)) * 2.0**-53


def row_numbers(index: int, batch_size: int, rows: slice | None) -> np.ndarray:
    """Returns the numbers within an epoch, int64, of some rows of its batch `index`.

    Args:
      rows: which rows of the batch, [start, stop); None means all.
    """
    start, stop, stride = (rows or slice(None)).indices(batch_size)
    assert stride == 1
    return np.arange(index * batch_size + start, index * batch_size + max(start, stop))


@functools.lru_cache(maxsize=64)
def _round_keys(key: tuple[int, ...]) -> tuple[np.uint64, ...]:
    # In words of equal length behind their number, since a SeedSequence takes (1,) for (1, 0).
    words = [word for part in key for word in (part & 0xFFFFFFFF, part >> 32)]
    state = np.random.SeedSequence([len(key), *words]).generate_state(_ROUNDS_OF_FEW, np.uint64)
    return tuple(state)


def _rounds(values: np.ndarray, n: int, keys: tuple[np.uint64, ...]) -> np.ndarray:
    width = math.isqrt(n - 1) + 1
    sizes = np.uint64(-(-n // width)), np.uint64(width)
    halves = list(np.divmod(values, sizes[1]))
    for number, key in enumerate(keys):
        side = number % 2
        # The high bits of a product depend on all bits of its factors.
        mixed = (halves[1 - side] + key) * _MIX[0]
        mixed ^= mixed >> _HIGH
        mixed *= _MIX[1]
        mixed >>= _HIGH
        mixed += halves[side]
        halves[side] = mixed % sizes[side]
    return halves[0] * sizes[1] + halves[1]
