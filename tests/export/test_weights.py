"""The safetensors format, byte by byte and against the library where it is installed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """torch.nn.Linear, whose weight is (outputs, inputs)."""
    weight = weights[f"{name}.kernel"].T
    return x @ weight.T + weights[f"{name}.bias"]


def layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / spread * weights[f"{name}.scale"] + weights[f"{name}.bias"]


def test_names_and_shapes_are_enough_to_write_the_model_again(
    exported: Callable[[str], Any],
) -> None:
    artefact = exported("sasrec").artefact
    weights = read_weights(artefact.path / "weights.safetensors")
    history = np.array([3, 17, 17, 30, 5])
    x = weights["items.table"][history] + weights["positions"][: len(history)][::-1]
    block = "blocks.0"
    normed = layer_norm(x, weights, f"{block}.attention_norm")
    qkv = linear(normed, weights, f"{block}.attention.project_in")
    mixed = []
    for head in range(2):
        q, k, v = (part[:, 4 * head : 4 * head + 4] for part in np.split(qkv, 3, axis=1))
        logits = q @ k.T / 2.0 + np.triu(np.full((5, 5), -np.inf), 1)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        mixed.append(shares / shares.sum(axis=1, keepdims=True) @ v)
    attended = np.concatenate(mixed, axis=1)
    x = x + linear(attended, weights, f"{block}.attention.project_out")
    normed = layer_norm(x, weights, f"{block}.feed_forward_norm")
    wide = linear(normed, weights, f"{block}.feed_forward.up")
    wide = wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    x = x + linear(wide, weights, f"{block}.feed_forward.down")
    user = layer_norm(x, weights, "output_norm")[-1]
    everything = np.arange(1, 31)[None]
    found = artefact.score(everything, history=history[None])
    np.testing.assert_allclose(found[0], weights["items.table"][1:] @ user, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("sasrec", ["| `items.table` | (31, 8) | float32 | Embedding.weight |"]),
        ("sasrec", ["| `blocks.0.feed_forward.up.kernel` | (8, 12) | float32 | Linear.weight.T |"]),
        ("sasrec", ["| `output_norm.scale` | (8,) | float32 | LayerNorm.weight |"]),
        ("ligr", ["| `output_norm.scale` | (8,) | float32 | RMSNorm.weight |"]),
        ("int8", ["| `items.table.codes` | (31, 8) | int8 |  |"]),
        ("bfloat16", ["| `users.table` | (41, 6) | bfloat16 | Embedding.weight |"]),
    ],
)
def test_the_readme_lists_all_weights(
    name: str, rows: list[str], exported: Callable[[str], Any]
) -> None:
    artefact = exported(name).artefact
    text = (artefact.path / "README.md").read_text()
    assert all(row in text for row in rows)
    assert all(f"| `{weight}` |" in text for weight in artefact.weights)
