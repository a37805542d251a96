"""The safetensors format, byte by byte and against the library where it is installed."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.export.weights import read_weights, write_weights
from jaxrec.typing import UserError

WEIGHTS = {
    "b": np.array([[1, -2, 3]], np.int8),
    "c": np.array([1.5, -2], jnp.bfloat16),
    "a": np.array(0.5, np.float32),
    "d": np.zeros((0, 4), np.uint8),
    "e": np.arange(6, dtype=np.int32).reshape(2, 3).T,  # not contiguous
}


def test_a_file_is_a_length_a_header_and_the_bytes(tmp_path: Path) -> None:
    write_weights({"b": WEIGHTS["b"], "c": WEIGHTS["c"]}, tmp_path / "w")
    raw = (tmp_path / "w").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    assert json.loads(raw[8 : 8 + length]) == {
        "__metadata__": {"format": "jaxrec"},
        "c": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},  # the wider first
        "b": {"dtype": "I8", "shape": [1, 3], "data_offsets": [4, 7]},
    }
    assert raw[8 + length :] == bytes([0xC0, 0x3F, 0x00, 0xC0, 1, 254, 3])


def test_what_is_written_is_read_in_any_order_of_the_dict(tmp_path: Path) -> None:
    write_weights(WEIGHTS, tmp_path / "w")
    write_weights(dict(reversed(WEIGHTS.items())), tmp_path / "v")
    assert (tmp_path / "w").read_bytes() == (tmp_path / "v").read_bytes()
    found = read_weights(tmp_path / "w")
    assert found.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_library_reads_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    plain = {name: array for name, array in WEIGHTS.items() if name != "c"}  # NumPy has no bfloat16
    write_weights(plain, tmp_path / "w")
    found = library.load_file(tmp_path / "w")
    assert found.keys() == plain.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\2" + b"\0" * 7 + b"[]", b"\xff" * 40, b"\x40" + b"\0" * 7 + b"{}"]
)
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(UserError, match="no safetensors file, or damaged"):
        read_weights(tmp_path / "w")


def test_arrays_beyond_the_end_are_refused(tmp_path: Path) -> None:
    write_weights(WEIGHTS, tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-1])
    with pytest.raises(UserError, match="do not hold"):
        read_weights(tmp_path / "w")


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x is complex64"):
        write_weights({"x": np.zeros(1, np.complex64)}, tmp_path / "w")
