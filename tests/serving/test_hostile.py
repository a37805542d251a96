"""Clients that are broken, slow or hostile: they get documented answers, and others are served."""

import contextlib
import gzip
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ASK = json.dumps({"history": ["i3", "i5"], "k": 3}).encode()
ROUTES = ("/v1/recommend", "/v1/score", "/v1/similar", "/v1/events", "/v2/models/score/infer")
PATIENCE = 1.5
# Documented for requests that are not as described.
REFUSED = {400, 404, 405, 408, 413, 415, 422, 431}
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def serving(start_for_session: Any, exported: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("hostile")
    return start_for_session(
        f"--artifact={exported('sasrec', 0)}",
        f"--state=sqlite:{folder / 'events.db'}",
        f"--audit_log={folder / 'audit.jsonl'}",
        f"--client_timeout={PATIENCE}",
    )


@pytest.fixture(scope="module")
def client(serving: Any) -> Iterator[httpx.Client]:
    with serving.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _still_serves(serving: Any, client: httpx.Client) -> Iterator[None]:
    """Whatever a test did, the server has no defect to tell of, and answers."""
    yield
    assert serving.complaints() == ""
    assert client.post("/v1/recommend", content=ASK).status_code == 200
    assert client.get("/readyz").status_code == 200


def check_error(response: httpx.Response, *statuses: int) -> str:
    """Checks that a response is an error of the documented shape; returns its message."""
    assert response.status_code in statuses, response.text
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    if response.url.path.startswith("/v2"):
        assert list(told) == ["error"]
        return str(told["error"])
    assert set(told) == {"error", "request_id"}
    assert set(told["error"]) == {"code", "message", "fields"}
    assert told["error"]["message"]
    return str(told["error"]["message"])


def raw(serving: Any, request: bytes, timeout: float = 10) -> bytes:
    """Sends bytes, and returns all that comes back until the server closes or says no more."""
    with serving.connect(timeout) as connection:
        connection.sendall(request)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    got = b""
    try:
        while part := connection.recv(1 << 16):
            got += part
    except ConnectionResetError:
        pass
    return got


def post(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [
        f"POST {path} HTTP/{version}",
        "Host: localhost",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def statuses(received: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


@FUZZ
@given(st.sampled_from(ROUTES), st.binary(max_size=200))
def test_bodies_of_random_bytes_are_refused(client: httpx.Client, path: str, body: bytes) -> None:
    check_error(client.post(path, content=body), 400, 422)


ids = st.one_of(st.sampled_from([f"i{n}" for n in range(1, 9)]), st.text(max_size=5))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("i3")
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = {
    "user": ids,
    "history": st.lists(ids, max_size=12),
    "items": st.lists(ids, min_size=1, max_size=12),
    "item": ids,
    "k": st.integers(-3, 30),
    "exclude_seen": st.booleans(),
    "explain": st.booleans(),
    "fallback": st.sampled_from(["none", "popular"]),
    "variant": st.sampled_from(["primary", "candidate"]),
    "timeout_ms": st.integers(0, 60_001),
    "context": st.dictionaries(st.text(max_size=6), scalars, max_size=3),
    "filters": st.fixed_dictionaries(
        {}, optional={name: st.lists(ids) for name in ("allow", "deny", "categories")}
    ),
    "events": st.lists(
        st.fixed_dictionaries(
            {"user": ids, "item": ids}, optional={"time": st.floats(), "type": st.text(max_size=9)}
        ),
        max_size=4,
    ),
    "id": st.text(max_size=4),
    "inputs": st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["items", "history", "user"]),
                "shape": st.lists(st.integers(-1, 3), max_size=3),
                "datatype": st.sampled_from(["BYTES", "INT32", "INT64", "FP32"]),
            },
            optional={
                "data": st.lists(st.one_of(ids, st.integers(), st.lists(ids)), max_size=6),
                "parameters": st.dictionaries(
                    st.sampled_from(["binary_data_size", "x"]), scalars, max_size=1
                ),
            },
        ),
        max_size=3,
    ),
}
# Mostly what fits, so that fuzzing reaches what is behind the schema.
bodies = st.fixed_dictionaries(
    {}, optional={name: st.one_of(good, good, good, values) for name, good in FIELDS.items()}
)
BELONGS = {
    "/v1/recommend": {"user", "history", "k", "filters", "context", "exclude_seen", "explain"}
    | {"fallback", "variant", "timeout_ms"},
    "/v1/score": {"user", "history", "items", "variant", "timeout_ms"},
    "/v1/similar": {"item", "k", "variant", "timeout_ms"},
    "/v1/events": {"events"},
    "/v2/models/score/infer": {"id", "inputs"},
}


@settings(FUZZ, max_examples=400)
@given(st.sampled_from(ROUTES), bodies, st.booleans())
def test_json_of_any_shape_is_answered_or_refused(
    client: httpx.Client, path: str, body: dict[str, Any], strict: bool
) -> None:
    if strict:
        body = {name: value for name, value in body.items() if name in BELONGS[path]}
    text = json.dumps(body).encode()  # with NaN, Infinity and halves of surrogate pairs
    response = client.post(path, content=text)
    # timeout_ms may be too short, which is no fault of anybody.
    if response.status_code == 503:
        check_error(response, 503)
        assert response.headers["retry-after"]
    elif response.status_code != 200:
        check_error(response, 400, 404, 422)
    else:
        response.json()


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("recommend", '{"history": ["i3"], "k": 0}'),
        ("recommend", '{"history": ["i3"], "k": -1}'),
        ("recommend", '{"history": ["i3"], "k": 1000000000}'),
        ("recommend", '{"history": ["i3"], "k": 21}'),
        ("recommend", '{"history": ["i3"], "k": 1.5}'),
        ("recommend", '{"history": ["i3"], "k": "3"}'),
        ("recommend", '{"history": ["i3"], "k": true}'),
        ("recommend", '{"history": ["i3"], "k": NaN}'),
        ("recommend", '{"history": ["i3"], "k": %s}' % ("9" * 5000)),
        ("recommend", '{"history": ["i3"], "context": {"a": Infinity}}'),
        ("recommend", '{"history": ["i3"], "context": {"a": 1e999}}'),
        ("recommend", '{"history": ["i3"], "context": {"a": null}}'),
        ("recommend", '{"history": [3]}'),
        ("recommend", '{"history": "i3"}'),
        ("recommend", '{"history": [""]}'),
        ("recommend", '{"history": ["\\ud800"]}'),
        ("recommend", '{"user": "\\udfff"}'),
        ("recommend", '{"user": "%s"}' % ("\\u0000" * 3)),
        ("recommend", '{"history": ["i3"], "timeout_ms": 0}'),
        ("recommend", '{"history": ["i3"], "no_such_field": 1}'),
        ("recommend", '{"history": ["i3"], "filters": {"category": ["x"]}}'),
        ("recommend", '{"history": [%s"i3"]}' % ('"i3",' * 10_000)),
        ("recommend", "[" * 100_000 + "]" * 100_000),
        ("recommend", '{"history":' + "[" * 100_000 + "]" * 100_000 + "}"),
        ("recommend", '{"context":' + '{"a":' * 50_000 + "1" + "}" * 50_001),
        ("recommend", ""),
        ("recommend", "null"),
        ("recommend", '{"history": ["i3"]} {}'),
        ("score", '{"history": ["i3"], "items": []}'),
        ("score", '{"history": ["i3"], "items": [%s"i3"]}' % ('"i3",' * 1000)),
        ("similar", "{}"),
        ("events", '{"events": []}'),
        ("events", '{"events": [{"user": "u", "item": "i\\u00003"}]}'),
        ("events", '{"events": [{"user": "u\\u0000", "item": "i3"}]}'),
        ("events", '{"events": [{"user": "u", "item": "i3", "type": "\\u0000"}]}'),
        ("events", '{"events": [{"user": "u", "item": "i3", "time": NaN}]}'),
        ("events", '{"events": [{"user": "u", "item": "i3", "time": -Infinity}]}'),
        ("events", '{"events": [{"user": "u", "item": "i3", "time": -1}]}'),
        ("events", '{"events": [{"user": "u", "item": "i3", "time": 1e12}]}'),
    ],
)
def test_what_does_not_fit_is_refused_in_the_documented_shape(
    client: httpx.Client, route: str, body: str
) -> None:
    response = client.post(f"/v1/{route}", content=body.encode())
    message = check_error(response, 422)
    assert len(message) < 500
    assert len(response.content) < 5000


def test_odd_but_right_requests_are_answered(client: httpx.Client) -> None:
    wanted = client.post("/v1/recommend", content=ASK).json()["items"]

    def items(body: str, **headers: str) -> Any:
        response = client.post("/v1/recommend", content=body.encode(), headers=headers)
        assert response.status_code == 200, response.text
        return response.json()["items"]

    assert items('{"k": 7, "history": ["i3", "i5"], "k": 3}') == wanted  # the last one counts
    assert items(' \n\t{"history": ["i3", "i5"], "k": 3}\r\n ') == wanted
    assert items('{"history": ["i3", "i\\u0035"], "k": 3, "user": "a\\u0001b"}') == wanted
    assert items(ASK.decode(), **{"content-type": "text/plain"}) == wanted
    assert items(ASK.decode(), **{"content-type": "application/x-www-form-urlencoded"}) == wanted
    assert items(ASK.decode(), **{"content-encoding": "identity"}) == wanted
    parts = iter([ASK[:5], b"", ASK[5:9], ASK[9:]])
    assert client.post("/v1/recommend", content=parts).json()["items"] == wanted  # in chunks
    huge = {"history": ["i3", "i5"], "k": 3, "context": {"a": 10**300, "b": -1e-300, "c": True}}
    assert items(json.dumps(huge)) == wanted


def test_a_body_of_mistakes_alone_holds_nobody_up(client: httpx.Client) -> None:
    text = ",".join(f'"a{n}":null' for n in range(60_000))
    body = '{"history": ["i3"], "context": {' + text + "}}"
    took = []
    for _ in range(3):  # of which the machine may be busy with something else in one
        start = time.monotonic()
        assert "mistakes" in check_error(client.post("/v1/recommend", content=body), 422)
        took.append(time.monotonic() - start)
    assert min(took) < 0.5


def test_compressed_bodies_are_refused(client: httpx.Client) -> None:
    headers = {"content-encoding": "gzip"}
    response = client.post("/v1/recommend", content=gzip.compress(ASK), headers=headers)
    assert "without Content-Encoding" in check_error(response, 415)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_10_megabytes_is_refused_and_the_client_can_read_why(
    serving: Any, chunked: bool
) -> None:
    body = b'{"history": ["' + b"x" * 10_000_000 + b'"]}'
    content: Any = (body[n : n + 65_536] for n in range(0, len(body), 65_536)) if chunked else body
    for _ in range(3):
        with serving.client() as client:
            response = client.post("/v1/recommend", content=content)
            assert "at most 1,048,576 bytes" in check_error(response, 413)
            assert client.get("/healthz").status_code == 200
            if chunked:
                break


def test_a_body_just_below_the_limit_is_read(client: httpx.Client) -> None:
    body = ASK + b" " * ((1 << 20) - len(ASK))
    assert client.post("/v1/recommend", content=body).status_code == 200
    check_error(client.post("/v1/recommend", content=body + b" "), 413)


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "FOO"]
)
def test_other_methods_are_told_which_one_to_use(client: httpx.Client, method: str) -> None:
    response = client.request(method, "/v1/recommend")
    if method == "FOO":
        assert response.status_code == 400  # the parser knows all methods there are
        return
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    if method != "HEAD":
        check_error(response, 405)


def test_unknown_paths_are_not_found(client: httpx.Client) -> None:
    for path in ("/v1/nothing", "/v1/recommend/", "//v1/recommend", "/v1/", "/../etc/passwd"):
        check_error(client.post(path, content=ASK), 404, 405)
    for path in ("/nothing", "/app.js/../../server.py", "/v2/nothing", "/%00", "/%ff", "/page"):
        check_error(client.get(path), 404)
    response = client.get("/v2/models/%F0%9F%8E%AC%00")
    assert "there is a model 'score'" in check_error(response, 404)


@pytest.mark.parametrize("query", ["%ff%fe", "%00", "%ed%a0%80", "%", "%zz", "%F0%9F%8E%AC", "'--"])
def test_queries_in_any_encoding_are_answered(client: httpx.Client, query: str) -> None:
    for path in ("/v1/items", "/v1/users"):
        assert client.get(f"{path}?query={query}").status_code == 200
        check_error(client.get(f"{path}?limit={query}"), 422)
        check_error(client.get(f"{path}?limit={'9' * 5000}"), 422)
    check_error(client.get("/v1/items?query=" + "a" * 257), 422)


def test_http_of_all_kinds(serving: Any) -> None:
    def got(request: bytes) -> list[int]:
        return statuses(raw(serving, request))

    assert got(post("/v1/recommend", ASK, version="1.0")) == [200]
    assert b"connection: close" in raw(serving, post("/v1/recommend", ASK, version="1.0"))
    close = post("/v1/recommend", ASK, "Connection: close")
    assert got(post("/v1/recommend", ASK) * 5 + close) == [200] * 6  # pipelined
    assert got(post("/v1/recommend", b"{") + close) == [422, 200]
    assert got(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + close) == [200, 200]
    expects = post("/v1/recommend", ASK, "Expect: 100-continue", "Connection: close")
    assert got(expects) == [100, 200]
    upgrade = ("Connection: Upgrade, close", "Upgrade: websocket")
    assert got(post("/v1/recommend", ASK, *upgrade))[0] == 422  # what follows is no HTTP
    for broken in (
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/recommend HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/recommend HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /v1/recommend HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
    ):
        answer = raw(serving, broken)
        assert statuses(answer) == [400], (broken, answer)
        assert b'{"error":{"code":"invalid_request"' in answer


def test_a_head_without_end_is_refused(serving: Any) -> None:
    answer = raw(serving, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 600_000)
    assert statuses(answer) == [431]
    lines = b"".join(b"X-%d: a\r\n" % n for n in range(60_000))
    assert statuses(raw(serving, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + lines)) == [431]


def open_files(client: httpx.Client) -> int:
    found = re.search(r"^process_open_fds (\d+)", client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def test_slow_clients_are_ended_and_others_served_meanwhile(serving: Any, client: Any) -> None:
    before = open_files(client)
    with contextlib.ExitStack() as stack:

        def connect(*parts: bytes) -> socket.socket:
            connection = stack.enter_context(serving.connect())
            for part in parts:
                connection.sendall(part)
                time.sleep(0.05)
            return connection

        unfinished = b"POST /v1/recommend HTTP/1.1\r\nContent-Length: 500\r\n\r\n{"
        ask = post("/v1/recommend", ASK)
        for _ in range(100):  # they say nothing
            connect()
        connect(ask + b"\r\n", b"\r\n")
        connect(post("/v1/recommend", ASK, "Content-Encoding: gzip")[:-1], ASK[-1:])
        head_without_end = connect(b"POST /v1/recommend HTTP/1.1\r\nX: ")
        body_without_end = connect(unfinished)
        head_by_bytes, body_by_bytes = connect(b"POST "), connect(unfinished)
        # Nobody reads these answers, of 50 MB.
        connect(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
        connect(*[b"GET /openapi.json HTTP/1.0\r\nHost: localhost\r\n\r\n"])
        assert open_files(client) > before + 100
        times, deadline = [], time.monotonic() + 8 * PATIENCE
        while open_files(client) > before:
            for connection in (head_by_bytes, body_by_bytes):
                with contextlib.suppress(OSError):  # it was ended
                    connection.sendall(b" ")
            start = time.monotonic()
            assert client.post("/v1/recommend", content=ASK).status_code == 200
            times.append(time.monotonic() - start)
            assert start < deadline, "clients are not ended"
            time.sleep(0.05)
        assert len(times) > 10 and np.median(times) < 0.25
        assert read_all(head_without_end) == b""
        assert statuses(read_all(body_without_end)) == [408]


def test_clients_that_leave_disturb_nobody(serving: Any, client: httpx.Client) -> None:
    long = json.dumps({"history": [f"i{n}" for n in range(1, 61)], "k": 20, "explain": True})
    before = open_files(client)
    for n in range(60):
        with serving.connect() as connection:
            connection.sendall(post("/v1/recommend", long.encode()) * (1 + n % 20))
            if n % 3 == 0:
                connection.recv(10)
            elif n % 3 == 1:  # a reset in place of a proper end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 5
    while open_files(client) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
