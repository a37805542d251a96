"""The score endpoint by the open inference protocol, with a client written after its text."""

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from jaxrec.export import load_artefact

INFER = "/v2/models/score/infer"
HISTORY = [["", "i3", "i5"], ["i9", "i2", "i1"]]
ITEMS = [["i4", "i60"], ["nothing", "i7"]]
LOWEST = float(np.finfo(np.float32).min)


@pytest.fixture(scope="module")
def client(start_for_session: Any, exported: Any, tmp_path_factory: Any) -> Iterator[httpx.Client]:
    audit = tmp_path_factory.mktemp("kserve") / "audit.jsonl"
    flags = (f"--artifact={exported('sasrec', 0)}", f"--audit_log={audit}")
    with start_for_session(*flags).client() as client:
        yield client


@pytest.fixture(scope="module")
def of_users(start_for_session: Any, exported: Any) -> Iterator[httpx.Client]:
    with start_for_session(f"--artifact={exported('mf', 0)}").client() as client:
        yield client


@pytest.fixture(scope="module")
def wanted(exported: Any) -> np.ndarray:
    """(2, 2) scores of ITEMS after HISTORY; -inf for what is unknown."""
    history = np.zeros((2, 8), np.int32)
    history[:, 5:] = [[0, 3, 5], [9, 2, 1]]
    artefact = load_artefact(exported("sasrec", 0))
    return np.asarray(artefact.score(np.array([[4, 60], [0, 7]], np.int32), history=history))


def tensor(name: str, values: Any, datatype: str = "BYTES") -> dict[str, Any]:
    array = np.array(values, object)
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": values}


def ask(client: httpx.Client, **request: Any) -> Any:
    response = client.post(INFER, json=request)
    assert response.status_code == 200, response.text
    return response.json()


def scores_of(answer: Any) -> np.ndarray:
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"]) == ("scores", "FP32")
    found = np.array(output["data"], np.float64).reshape(output["shape"])
    return np.where(found == LOWEST, -np.inf, found)


def pack(values: Any, datatype: str = "BYTES") -> bytes:
    """Binary tensor data: texts each after its length, numbers as little-endian."""
    flat = np.array(values, object).ravel().tolist()
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in flat)
    return np.array(flat, {"INT32": "<i4", "INT64": "<i8"}[datatype]).tobytes()


def ask_in_binary(
    client: httpx.Client, tensors: Sequence[tuple[str, Any, str]], **more: Any
) -> httpx.Response:
    inputs, data = [], b""
    for name, values, datatype in tensors:
        packed = pack(values, datatype)
        told = {"name": name, "shape": list(np.array(values, object).shape), "datatype": datatype}
        inputs.append({**told, "parameters": {"binary_data_size": len(packed)}})
        data += packed
    head = json.dumps({"inputs": inputs, **more}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return client.post(INFER, content=head + data, headers=headers)


def read_binary(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    length = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    data = response.content[length:]
    assert len(data) == output["parameters"]["binary_data_size"]
    return np.frombuffer(data, "<f4").reshape(output["shape"])


def test_a_client_finds_out_what_there_is(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    server = client.get("/v2").json()
    assert server["name"] == "jaxrec" and "binary_tensor_data" in server["extensions"]
    assert client.get("/v2/models/score/ready").json() == {"name": "score", "ready": True}
    told = client.get("/v2/models/score").json()
    assert told["inputs"] == [
        {"name": "history", "datatype": "BYTES", "shape": [-1, -1]},
        {"name": "items", "datatype": "BYTES", "shape": [-1, -1]},
    ]
    assert told["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, -1]}]


def test_scores_in_json_nested_or_flat_by_id_or_index(
    client: httpx.Client, wanted: np.ndarray
) -> None:
    inputs = [tensor("history", HISTORY), tensor("items", ITEMS)]
    answer = ask(client, id="a request", inputs=inputs)
    assert answer["id"] == "a request" and answer["model_name"] == "score"
    np.testing.assert_allclose(scores_of(answer), wanted, atol=1e-5)
    flat = [{**one, "data": [v for row in one["data"] for v in row]} for one in inputs]
    np.testing.assert_allclose(scores_of(ask(client, inputs=flat)), wanted, atol=1e-5)
    numbers = [
        tensor("history", [[0, 3, 5], [9, 2, 1]], "INT32"),
        tensor("items", [[4, 60], [999, 7]], "INT64"),
    ]
    np.testing.assert_allclose(scores_of(ask(client, inputs=numbers)), wanted, atol=1e-5)


def test_scores_in_binary(client: httpx.Client, wanted: np.ndarray) -> None:
    texts = [("history", HISTORY, "BYTES"), ("items", ITEMS, "BYTES")]
    np.testing.assert_allclose(scores_of(ask_in_binary(client, texts).json()), wanted, atol=1e-5)
    all_binary = {"parameters": {"binary_data_output": True}}
    response = ask_in_binary(client, texts, **all_binary)
    np.testing.assert_allclose(read_binary(response), wanted, atol=1e-5)
    output = [{"name": "scores", "parameters": {"binary_data": True}}]
    numbers = [("items", [[4, 60], [0, 7]], "INT64"), ("history", [[0, 3, 5], [9, 2, 1]], "INT32")]
    response = ask_in_binary(client, numbers, outputs=output)
    np.testing.assert_allclose(read_binary(response), wanted, atol=1e-5)
    # What one output says of itself counts more than what is said of all.
    output[0]["parameters"] = {"binary_data": False}
    response = ask_in_binary(client, numbers, outputs=output, **all_binary)
    np.testing.assert_allclose(scores_of(response.json()), wanted, atol=1e-5)


def test_users_are_scored_by_models_that_know_users(of_users: httpx.Client, exported: Any) -> None:
    artefact = load_artefact(exported("mf", 0))
    assert artefact.user_ids is not None
    users = np.array([artefact.user_ids.tolist().index(user) for user in ("u3", "u9")], np.int32)
    wanted = artefact.score(np.array([[1, 2], [3, 4]], np.int32), users=users)
    assert [one["name"] for one in of_users.get("/v2/models/score").json()["inputs"]] == [
        "user",
        "items",
    ]
    inputs = [tensor("user", ["u3", "u9"]), tensor("items", [["i1", "i2"], ["i3", "i4"]])]
    np.testing.assert_allclose(scores_of(ask(of_users, inputs=inputs)), wanted, atol=1e-5)
    inputs[0] = tensor("user", ["u3", "nobody"])
    response = of_users.post(INFER, json={"inputs": inputs})
    assert response.status_code == 404 and "nobody" in response.json()["error"]


GOOD = [tensor("history", [["i3"]]), tensor("items", [["i4"]])]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "inputs: Field required"),
        ({"inputs": []}, "inputs: List should have at least 1"),
        ({"inputs": GOOD[:1]}, "the inputs are history, items; got history"),
        ({"inputs": [*GOOD, tensor("user", ["u"])]}, "the inputs are history, items"),
        ({"inputs": [GOOD[0], GOOD[0]]}, "history is there twice"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [1, 2]}]}, "has 1 values for the shape (1, 2)"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [0, 0]}]}, "sizes are from 1 on"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [-1, -1]}]}, "sizes are from 1 on"),
        ({"inputs": [GOOD[0], tensor("items", ["i4"])]}, "items has 2 dimensions"),
        ({"inputs": [GOOD[0], {**GOOD[1], "shape": [1 << 40, 1 << 40]}]}, "sizes are from 1 on"),
        ({"inputs": [GOOD[0], {**GOOD[1], "datatype": "FP32"}]}, "BYTES, INT32 or INT64"),
        ({"inputs": [GOOD[0], {**GOOD[1], "datatype": "INT64"}]}, "no INT64"),
        ({"inputs": [GOOD[0], tensor("items", [[True]], "BYTES")]}, "no BYTES"),
        ({"inputs": [GOOD[0], tensor("items", [[True]], "INT32")]}, "no INT32"),
        ({"inputs": [GOOD[0], tensor("items", [["i4"], ["i5"]])]}, "a row for each of items"),
        ({"inputs": GOOD, "outputs": [{"name": "logits"}]}, "the output is scores"),
        (
            {"inputs": [GOOD[0], {**GOOD[1], "parameters": {"binary_data_size": 5}}]},
            "more binary data than was sent",
        ),
        ({"inputs": [tensor("history", [[""]]), GOOD[1]]}, "no item of the history"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_the_protocol(
    client: httpx.Client, request_: dict[str, Any], message: str
) -> None:
    response = client.post(INFER, json=request_)
    assert response.status_code in (400, 422)
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


def test_broken_binary_data_is_refused(client: httpx.Client) -> None:
    def refused(data: bytes, size: int | None = None, length: str | None = None) -> str:
        told = {**GOOD[1], "parameters": {"binary_data_size": len(data) if size is None else size}}
        told.pop("data")
        head = json.dumps({"inputs": [GOOD[0], told]}).encode()
        headers = {"Inference-Header-Content-Length": length or str(len(head))}
        response = client.post(INFER, content=head + data, headers=headers)
        assert response.status_code == 400
        return str(response.json()["error"])

    good = pack([["i4"]])
    assert "ends within a text" in refused(good[:-1])
    assert "ends within a text" in refused(b"\xff\xff\xff\xff" + b"i4")
    assert "ends within a text" in refused(b"\x01\x00")
    assert "is not UTF-8" in refused(b"\x02\x00\x00\x00\xff\xfe")
    assert "has 2 values for the shape (1, 1)" in refused(good * 2)
    assert "bytes of binary data belong to no input" in refused(good + b"x", len(good))
    assert "more binary data than was sent" in refused(good, 100)
    for length in ("-1", "1e3", "9" * 30, "99999"):
        assert "is not a length within the body" in refused(good, length=length)


def test_other_models_are_not_there(client: httpx.Client) -> None:
    for response in (
        client.get("/v2/models/other"),
        client.get("/v2/models/other/ready"),
        client.post("/v2/models/other/infer", json={"inputs": GOOD}),
    ):
        assert response.status_code == 404 and list(response.json()) == ["error"]
