"""Arrays by name in one file, in the safetensors format.

The format is a length in 8 bytes, a JSON header of that length, and raw bytes, little-endian
(https://github.com/huggingface/safetensors). Writing it here takes no dependency, and reading it is
some lines in any language.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.typing import UserError

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


def write_weights(weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes arrays; the same ones make the same bytes.

    Raises:
      UserError: for a dtype that the format does not have.
    """
    # Wide ones first, so that each array begins at a multiple of the size of its elements.
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "jaxrec"}}
    start = 0
    for name in names:
        array = weights[name]
        if array.dtype not in _NAMES:
            raise UserError(f"{name} is {array.dtype}, which safetensors does not have.")
        end = start + array.nbytes
        shape = list(array.shape)
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            # As bytes: NumPy has no buffer of bfloat16.
            file.write(np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, read-only and in memory once they are touched.

    Raises:
      UserError: when it is no file of this format.
    """
    try:
        raw = np.memmap(path, np.uint8, mode="r")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        if not 2 <= length <= len(raw) - 8:
            raise ValueError("the header is cut off")
        header = json.loads(raw[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        return {name: _array(raw[8 + length :], **told) for name, told in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no safetensors file, or damaged ({error}).") from None


def _array(raw: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    start, end = data_offsets
    kind = DTYPES[dtype]
    if not 0 <= start <= end <= len(raw) or end - start != math.prod(shape) * kind.itemsize:
        raise ValueError(f"bytes {start} to {end} do not hold {dtype} of shape {shape}")
    return raw[start:end].view(kind).reshape(shape)
