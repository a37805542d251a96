"""The score endpoint by the open inference protocol, version 2, for clients of KServe and Triton.

The model `score` takes `items` (b, c), ids as BYTES or indices as INT32 or INT64, and what it is
shown: `history` (b, l) of the same, oldest first, filled up on the left with "" or 0; or `user`
(b,) BYTES. It returns `scores` (b, c) FP32, -inf for items that it does not know. Tensors come as
JSON or in binary, after https://github.com/kserve/open-inference-protocol.
"""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pydantic_core
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import jaxrec
from jaxrec.ids import id_text
from jaxrec.serving.deployment import Model
from jaxrec.serving.refusals import Refusal
from jaxrec.serving.schemas import MAX_HISTORY, MAX_ITEMS
from jaxrec.serving.service import Service
from jaxrec.typing import UserError

_HEADER_LENGTH = "inference-header-content-length"
_MOST_ROWS = 256
_MOST = 1 << 20
_KINDS: dict[str, np.dtype[Any]] = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8")}


class Tensor(BaseModel):
    """An input: its data as JSON, flat or nested, or after the JSON in binary."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Wanted(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """An inference request; what it says beyond this is ignored, as the protocol wants."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field("", max_length=256)
    inputs: list[Tensor] = Field(min_length=1, max_length=8)
    outputs: list[Wanted] = Field([], max_length=8)
    parameters: dict[str, Any] = {}


class ProtocolError(BaseModel):
    """The protocol's shape of errors."""

    error: str


_ERRORS = {
    400: "The request is not as the protocol describes.",
    401: "No key, or one that is not known.",
    403: "A key without the scope.",
    404: "There is no such model, or the user is not known.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The model knows nothing of who is asking.",
    429: "Too many requests of this client; see Retry-After.",
    503: "Overloaded; see Retry-After.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ProtocolError, "description": text} for status, text in _ERRORS.items()
}
_SCORES = {
    "description": "Scores, as JSON or in binary.",
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["outputs"]}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{InferRequest.__name__}"}}
    },
}


def add_kserve(app: FastAPI, service: Service, ready: Callable[[], bool]) -> None:
    """Adds the protocol's routes to an application."""

    @app.get("/v2", summary="Open inference protocol: the server.")
    async def server() -> dict[str, Any]:
        return {
            "name": "jaxrec",
            "version": jaxrec.__version__,
            "extensions": ["binary_tensor_data"],
        }

    @app.get("/v2/health/live", summary="Open inference protocol: alive.")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get(
        "/v2/health/ready",
        summary="Open inference protocol: ready.",
        responses={503: {"description": "The server is about to end."}},
    )
    async def is_ready() -> Response:
        return _json({"ready": ready()}, 200 if ready() else 503)

    @app.get(
        "/v2/models/{name}/ready",
        summary="Open inference protocol: a model is ready.",
        responses=_RESPONSES,
    )
    async def model_ready(name: str) -> dict[str, Any]:
        _check_name(name)
        return {"name": name, "ready": True}

    @app.get(
        "/v2/models/{name}",
        summary="Open inference protocol: what a model takes.",
        responses=_RESPONSES,
    )
    async def metadata(name: str) -> dict[str, Any]:
        _check_name(name)
        _, model = service.models.choose("", "primary")
        return _metadata(model)

    @app.post(
        "/v2/models/{name}/infer",
        summary="Open inference protocol: scores of items.",
        response_class=Response,
        responses={200: _SCORES, **_RESPONSES},
        openapi_extra={"requestBody": _BODY},
    )
    async def infer(name: str, request: Request) -> Response:
        _check_name(name)
        asked, binary = _parse(request)
        _, model = service.models.choose("", "primary")
        scores = await _score(service, model, asked, binary)
        note = {"model": model.fingerprint, "variant": "primary", "items": scores.size}
        request.scope["state"]["note"] = note
        return _respond(asked, model, scores)


def _metadata(model: Model) -> dict[str, Any]:
    shown = [
        {"name": "user", "datatype": "BYTES", "shape": [-1]}
        if name == "users"
        else {"name": "history", "datatype": "BYTES", "shape": [-1, -1]}
        for name in model.artefact.shown
    ]
    return {
        "name": "score",
        "platform": "jaxrec",
        "inputs": [*shown, {"name": "items", "datatype": "BYTES", "shape": [-1, -1]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, -1]}],
    }


def _check_name(name: str) -> None:
    if name != "score":
        raise Refusal(404, "no_such_model", f"there is a model 'score'; got {name[:64]!r}.")


def _parse(request: Request) -> tuple[InferRequest, bytes]:
    """Returns the JSON of a request, and the binary data after it. Raises Refusal."""
    body: bytes = request.scope["state"]["body"]
    told = request.headers.get(_HEADER_LENGTH)
    length = len(body)
    if told is not None:
        if not told.isdecimal() or len(told) > 9 or int(told) > len(body):
            raise _wrong(f"{_HEADER_LENGTH} is not a length within the body; got {told[:20]!r}.")
        length = int(told)
    try:
        return InferRequest.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise _wrong(f"{path or 'body'}: {first['msg']}") from None


def _tensors(asked: InferRequest, binary: bytes) -> dict[str, np.ndarray]:
    """Returns the inputs by name, as objects (texts) or integers. Raises Refusal."""
    found: dict[str, np.ndarray] = {}
    for tensor in asked.inputs:
        shape = tuple(tensor.shape)
        count = math.prod(shape)
        if any(size < 1 for size in shape) or count > _MOST:
            raise _wrong(f"{tensor.name[:64]} has the shape {shape}; sizes are from 1 on.")
        if tensor.name in found:
            raise _wrong(f"{tensor.name[:64]} is there twice.")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _from_json(tensor)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(binary):
                raise _wrong(f"{tensor.name[:64]} has more binary data than was sent.")
            values = _from_binary(tensor, binary[:size])
            binary = binary[size:]
        if len(values) != count:
            raise _wrong(f"{tensor.name[:64]} has {len(values)} values for the shape {shape}.")
        array = np.empty(count, object)
        array[:] = values
        found[tensor.name] = array.reshape(shape)
    if binary:
        raise _wrong(f"{len(binary)} bytes of binary data belong to no input.")
    return found


def _from_json(tensor: Tensor) -> list[Any]:
    values: list[Any] = tensor.data or []
    for _ in tensor.shape[1:]:
        if values and isinstance(values[0], list):
            if not all(isinstance(row, list) for row in values):
                raise _wrong(f"{tensor.name[:64]} mixes lists and values.")
            values = [value for row in values for value in row]
    _check_kind(tensor)
    kinds = (str, int, float) if tensor.datatype == "BYTES" else (int,)
    if not all(type(value) in kinds for value in values):
        raise _wrong(f"{tensor.name[:64]} has values that are no {tensor.datatype}.")
    return _ids(tensor, values) if tensor.datatype == "BYTES" else values


def _ids(tensor: Tensor, values: Sequence[Any]) -> list[str]:
    """Returns the texts of ids, "" for those that fill up."""
    try:
        return [id_text(value) or "" for value in values]
    except UserError as error:
        raise _wrong(f"{tensor.name[:64]}: {error}") from None


def _from_binary(tensor: Tensor, data: bytes) -> list[Any]:
    _check_kind(tensor)
    if tensor.datatype != "BYTES":
        kind = _KINDS[tensor.datatype]
        if len(data) % kind.itemsize:
            raise _wrong(f"{tensor.name[:64]} has {len(data)} bytes, no whole {tensor.datatype}.")
        values: list[Any] = np.frombuffer(data, kind).tolist()
        return values
    texts: list[str] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        end = at + 4 + length
        if at + 4 > len(data) or end > len(data):
            raise _wrong(f"{tensor.name[:64]} ends within a text.")
        try:
            texts.append(data[at + 4 : end].decode())
        except UnicodeDecodeError:
            raise _wrong(f"{tensor.name[:64]} holds a text that is not UTF-8.") from None
        at = end
    return _ids(tensor, texts)


def _check_kind(tensor: Tensor) -> None:
    if tensor.datatype not in ("BYTES", *_KINDS):
        raise _wrong(f"{tensor.name[:64]} is BYTES, INT32 or INT64; got {tensor.datatype[:20]!r}.")


async def _score(service: Service, model: Model, asked: InferRequest, binary: bytes) -> np.ndarray:
    """Returns (b, c) float32. Raises Refusal."""
    tensors = _tensors(asked, binary)
    wanted = {"user" if name == "users" else name for name in model.artefact.shown} | {"items"}
    if tensors.keys() != wanted:
        raise _wrong(f"the inputs are {', '.join(sorted(wanted))}; got {', '.join(tensors)[:200]}.")
    rows = len(tensors["items"])
    history = tensors.get("history")
    if history is not None and history.size > rows * MAX_HISTORY:
        raise _wrong(f"history has at most {MAX_HISTORY} columns.")
    if rows > _MOST_ROWS or tensors["items"].size > rows * MAX_ITEMS:
        raise _wrong(f"items has at most {_MOST_ROWS} rows and {MAX_ITEMS} columns.")
    for name, tensor in tensors.items():
        dimensions = 1 if name == "user" else 2
        if tensor.ndim != dimensions or len(tensor) != rows:
            raise _wrong(f"{name} has {dimensions} dimensions and a row for each of items.")
    scores = await asyncio.gather(
        *(
            service.scores(
                model,
                history=_indices(model, tensors["history"][row]) if "history" in tensors else None,
                user=str(tensors["user"][row]) if "user" in tensors else None,
                items=_indices(model, tensors["items"][row]),
            )
            for row in range(rows)
        )
    )
    return np.stack(scores)


def _indices(model: Model, values: Sequence[Any]) -> np.ndarray:
    """Returns (n,) int32 indices of ids or indices; 0 for what the model does not know."""
    most, known = model.catalogue.num_items, model.catalogue.items.known
    return np.array(
        [
            model.catalogue.items.known_index(value)
            if isinstance(value, str)
            else (value if 0 < value <= most and known[value] else 0)
            for value in values
        ],
        np.int32,
    )


def _respond(asked: InferRequest, model: Model, scores: np.ndarray) -> Response:
    in_binary = bool(asked.parameters.get("binary_data_output", False))
    for output in asked.outputs:
        if output.name != "scores":
            raise _wrong(f"the output is scores; got {output.name[:64]!r}.")
        in_binary = bool(output.parameters.get("binary_data", in_binary))
    told: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
    body: dict[str, Any] = {"model_name": "score", "model_version": model.fingerprint[:8]}
    if asked.id:
        body["id"] = asked.id
    if not in_binary:
        # JSON has no infinity; the lowest float32 takes its place.
        lowest = float(np.finfo(np.float32).min)
        told["data"] = np.nan_to_num(scores, neginf=lowest).ravel().tolist()
        return _json({**body, "outputs": [told]}, 200)
    data = scores.astype("<f4").tobytes()
    told["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({**body, "outputs": [told]}).encode()
    return Response(
        head + data,
        headers={_HEADER_LENGTH: str(len(head))},
        media_type="application/octet-stream",
    )


def _json(body: Any, status: int) -> Response:
    return Response(pydantic_core.to_json(body), status, media_type="application/json")


def _wrong(message: str) -> Refusal:
    return Refusal(400, "invalid_request", message)
