"""What a key may see and remove of a user, refused rules, and queries, on a running server."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jaxrec.serving.keys import new_key

RULES = '[[deny]]\nname = "recalled"\nitems = ["i1", "nothing"]\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("users")
    (folder / "rules.toml").write_text(RULES)
    return folder


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, dict[str, str]]:
    scopes = {"shop": ("serve", "events"), "care": ("users",)}
    made = {name: new_key(folder / "keys", name, scopes=scope) for name, scope in scopes.items()}
    return {name: {"x-api-key": text} for name, text in made.items()}


@pytest.fixture(scope="module")
def server(
    folder: Path, keys: Any, start_for_session: Any, exported: Callable[..., Path]
) -> Iterator[Any]:
    serving = start_for_session(
        f"--artifact={exported('sasrec')}",
        f"--rules={folder / 'rules.toml'}",
        f"--keys={folder / 'keys'}",
        f"--state=sqlite:{folder / 'state.db'}",
        f"--audit_log={folder / 'audit.jsonl'}",
        "--log_users",
    )
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def test_a_key_that_may_sees_and_removes_what_is_kept_of_a_user(
    client: httpx.Client, keys: Any, folder: Path
) -> None:
    events = [
        {"user": "a/b 1", "item": "i3", "time": "2024-05-01T10:00:00Z", "type": "click"},
        {"user": "a/b 1", "item": 4, "time": 5},
        {"user": 7, "item": "i5", "time": 6},
    ]
    done = client.post("/v1/events", json={"events": events}, headers=keys["shop"])
    assert done.status_code == 200 and done.json()["unknown_items"] == ["4"]
    path = "/v1/users/a%2Fb%201"
    assert client.get(path).status_code == 401
    assert client.get(path, headers=keys["shop"]).status_code == 403
    assert client.delete(path, headers=keys["shop"]).status_code == 403
    found = client.get(path, headers=keys["care"])
    assert found.json() == {
        "user": "a/b 1",
        "events": [
            {"item": "4", "type": "view", "time": 5.0},
            {"item": "i3", "type": "click", "time": 1_714_557_600.0},
        ],
    }
    assert client.delete(path, headers=keys["care"]).status_code == 204
    gone = client.get(path, headers=keys["care"])
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "unknown_user"
    assert client.get("/v1/users/7.0", headers=keys["care"]).json()["user"] == "7"
    asked = {"user": "a/b 1"}
    assert client.post("/v1/recommend", json=asked, headers=keys["shop"]).status_code == 404
    time.sleep(0.3)
    logged = (folder / "audit.jsonl").read_text()
    assert '"route":"DELETE /v1/users/{id}","status":204' in logged and '"user":"a/b 1"' in logged


def test_queries_that_no_route_reads_are_refused(client: httpx.Client, keys: Any) -> None:
    for path in ("/v1/items?qery=a", "/v1/users?query=a&limits=3", "/v1/model?x", "/v1/rules?y=1"):
        answer = client.get(path, headers=keys["shop"])
        assert answer.status_code == 422 and "query parameter" in answer.json()["error"]["message"]
    answer = client.post("/v1/recommend?k=3", json={"history": ["i2"]}, headers=keys["shop"])
    assert answer.status_code == 422
    assert client.get("/v1/items?query=i2&limit=3", headers=keys["shop"]).status_code == 200


def test_rules_are_told_and_a_refused_file_shows_until_it_is_mended(
    client: httpx.Client, keys: Any, folder: Path
) -> None:
    def model() -> Any:
        return client.get("/v1/model", headers=keys["shop"]).json()

    def until(wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not wanted():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    told = client.get("/v1/rules", headers=keys["shop"]).json()
    assert told["refused"] is None
    (rule,) = told["rules"]["primary"]["rules"]
    assert rule == {"kind": "deny", "name": "recalled", "when": {}, "items": ["i1", "nothing"]}
    assert "'nothing'" in told["rules"]["primary"]["warnings"][0]
    score = model()["models"]["primary"]["score"]
    assert score["objective"] == "FullSoftmax" and "softmax" in score["means"]
    assert 'jaxrec_refused{file="rules"} 0.0' in client.get("/metrics").text
    (folder / "rules.toml").write_text("[[denied]]\n")
    until(lambda: model()["rules_refused"] is not None)
    assert "denied" in model()["rules_refused"]
    assert (
        client.get("/v1/rules", headers=keys["shop"]).json()["refused"] == model()["rules_refused"]
    )
    assert 'jaxrec_refused{file="rules"} 1.0' in client.get("/metrics").text
    (folder / "rules.toml").write_text(RULES)
    until(lambda: model()["rules_refused"] is None)
    assert 'jaxrec_refused{file="rules"} 0.0' in client.get("/metrics").text
