"""Drills: what breaks under load, and what must hold meanwhile. docs/drills.md tells of each."""

import contextlib
import http.client
import itertools
import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from jaxrec.export import load_artefact
from jaxrec.serving.app import ROUTES
from jaxrec.serving.keys import new_key

ASK = {"history": ["i3", "i5"], "k": 5}


class Load:
    """Threads that do the same over and over while a test does something else.

    Attributes:
      count: how often it was done.
    """

    def __init__(self, work: Callable[[int], Any], workers: int = 6) -> None:
        self._work, self.count = work, 0
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(workers)]

    def _run(self, worker: int) -> None:
        try:
            while not self._stop.is_set():
                self._work(worker)
                self.count += 1
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        if self._errors:
            raise self._errors[0]


def until(holds: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def point(link: Path, target: Path) -> None:
    """Moves a symbolic link to another place, at once."""
    new = link.with_name(f"{link.name}.new")
    new.symlink_to(target)
    new.rename(link)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def is_behind(status: int, text: str) -> bool:
    """Whether a server says that it stood still, as on a machine that is shared it may.

    Then it answers what it has first, and clients come again.
    """
    return status == 503 and "the server is behind" in text


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def stored(client: httpx.Client, user: str) -> list[str]:
    """The stored events of a user, of items that no model knows."""
    body = {"user": user, "fallback": "popular"}
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    unknown: list[str] = response.json()["unknown_items"]
    return unknown


def send(client: httpx.Client, user: str, *items: str) -> httpx.Response:
    events = [{"user": user, "item": item, "time": 1.0 + n} for n, item in enumerate(items)]
    return client.post("/v1/events", json={"events": events})


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'events.db'}"
    server = request.getfixturevalue("redis_server")
    server.say("FLUSHALL")
    return str(server.url)


def test_acknowledged_events_survive_sigkill_under_load_and_count_once(
    start: Any, exported: Any, state: str
) -> None:
    flags = (f"--artifact={exported('sasrec', 0)}", f"--state={state}")
    serving = start(*flags)
    acknowledged: dict[str, list[str]] = {f"u{n}": [] for n in range(8)}
    numbers = itertools.count()

    def work(worker: int) -> None:
        with contextlib.suppress(httpx.TransportError), serving.client() as client:
            while True:
                item = f"e{next(numbers)}"
                event = {"user": f"u{worker}", "item": item, "time": float(item[1:])}
                body = {"events": [event, event]}
                if client.post("/v1/events", json=body).status_code == 200:
                    acknowledged[f"u{worker}"].append(item)
        time.sleep(0.02)

    with Load(work, workers=8):
        until(lambda: sum(map(len, acknowledged.values())) > 300)
        serving.kill()
        count = sum(map(len, acknowledged.values()))
    again = start(*flags)
    with again.client() as client:
        for user, items in acknowledged.items():
            kept = stored(client, user)
            assert set(items) <= set(kept)
            assert len(kept) == len(set(kept)) <= len(items) + 1  # one may have been on its way
        last = acknowledged["u0"][-1]
        sent = {"user": "u0", "item": last, "time": float(last[1:])}
        before = stored(client, "u0")
        assert client.post("/v1/events", json={"events": [sent]}).status_code == 200
        assert stored(client, "u0") == before
    assert count > 300


def test_sigterm_under_load_answers_all_that_was_accepted(start: Any, exported: Any) -> None:
    serving = start(f"--artifact={exported('sasrec', 0)}", "--drain=0.3")
    body = json.dumps(ASK)
    refused: set[int] = set()
    cut_off: list[int] = []
    behind: list[bool] = []

    def work(worker: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=20)
        try:
            connection.connect()
        except (ConnectionRefusedError, ConnectionResetError):
            refused.add(worker)
            time.sleep(0.02)
            return
        with contextlib.closing(connection):
            for n in itertools.count():  # until the server says that it closes
                try:
                    connection.request("POST", "/v1/recommend", body)
                    response = connection.getresponse()
                except ConnectionResetError:
                    assert n == 0
                    cut_off.append(worker)
                    return
                answer = json.loads(response.read())
                behind.append(is_behind(response.status, str(answer)))
                assert behind[-1] or (response.status == 200 and len(answer["items"]) == 5)
                if response.getheader("connection") == "close":
                    return

    with Load(work, workers=12) as load:
        until(lambda: metric_of(serving) > 200)
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        with serving.client() as client:
            response = client.get("/readyz")
            assert response.status_code == 503 and "about to end" in response.text
        assert serving.process.wait(20) == 0
        until(lambda: len(refused) == 12)
    # Between the last look for clients and the end of listening are microseconds.
    assert load.count > 12 and len(cut_off) <= 1
    assert sum(behind) < 0.1 * len(behind)
    assert serving.said.read_text().endswith("stopped.\n")
    assert serving.complaints() == ""


def metric_of(serving: Any) -> float:
    with serving.client() as client:
        return metric(client, "jaxrec_impressions_total")


type Answers = dict[str, list[tuple[str, float]]]


@pytest.fixture(scope="module")
def answers(exported: Any) -> Answers:
    """What each of three artefacts answers to `ASK`, by fingerprint."""
    told = {}
    for seed in (0, 1):
        artefact = load_artefact(exported("sasrec", seed))
        history = np.array([[0, 0, 0, 0, 0, 0, 3, 5]], np.int32)
        items, scores = (np.asarray(one)[0] for one in artefact.recommend(history=history))
        pairs = zip(items[:5].tolist(), scores[:5].tolist(), strict=True)
        told[artefact.fingerprint] = [(f"i{item}", score) for item, score in pairs]
    assert len({tuple(id for id, _ in one) for one in told.values()}) == 2
    return told


def check_answer(response: httpx.Response, answers: Answers) -> str:
    """Checks that an answer is that of the model that it names; returns which one that is."""
    assert response.status_code == 200, response.text
    told = response.json()
    wanted = answers[told["model"]["fingerprint"]]
    assert [item["id"] for item in told["items"]] == [id for id, _ in wanted]
    scores = [item["score"] for item in told["items"]]
    assert scores == pytest.approx([score for _, score in wanted], abs=1e-5)
    return str(told["model"]["fingerprint"])


def test_artefacts_are_swapped_under_load_and_bad_ones_and_bad_rules_refused(
    start: Any, exported: Any, answers: Answers, tmp_path: Path
) -> None:
    first, second = exported("sasrec", 0), exported("sasrec", 1)
    link, rules = tmp_path / "now", tmp_path / "rules.toml"
    harmed = tmp_path / "harmed"
    shutil.copytree(second, harmed)
    weights = bytearray((harmed / "weights.safetensors").read_bytes())
    weights[-5] ^= 16
    (harmed / "weights.safetensors").write_bytes(weights)
    rules.write_text("")
    point(link, first)
    serving = start(f"--artifact={link}", f"--rules={rules}")
    clients = [serving.client() for _ in range(6)]
    seen: list[str] = []
    behind: list[bool] = []

    def work(worker: int) -> None:
        response = clients[worker].post("/v1/recommend", json=ASK)
        behind.append(is_behind(response.status_code, response.text))
        if not behind[-1]:
            seen.append(check_answer(response, answers))

    def serves(artefact: Path) -> bool:
        return seen[-1] == load_artefact(artefact).fingerprint

    with serving.client() as client, Load(work) as load:
        point(link, harmed)
        until(lambda: client.get("/v1/model").json()["refused"])
        assert "weights.safetensors" in client.get("/v1/model").json()["refused"]
        assert metric(client, 'jaxrec_reloads_total{result="refused"}') == 1
        point(link, second)
        until(lambda: serves(second))
        assert client.get("/v1/model").json()["refused"] is None
        for n in range(20):  # both are in memory now
            point(link, (first, second)[n % 2])
            until(lambda n=n: serves((first, second)[n % 2]))  # type: ignore[misc]
        point(link, first)
        until(lambda: serves(first))
        assert metric(client, 'jaxrec_reloads_total{result="rolled_back"}') >= 10
        before = client.get("/v1/model").json()["models"]["primary"]["rules"]
        rules.write_text("[[deny]]\nname = 'x'\nitem = ['i1']")
        until(lambda: "rules.toml" in serving.complaints())
        assert "no field 'item'" in serving.complaints() or "'item'" in serving.complaints()
        assert client.get("/v1/model").json()["models"]["primary"]["rules"] == before
        # An artefact that comes while the rules are bad waits for better ones.
        third = tmp_path / "third"
        shutil.copytree(second, third)
        point(link, third)
        until(lambda: client.get("/v1/model").json()["refused"])
        rules.write_text("[[deny]]\nname = 'x'\nitems = ['i1']\nwhen = { page = 'x' }")
        until(lambda: serves(third))
        assert client.get("/v1/model").json()["models"]["primary"]["rules"] != before
        assert metric(client, 'jaxrec_compilations_total{phase="serving"}') == 0
    assert load.count > 200
    assert sum(behind) < 0.1 * len(behind)
    for one in clients:
        one.close()


def test_a_split_is_sticky_and_named_and_a_shadow_changes_nothing(
    start: Any, exported: Any, answers: Answers, tmp_path: Path
) -> None:
    first, second = exported("sasrec", 0), exported("sasrec", 1)
    file, audit = tmp_path / "deployment.toml", tmp_path / "audit.jsonl"

    def deploy(more: str) -> None:
        new = tmp_path / "new.toml"
        new.write_text(f'primary = "{first}"\ncandidate = "{second}"\n{more}\n')
        os.replace(new, file)

    deploy('share = 0.5\nexperiment = "spring"')
    serving = start(f"--deployment={file}", f"--audit_log={audit}", "--log_users")
    with serving.client() as client:
        users = [f"user {n}" for n in range(40)]

        def variants() -> list[str]:
            told = []
            for user in users:
                response = client.post("/v1/recommend", json={**ASK, "user": user})
                check_answer(response, answers)
                assert response.json()["experiment"] == "spring"
                told.append(response.json()["model"]["variant"])
            return told

        chosen = variants()
        assert 8 <= chosen.count("candidate") <= 32
        assert variants() == chosen
        asked = client.post("/v1/recommend", json={**ASK, "variant": "candidate"}).json()
        assert asked["model"]["variant"] == "candidate"
        until(lambda: audit.read_text().count("\n") >= 81)
        lines = [json.loads(line) for line in audit.read_text().splitlines()][:40]
        assert [(line["user"], line["variant"], line["experiment"]) for line in lines] == [
            (user, variant, "spring") for user, variant in zip(users, chosen, strict=True)
        ]
        booked = {"user": "a", "item": "i3", "type": "click", "request_id": asked["request_id"]}
        assert client.post("/v1/events", json={"events": [booked]}).status_code == 200
        label = f'jaxrec_feedback_total{{model="{asked["model"]["fingerprint"][:8]}",type="click"}}'
        assert metric(client, label) == 1
        deploy('shadow = true\nexperiment = "shadow"')
        until(lambda: client.get("/v1/model").json()["shadow"])
        primary = load_artefact(first).fingerprint
        for _ in range(20):
            assert check_answer(client.post("/v1/recommend", json=ASK), answers) == primary
        until(lambda: metric(client, "jaxrec_shadow_overlap_count") == 20)
        lists = [{id for id, _ in one} for one in answers.values()]
        share = len(lists[0] & lists[1]) / 5
        overlap = metric(client, "jaxrec_shadow_overlap_sum")
        assert overlap == pytest.approx(20 * share)
        assert metric(client, 'jaxrec_compilations_total{phase="serving"}') == 0


def test_redis_gone_and_back(start: Any, exported: Any, redis_server: Any) -> None:
    redis_server.say("FLUSHALL")
    serving = start(f"--artifact={exported('sasrec', 0)}", f"--state={redis_server.url}")
    clients = [serving.client() for _ in range(4)]

    times: list[float] = []

    def work(worker: int) -> None:  # needs no store, and does not notice
        start = time.monotonic()
        response = clients[worker].post("/v1/recommend", json=ASK)
        assert response.status_code == 200 or is_behind(response.status_code, response.text)
        times.append(time.monotonic() - start)

    with serving.client() as client, Load(work, workers=4):
        assert send(client, "u", "e1").status_code == 200
        redis_server.kill()
        try:
            for _ in range(3):
                for response in (
                    send(client, "u", "e2"),
                    client.post("/v1/recommend", json={"user": "u"}),
                    client.post("/v1/score", json={"user": "u", "items": ["i3"]}),
                    client.get("/v1/users"),
                ):
                    assert error_of(response) == (503, "state_unavailable")
                    assert int(response.headers["retry-after"]) >= 1
                response = client.get("/readyz")
                assert response.status_code == 503 and "does not answer" in response.text
            assert client.get("/healthz").status_code == 200
        finally:
            redis_server.start()
        assert client.get("/readyz").status_code == 200
        assert stored(client, "u") == ["e1"]
        assert send(client, "u", "e1", "e2").status_code == 200
        assert stored(client, "u") == ["e1", "e2"]
    assert np.quantile(times, 0.95) < 1
    for one in clients:
        one.close()


def test_a_full_disk_refuses_events_and_nothing_else(
    start: Any, exported: Any, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    serving = start(
        f"--artifact={exported('sasrec', 0)}",
        f"--state=sqlite:{tmp_path / 'events.db'}",
        f"--audit_log={audit}",
    )
    pid, acknowledged = serving.process.pid, []
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    with serving.client() as client:

        def add(item: str) -> int:
            status = send(client, f"u{item}", item).status_code
            if status == 200:
                acknowledged.append(item)
            return status

        assert add("e0") == 200
        until(lambda: audit.stat().st_size > 0)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, most))  # as on a full disk
        for n in range(1, 400):
            response = send(client, f"ue{n}", f"e{n}")
            if response.status_code != 200:
                break
            acknowledged.append(f"e{n}")
        assert error_of(response) == (503, "state_unavailable")
        assert response.headers["retry-after"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (audit.stat().st_size, most))
        for n in range(1000, 1010):
            assert add(f"e{n}") == 503
            assert client.post("/v1/recommend", json=ASK).status_code == 200
            assert stored(client, "ue0") == ["e0"]
        assert client.get("/healthz").status_code == 200
        until(lambda: metric(client, "jaxrec_audit_lost_total") > 0)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
        until(lambda: add("e2000") == 200, 10)
        assert client.get("/readyz").status_code == 200
        size = audit.stat().st_size
        until(lambda: client.get("/v1/model") and audit.stat().st_size > size)
        for item in acknowledged:
            assert stored(client, f"u{item}") == [item]
        assert stored(client, "ue1000") == []
    for line in audit.read_text().splitlines():
        json.loads(line)


def test_overload_is_refused_at_once_and_passes(start: Any, exported: Any) -> None:
    flags = ("--max_batch=1", "--max_waiting=4", "--timeout=0.5", "--max_connections=40")
    serving = start(f"--artifact={exported('sasrec', 0)}", *flags)
    clients = [serving.client() for _ in range(24)]
    codes: list[tuple[int, str]] = []
    times: list[float] = []

    def work(worker: int) -> None:
        body = {**ASK, "timeout_ms": 1} if worker % 8 == 0 else ASK
        began = time.monotonic()
        response = clients[worker].post("/v1/recommend", json=body)
        times.append(time.monotonic() - began)
        if response.status_code == 200:
            codes.append((200, ""))
        else:
            assert int(response.headers["retry-after"]) >= 1
            codes.append(error_of(response))

    with Load(work, workers=24):
        until(lambda: len(codes) > 1500)
    assert {status for status, _ in codes} == {200, 503}
    assert {code for _, code in codes} <= {"", "overloaded", "deadline"}
    assert codes.count((503, "overloaded")) > 10 < codes.count((200, ""))
    assert np.quantile(times, 0.95) < 2
    with serving.client() as client:
        until(lambda: client.post("/v1/recommend", json=ASK).status_code == 200, 5)
        for _ in range(20):
            assert client.post("/v1/recommend", json=ASK).status_code == 200
        with contextlib.ExitStack() as stack:
            more = [stack.enter_context(serving.connect()) for _ in range(50)]
            told = more[-1].recv(4096)
            assert told.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in told
            assert client.get("/healthz").status_code == 200  # who was there first
    for one in clients:
        one.close()


def test_keys_scopes_and_rates(start: Any, exported: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    shop = new_key(file, "shop")
    reader = new_key(file, "reader", scopes=["serve"])
    slow = new_key(file, "slow", rate=2.0)
    audit = tmp_path / "audit.jsonl"
    flags = (f"--keys={file}", f"--audit_log={audit}")
    serving = start(f"--artifact={exported('sasrec', 0)}", *flags)
    with serving.client() as client:

        def ask(key: str | None, path: str = "/v1/recommend", **body: Any) -> httpx.Response:
            headers = {} if key is None else {"x-api-key": key}
            return client.post(path, json=body or ASK, headers=headers)

        for key in (None, "", "wrong", shop + "x", shop[:-1], "\xff"):
            encoded = key.encode("latin-1").decode("latin-1") if key else key
            if key == "\xff":
                response = client.post("/v1/recommend", json=ASK, headers=[(b"x-api-key", b"\xff")])
            else:
                response = ask(encoded)
            assert error_of(response) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        assert ask(shop).status_code == 200
        bearer = {"authorization": f"Bearer {shop}"}
        assert client.post("/v1/recommend", json=ASK, headers=bearer).status_code == 200
        event = {"events": [{"user": "u", "item": "e1"}]}
        assert ask(shop, "/v1/events", **event).status_code == 200
        assert error_of(ask(reader, "/v1/events", **event)) == (403, "forbidden")
        assert error_of(ask(reader, "/v1/%65vents", **event)) == (403, "forbidden")
        for path in ("/v1/model", "/v1/items", "/v1/users"):
            assert error_of(client.get(path)) == (401, "unauthorized")
            assert client.get(path, headers=bearer).status_code == 200
        assert client.post("/v2/models/score/infer", json={}).status_code == 401
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/v2/health/ready", "/"):
            assert client.get(path).status_code == 200
        limited = [ask(slow) for _ in range(6)]
        assert [one.status_code for one in limited][:2] == [200, 200]
        assert error_of(limited[-1]) == (429, "rate_limited")
        assert int(limited[-1].headers["retry-after"]) >= 1
        assert ask(shop).status_code == 200
        # A file that is no longer right changes nothing; one that is takes effect.
        text = file.read_text()
        file.write_text(text.replace("sha256", "sha512"))
        until(lambda: "sha512" in serving.complaints() or "keys.jsonl" in serving.complaints())
        assert ask(shop).status_code == 200
        file.write_text("".join(line for line in text.splitlines(True) if '"reader"' not in line))
        until(lambda: ask(reader).status_code == 401)
        assert ask(shop).status_code == 200
        routes = set(client.get("/openapi.json").json()["paths"])
        assert {route.split()[-1] for route in ROUTES} <= routes
        assert serving.stop() == 0
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    logged = {(line["route"], line["status"]) for line in lines}
    assert {("/v1/recommend", status) for status in (200, 401, 429)} <= logged
    assert {("/v1/events", 403), ("/v1/model", 401), ("/v1/users", 200)} <= logged
    told = serving.complaints() + serving.said.read_text() + audit.read_text()
    assert not any(secret in told for secret in (shop, reader, slow))
