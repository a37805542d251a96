"""What every store does, held against a plain model; and URLs and events that are refused."""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec.serving.state import Event, State, open_state
from jaxrec.typing import UserError

FRESH = itertools.count()
type Stores = Callable[..., State]


def in_store(store: State, work: Callable[[State], Awaitable[Any]]) -> Any:
    """Does some work in an event loop and closes the store."""

    async def run() -> Any:
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


class Model:
    """What a store is: a list of distinct events, sorted by time and arrival, cut in front."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self.kept: list[Event] = []

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if event not in self.kept:
                self.kept.append(event)
        self.kept.sort(key=lambda event: event.time)  # stable
        for user in {event.user for event in events}:
            of_user = [event for event in self.kept if event.user == user]
            for event in of_user[: -self.max_events]:
                self.kept.remove(event)

    def history(self, user: str) -> list[str]:
        return [event.item for event in self.kept if event.user == user]


events = st.builds(
    Event,
    user=st.sampled_from(["a", "b"]),
    item=st.sampled_from(["1", "2", "drei|3", "四 4"]),
    time=st.sampled_from([-1.5, 0.0, 1.0, 1_700_000_000.123456, 1e18]) | st.floats(0, 9),
    type=st.sampled_from(["view", "buy"]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(events, max_size=6), max_size=8), max_events=st.integers(1, 5))
def test_order_repeats_and_trimming_are_those_of_the_model(
    open_store: Stores, batches: list[list[Event]], max_events: int
) -> None:
    mark, model = f"{next(FRESH)}-", Model(max_events)

    async def work(store: State) -> None:
        for batch in batches:
            marked = [Event(mark + e.user, e.item, e.time, e.type) for e in batch]
            await store.add(marked)
            model.add(marked)
            for user in (mark + "a", mark + "b"):
                assert await store.history(user) == model.history(user)

    in_store(open_store(max_events=max_events), work)


def test_an_unknown_user_has_no_history(open_store: Stores) -> None:
    assert in_store(open_store(), lambda store: store.history("nobody")) == []


def test_events_of_one_time_stay_in_the_order_in_which_they_came(open_store: Stores) -> None:
    items = [str(n) for n in range(40)]

    async def work(store: State) -> list[str]:
        await store.add([Event("u", item, 7.0) for item in items[:20]])
        await store.add([Event("u", item, 7.0) for item in items[20:]])
        return await store.history("u")

    assert in_store(open_store(max_events=30), work) == items[10:]


def test_users_are_those_with_the_prefix_in_order(open_store: Stores) -> None:
    names = ["ann", "an", "anna", "bob", "ÄÖ", "Äa", "an*", "an?b", "\U0010ffff"]

    async def work(store: State) -> None:
        await store.add([Event(name, "i", float(t)) for t in range(3) for name in names])
        for prefix in ("", "a", "an", "ann", "anna", "Ä", "z", "an*", "*", "\U0010ffff"):
            wanted = sorted(name for name in names if name.startswith(prefix))
            assert await store.users(prefix, 100) == wanted
            assert await store.users(prefix, 2) == wanted[:2]
            assert await store.users(prefix, 0) == []

    in_store(open_store(), work)


def test_many_additions_at_once_are_all_there(open_store: Stores) -> None:
    async def work(store: State) -> None:
        await asyncio.gather(
            *(store.add([Event(f"u{n % 7}", f"i{n}", float(n))]) for n in range(300))
        )
        for user in range(7):
            assert await store.history(f"u{user}") == [f"i{n}" for n in range(user, 300, 7)]

    in_store(open_store(), work)


def test_a_request_that_is_cancelled_harms_no_other(open_store: Stores) -> None:
    async def work(store: State) -> None:
        tasks = [asyncio.create_task(store.add([Event("u", str(n), n)])) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert done[1::2] == [None] * 10
        assert set(await store.history("u")) >= {str(n) for n in range(1, 20, 2)}
        await store.check()

    in_store(open_store(), work)


def test_a_store_opened_again_keeps_the_newest_of_what_it_had(
    open_store: Stores, request: pytest.FixtureRequest
) -> None:
    if "memory" in request.node.name:
        pytest.skip("memory forgets, and says so")
    in_store(open_store(), lambda s: s.add([Event("u", str(n), n) for n in range(10)]))
    assert in_store(open_store(), lambda s: s.history("u")) == [str(n) for n in range(10)]
    assert in_store(open_store(max_events=3), lambda s: s.history("u")) == ["7", "8", "9"]


@pytest.mark.parametrize("field", ["user", "item", "type"])
@pytest.mark.parametrize("text", ["", "a\0b", "\ud800"])
def test_events_with_texts_that_cannot_be_stored_are_refused(field: str, text: str) -> None:
    fields = {"user": "u", "item": "i", "type": "view"} | {field: text}
    with pytest.raises(UserError, match=f"an event's {field} is a text"):
        Event(time=1.0, **fields)


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf])
def test_events_at_no_time_are_refused(time: float) -> None:
    with pytest.raises(UserError, match="finite number of seconds"):
        Event("u", "i", time)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://name:secret@host", "no store is known under 'mysql:'"),
        ("state.db", "no store is known"),
        ("sqlite:", "no store is known"),
        ("redis://host:port", "URL of Redis is not understood"),
    ],
)
def test_urls_that_name_no_store_are_refused_and_not_repeated(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_state(url)
    assert "secret" not in str(caught.value)


def test_a_store_must_keep_something() -> None:
    with pytest.raises(UserError, match="at least 1 event"):
        open_state("memory:", max_events=0)


def test_a_file_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of .* does not exist"):
        open_state(f"sqlite:{tmp_path / 'absent' / 'state.db'}")
