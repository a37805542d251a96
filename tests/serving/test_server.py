"""What the server answers over HTTP, held against what its artefact says when it is asked alone."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from jaxrec.export import Artefact, load_artefact
from jaxrec.export.golden import difference_of_lists
from jaxrec.serving.deployment import Deployment
from jaxrec.serving.server import ServerConfig, serve
from jaxrec.typing import UserError

RULES = """
category_column = "category"

[[deny]]
name = "recalled"
items = ["i7", "i8"]
when = { page = "safe" }

[[cap]]
name = "one of each maker"
column = "maker"
most = 1
when = { page = "mixed" }

[[pin]]
name = "spring sale"
item = "i60"
position = 2
reason = "in our spring sale"
when = { page = "home" }
"""
SEEN = ["i3", "i5", "i9"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "rules.toml").write_text(RULES)
    return folder


@pytest.fixture(scope="module")
def client(start_for_session: Any, exported: Any, place: Path) -> Iterator[httpx.Client]:
    serving = start_for_session(
        f"--artifact={exported('sasrec', 0)}",
        f"--state=sqlite:{place / 'events.db'}",
        f"--rules={place / 'rules.toml'}",
        f"--audit_log={place / 'audit.jsonl'}",
    )
    with serving.client() as client:
        yield client


@pytest.fixture(scope="module")
def of_users(start_for_session: Any, exported: Any) -> Iterator[httpx.Client]:
    """A client of a matrix factorisation."""
    with start_for_session(f"--artifact={exported('mf', 0)}").client() as client:
        yield client


type Listed = list[tuple[str, float]]


@pytest.fixture(scope="module")
def said(exported: Any) -> Callable[..., Listed]:
    """What an artefact recommends, asked for one user alone: ids and scores."""
    opened: dict[str, Artefact] = {}

    def recommend(
        k: int,
        history: Sequence[str] = (),
        *,
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        user: str | None = None,
        mask_seen: bool = True,
    ) -> Listed:
        name = "sasrec" if user is None else "mf"
        artefact = opened.setdefault(name, load_artefact(exported(name, 0)))
        index = {id: n for n, id in enumerate(artefact.item_ids.tolist())}
        shown: dict[str, Any] = {}
        if user is None:
            shown["history"] = np.zeros((1, 8), np.int32)
            recent = [index[id] for id in history][-8:]
            shown["history"][0, len(shown["history"][0]) - len(recent) :] = recent
            shown["mask_seen"] = mask_seen
        else:
            assert artefact.user_ids is not None
            shown["users"] = np.array([artefact.user_ids.tolist().index(user)], np.int32)
        left_out = np.zeros((1, 64), np.int32)
        left_out[0, : len(exclude)] = [index[id] for id in exclude]
        mask = np.ones((1, artefact.num_items + 1), bool)
        if allow is not None:
            mask[:] = False
            mask[0, [index[id] for id in allow]] = True
        items, scores = artefact.recommend(exclude=left_out, masks=mask, **shown)
        pairs = zip(np.asarray(items)[0].tolist(), np.asarray(scores)[0].tolist(), strict=True)
        ids = artefact.item_ids
        return [(str(ids[item]), score) for item, score in pairs if item][:k]

    return recommend


def ask(client: httpx.Client, route: str, **body: Any) -> Any:
    response = client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, route: str, **body: Any) -> tuple[int, str, str]:
    response = client.post(f"/v1/{route}", json=body)
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def listed(answer: Any) -> Listed:
    return [(item["id"], item["score"]) for item in answer["items"]]


def check_equal(got: Listed, wanted: Listed) -> None:
    """By scores: what ties may change places, also over the end."""
    number = {id: n for n, (id, _) in enumerate([*wanted, *got], 1)}
    pairs = [
        (np.array([[number[id] for id, _ in one]]), np.array([[score for _, score in one]]))
        for one in (got, wanted)
    ]
    assert not difference_of_lists(pairs[0], pairs[1], 1e-5)


def reasons(item: Any) -> list[tuple[str, str | None]]:
    return [(reason["kind"], reason.get("name")) for reason in item.get("reasons", [])]


def test_a_list_is_what_the_artefact_recommends(client: httpx.Client, said: Any) -> None:
    answer = ask(client, "recommend", history=SEEN, k=20)
    check_equal(listed(answer), said(20, SEEN))
    assert not {id for id, _ in listed(answer)} & set(SEEN)
    assert all(item["title"] == f"Film {item['id'][1:]}" for item in answer["items"])
    assert answer["unknown_items"] == [] and answer["fallback"] is False
    model = client.get("/v1/model").json()["models"]["primary"]
    assert answer["model"] == {
        "name": model["name"],
        "fingerprint": model["fingerprint"],
        "variant": "primary",
    }
    assert answer["request_id"].startswith(model["fingerprint"][:8] + "-")
    check_equal(listed(ask(client, "recommend", history=SEEN, k=3)), said(3, SEEN))


def test_what_was_seen_comes_back_only_when_asked_for(client: httpx.Client, said: Any) -> None:
    long = [f"i{n}" for n in range(1, 31)]  # more than the model reads
    answer = ask(client, "recommend", history=long, k=20)
    check_equal(listed(answer), said(20, long, exclude=long))
    assert not {id for id, _ in listed(answer)} & set(long)
    again = ask(client, "recommend", history=long, k=20, exclude_seen=False)
    check_equal(listed(again), said(20, long, mask_seen=False))
    assert {id for id, _ in listed(again)} & set(long)


def test_filters_allow_and_deny(client: httpx.Client, said: Any) -> None:
    first = [id for id, _ in said(20, SEEN)]
    filters: dict[str, Any] = {"deny": [*first[:2], "no such item"]}
    answer = ask(client, "recommend", history=SEEN, k=10, filters=filters)
    check_equal(listed(answer), said(10, SEEN, exclude=first[:2]))
    some = ["i1", "i2", "i3", "i50", "no such item"]
    answer = ask(client, "recommend", history=SEEN, k=10, filters={"allow": some})
    check_equal(listed(answer), said(10, SEEN, allow=["i1", "i2", "i3", "i50"]))
    assert len(answer["items"]) == 3  # i3 was seen
    assert ask(client, "recommend", history=SEEN, filters={"allow": []})["items"] == []
    dramas = [f"i{n}" for n in range(1, 61) if n % 3 != 0]
    answer = ask(client, "recommend", history=SEEN, k=10, filters={"categories": ["Drama"]})
    check_equal(listed(answer), said(10, SEEN, allow=dramas))


def test_rules_hold_where_the_context_says_so_and_give_their_reasons(
    client: httpx.Client, said: Any
) -> None:
    plain = said(20, SEEN)
    shown = ask(client, "recommend", history=SEEN, k=20, context={"page": "safe"})
    check_equal(listed(shown), said(20, SEEN, exclude=["i7", "i8"]))
    assert listed(ask(client, "recommend", history=SEEN, k=20, context={"page": "x"})) == [
        (id, pytest.approx(score, abs=1e-5)) for id, score in plain
    ]
    pinned = ask(client, "recommend", history=SEEN, k=5, context={"page": "home"})["items"]
    assert [n for n, item in enumerate(pinned) if item["id"] == "i60"] == [1]
    assert reasons(pinned[1]) == [("rule", "spring sale")]
    assert pinned[1]["reasons"][0]["text"] == "in our spring sale"
    others = [item["id"] for item in pinned if item["id"] != "i60"]
    assert others == [id for id, _ in plain if id != "i60"][:4]
    mixed = ask(client, "recommend", history=SEEN, k=7, context={"page": "mixed"})["items"]
    makers = [int(item["id"][1:]) % 7 for item in mixed]
    assert len(set(makers)) == len(makers) > 1
    best: dict[int, str] = {}
    for id, _ in plain:  # the best of each maker, in the model's order
        best.setdefault(int(id[1:]) % 7, id)
    assert [item["id"] for item in mixed] == list(best.values())[:7]
    assert ("rule", "one of each maker") in [one for item in mixed for one in reasons(item)]


def test_an_explanation_names_the_closest_item_of_the_history(
    client: httpx.Client, exported: Any
) -> None:
    artefact = load_artefact(exported("sasrec", 0))
    vectors = np.asarray(artefact.vectors, np.float32)
    answer = ask(client, "recommend", history=SEEN, k=5, explain=True)
    index = {str(id): n for n, id in enumerate(artefact.item_ids)}
    varying = vectors[:, np.any(vectors[1:] != vectors[1:2], axis=0)]
    for item in answer["items"]:
        one = varying[index[item["id"]]]
        of = [varying[index[id]] for id in SEEN]
        cosines = [one @ v / np.linalg.norm(one) / np.linalg.norm(v) for v in of]
        closest = SEEN[int(np.argmax(cosines))]
        assert reasons(item) == [("history", closest)]
        assert item["reasons"][0]["text"].startswith(f"close to Film {closest[1:]},")


def test_scores_are_those_of_the_artefact_and_null_for_what_it_does_not_know(
    client: httpx.Client, exported: Any
) -> None:
    artefact = load_artefact(exported("sasrec", 0))
    history = np.array([[0, 0, 0, 0, 0, 3, 5, 9]], np.int32)
    wanted = np.asarray(artefact.score(np.array([[4, 60]], np.int32), history=history))[0]
    answer = ask(client, "score", history=SEEN, items=["i4", "nothing", "i60", "i4"])
    assert [score["id"] for score in answer["scores"]] == ["i4", "nothing", "i60", "i4"]
    got = [score["score"] for score in answer["scores"]]
    assert got[1] is None and got[0] == got[3]
    assert [got[0], got[2]] == pytest.approx(wanted.tolist(), abs=1e-5)
    every = [f"i{n}" for n in range(1, 61)]
    assert all(one["score"] is not None for one in score_all(client, every))


def score_all(client: httpx.Client, items: list[str]) -> list[Any]:
    scores: list[Any] = ask(client, "score", history=SEEN, items=items)["scores"]
    return scores


def test_similar_items_are_those_of_the_artefact(client: httpx.Client, exported: Any) -> None:
    artefact = load_artefact(exported("sasrec", 0))
    items, cosines = artefact.similar(np.array([3], np.int32))
    answer = ask(client, "similar", item="i3", k=6)
    check_equal(
        listed(answer),
        [(f"i{n}", float(c)) for n, c in zip(items[0][:6], cosines[0][:6], strict=True)],
    )
    assert refused(client, "similar", item="nothing")[:2] == (404, "unknown_item")


def test_an_event_counts_in_the_next_request_and_twice_as_once(
    client: httpx.Client, said: Any
) -> None:
    assert refused(client, "recommend", user="eve")[:2] == (404, "unknown_user")
    event = {"user": "eve", "item": "i3", "time": 1.0}
    assert ask(client, "events", events=[event])["accepted"] == 1
    check_equal(listed(ask(client, "recommend", user="eve", k=9)), said(9, ["i3"]))
    more = [{**event, "item": "i5", "time": 2.0}, event, {**event, "item": "new", "time": 3.0}]
    answer = ask(client, "events", events=more)
    assert answer == {"accepted": 3, "unknown_items": ["new"]}
    answer = ask(client, "recommend", user="eve", k=9)
    check_equal(listed(answer), said(9, ["i3", "i5"]))
    assert answer["unknown_items"] == ["new"]
    # A history that is sent takes the place of the stored one.
    sent = ask(client, "recommend", user="eve", history=SEEN, k=9)
    check_equal(listed(sent), said(9, SEEN))
    assert client.get("/v1/users", params={"query": "ev"}).json() == {"users": ["eve"]}


def test_who_is_unknown_is_told_so_or_gets_what_is_popular(
    client: httpx.Client, exported: Any
) -> None:
    assert refused(client, "recommend", history=[])[:2] == (422, "unknown_items")
    code = refused(client, "recommend", history=["nothing", "neither"])
    assert code[:2] == (422, "unknown_items") and "fallback" in code[2]
    assert refused(client, "recommend")[:2] == (422, "invalid_request")
    counts = load_artefact(exported("sasrec", 0)).popularity
    order = (np.argsort(-counts[1:], kind="stable") + 1).tolist()
    answer = ask(client, "recommend", user="nobody", k=5, fallback="popular")
    assert listed(answer) == [(f"i{n}", counts[n]) for n in order[:5]]
    assert answer["fallback"] is True
    assert reasons(answer["items"][0]) == [("popular", None)]
    filters = {"deny": [f"i{order[0]}"]}
    answer = ask(client, "recommend", history=["no"], k=2, fallback="popular", filters=filters)
    assert [id for id, _ in listed(answer)] == [f"i{n}" for n in order[1:3]]
    assert answer["unknown_items"] == ["no"]
    # Part of a history is enough.
    assert ask(client, "recommend", history=["i3", "no"])["unknown_items"] == ["no"]


def test_a_factorisation_answers_the_users_it_knows(of_users: httpx.Client, said: Any) -> None:
    check_equal(listed(ask(of_users, "recommend", user="u3", k=8)), said(8, user="u3"))
    seen = ["i1", "i2", "i3"]
    answer = ask(of_users, "recommend", user="u3", history=seen, k=8)
    check_equal(listed(answer), said(8, user="u3", exclude=seen))
    first = [id for id, _ in said(2, user="u3")]
    events = [{"user": "u3", "item": id, "time": 1.0} for id in first]
    ask(of_users, "events", events=events)
    answer = ask(of_users, "recommend", user="u3", k=8)
    check_equal(listed(answer), said(8, user="u3", exclude=first))
    assert ask(of_users, "score", user="u3", items=[first[0]])["scores"][0]["score"] is not None
    assert refused(of_users, "recommend", user="nobody")[:2] == (404, "unknown_user")
    status, code, message = refused(of_users, "recommend", history=seen)
    assert (status, code) == (422, "unknown_user") and "user" in message
    assert ask(of_users, "recommend", user="nobody", fallback="popular")["fallback"] is True


def test_searches_find_titles_and_ids(client: httpx.Client) -> None:
    def search(query: str, **more: Any) -> list[str]:
        found = client.get("/v1/items", params={"query": query, **more}).json()["items"]
        return [item["id"] for item in found]

    assert search("film 17") == ["i17"]
    assert search("i5")[0] == "i5"
    assert search("FILM", limit=3) == ["i1", "i2", "i3"]
    assert search("no such") == []
    response = client.get("/v1/items", params={"limit": 0})
    assert response.status_code == 422 and "from 1 to 100" in response.json()["error"]["message"]


def test_the_model_is_described(client: httpx.Client, exported: Any) -> None:
    artefact = load_artefact(exported("sasrec", 0))
    told = client.get("/v1/model").json()
    assert told["models"]["primary"]["fingerprint"] == artefact.fingerprint
    assert told["models"]["primary"]["num_items"] == 60
    assert told["models"]["primary"]["rules"]
    assert told["refused"] is None and told["experiment"] is None


def test_the_page_and_the_probes_answer(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "problems": []}
    assert "<html" in client.get("/").text
    assert client.get("/openapi.json").json()["info"]["title"] == "jaxrec"


def test_the_log_says_who_answered_and_by_which_rules_but_not_who_asked(
    client: httpx.Client, place: Path
) -> None:
    ask(client, "events", events=[{"user": "secret-user", "item": "i3"}])
    answer = ask(client, "recommend", user="secret-user", k=4, context={"page": "home"})
    line: dict[str, Any] = {}
    deadline = time.monotonic() + 5
    while not line and time.monotonic() < deadline:
        text = (place / "audit.jsonl").read_text()
        entries = [json.loads(line) for line in text.splitlines()]
        line = next((one for one in entries if one["request_id"] == answer["request_id"]), {})
    assert "secret-user" not in text
    assert line["model"] == answer["model"]["fingerprint"] and line["variant"] == "primary"
    assert line["rules"] == client.get("/v1/model").json()["models"]["primary"]["rules"]
    assert line["applied"] == ["spring sale"]
    assert (line["route"], line["status"], line["k"], line["items"]) == ("/v1/recommend", 200, 4, 4)


def value(text: str, name: str) -> float:
    found = [line for line in text.splitlines() if line.startswith(name + " ")]
    assert len(found) == 1, name
    return float(found[0].rpartition(" ")[2])


def test_requests_of_all_sizes_compile_nothing(client: httpx.Client, of_users: Any) -> None:
    random = np.random.default_rng(0)
    for n in range(60):
        history = [f"i{i}" for i in random.integers(1, 61, random.integers(1, 40))]
        filters: dict[str, Any] | None = None
        if n % 3:
            filters = {"deny": [f"i{i}" for i in random.integers(1, 61, random.integers(0, 20))]}
        body = {"history": history, "k": int(random.integers(1, 21)), "filters": filters}
        ask(client, "recommend", **body, exclude_seen=bool(n % 2), explain=n % 5 == 0)
        ask(client, "score", history=history, items=history)
        ask(of_users, "recommend", user=f"u{n % 40 + 1}", history=history)
    for one in (client, of_users):
        metrics = one.get("/metrics").text
        assert value(metrics, 'jaxrec_compilations_total{phase="serving"}') == 0
        assert value(metrics, 'jaxrec_request_seconds_count{route="/v1/recommend",status="200"}')


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"state": "postgres://name:secret@x"}, "no store is known under 'postgres:'"),
        ({"state": "sqlite:/no/such/folder/x.db"}, "the folder of /no/such/folder/x.db"),
        ({"audit_log": Path("/no/such/folder/x")}, "the audit log /no/such/folder/x cannot be"),
        ({"keys": Path("/no/such/keys")}, "the file of keys /no/such/keys cannot be read"),
        ({"rules": Path("/no/such/rules.toml")}, "rules.toml"),
        ({"histories": Path("/no/such/data")}, "/no/such/data"),
        ({"host": "256.1.1.1"}, "cannot listen on 256.1.1.1:0"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1:0"),
        ({"rate": 0.0}, "rate is a number above 0; got 0.0"),
        ({"rate": float("nan")}, "rate is a number above 0; got nan"),
        ({"timeout_s": 0.0}, "timeout is a number above 0; got 0.0"),
        ({"deployment": Path("/no/such.toml")}, "/no/such.toml cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anybody_is_served(
    exported: Any, config: dict[str, Any], message: str
) -> None:
    deployment = Deployment(primary=exported("sasrec", 0))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        serve(ServerConfig(**{"deployment": deployment, "port": 0, **config}), say=print)
    assert "secret" not in str(caught.value)


def test_pages_of_other_sites_may_not_ask_where_there_are_no_keys(
    start: Any, exported: Callable[[str, int], Path]
) -> None:
    serving = start(f"--artifact={exported('sasrec', 0)}", "--state=memory:")
    ask = {"history": ["i3"]}
    with httpx.Client(base_url=serving.url) as client:
        host = serving.url.partition("://")[2]
        own = client.post("/v1/recommend", json=ask, headers={"Origin": f"http://{host}"})
        foreign = client.post("/v1/recommend", json=ask, headers={"Origin": "http://evil.test"})
        assert (own.status_code, len(own.json()["items"])) == (200, 10)
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "forbidden")
        assert client.get("/healthz", headers={"Origin": "http://evil.test"}).status_code == 200
