"""Histories of a dataset in a store: what is new of it, in one time with events, and no other's."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import prepare
from jaxrec.serving import histories
from jaxrec.serving.histories import import_histories
from jaxrec.serving.items import ItemTable
from jaxrec.serving.state import Event, State
from jaxrec.typing import UserError

type Stores = Callable[..., State]


def in_store(store: State, work: Callable[[State], Awaitable[Any]]) -> Any:
    """Does some work in an event loop and closes the store."""

    async def run() -> Any:
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


DAY = 86_400
BEGIN = 1_700_000_000


def log(path: Path, times: Any, users: int = 3) -> Path:
    rows = [(f"u{u}", f"i{n}", times[n]) for u in range(users) for n in range(len(times))]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(path, index=False)
    return path


def prepared(folder: Path, times: Any, name: str = "log", **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    columns: Any = {"user_column": "user_id", "item_column": "item_id", "time_column": "timestamp"}
    prepare(log(folder / f"{name}.csv", times), folder / name, **columns, **options)
    return folder / name


def imported(store: State, path: Path, **more: Any) -> list[str]:
    said: list[str] = []

    async def work(state: State) -> None:
        await import_histories(state, path, said.append, **more)

    in_store(store, work)
    return said


SECONDS = [BEGIN + DAY * n for n in range(5)]
TIMES = {
    "seconds": SECONDS,
    "milliseconds": [1000 * t for t in SECONDS],
    "dates": [str(np.datetime64(t, "s")) for t in SECONDS],
}


@pytest.mark.parametrize("kind", TIMES)
def test_events_posted_and_imported_are_in_one_time(
    kind: str, open_store: Stores, tmp_path: Path
) -> None:
    path = prepared(tmp_path / kind, TIMES[kind])

    async def work(state: State) -> Any:
        await import_histories(state, path, lambda text: None)
        between = Event("u0", "between", BEGIN + 1.5 * DAY)
        await state.add([Event("u0", "late", BEGIN + 10.0 * DAY), between])
        return await state.history("u0"), await state.events("u1")

    found, events = in_store(open_store(max_events=7), work)
    assert found == ["i0", "i1", "between", "i2", "i3", "i4", "late"]
    assert [event.time for event in events] == [float(t) for t in SECONDS]


def test_counters_come_before_what_is_posted_and_it_is_said(
    open_store: Stores, tmp_path: Path
) -> None:
    path = prepared(tmp_path / "counters", [5, 6, 7])
    said: list[str] = []

    async def work(state: State) -> Any:
        await import_histories(state, path, said.append)
        await state.add([Event("u0", "now", float(BEGIN))])
        return await state.history("u0")

    assert in_store(open_store(), work) == ["i0", "i1", "i2", "now"]
    assert "counters and no dates" in said[-1]


def test_a_store_takes_what_an_append_brought_and_refuses_another_dataset(
    open_store: Stores, tmp_path: Path
) -> None:
    path, other = prepared(tmp_path / "a", SECONDS), prepared(tmp_path / "b", SECONDS[:4])
    said: list[str] = []

    async def work(state: State) -> Any:
        await import_histories(state, path, said.append)
        await import_histories(state, path, said.append)
        assert said[-1] == "the store has these histories already."
        today = tmp_path / "today.csv"
        row = {"user_id": ["u0"], "item_id": ["i9"], "timestamp": [SECONDS[-1] + DAY]}
        pd.DataFrame(row).to_csv(today, index=False)
        prepare(today, path, append=True)
        await import_histories(state, path, said.append)
        found = await state.history("u0")
        with pytest.raises(UserError, match="filled from another dataset .* another --state"):
            await import_histories(state, other, said.append)
        return found

    assert in_store(open_store(), work) == ["i0", "i1", "i2", "i3", "i4", "i9"]


def test_an_import_that_was_killed_is_done_again_and_by_no_other_dataset(
    open_store: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = prepared(tmp_path / "a", SECONDS), prepared(tmp_path / "b", SECONDS[:4])
    monkeypatch.setattr(histories, "_AT_ONCE", 4)

    def killed(text: str) -> None:
        raise KeyboardInterrupt

    async def work(state: State) -> Any:
        with pytest.raises(KeyboardInterrupt):
            await import_histories(state, path, killed)
        with pytest.raises(UserError, match="filled from another dataset"):
            await import_histories(state, other, lambda text: None)
        await import_histories(state, path, lambda text: None)
        return await state.history("u2")

    assert in_store(open_store(), work) == ["i0", "i1", "i2", "i3", "i4"]


def test_who_was_forgotten_does_not_come_back_with_an_import(
    open_store: Stores, tmp_path: Path
) -> None:
    path = prepared(tmp_path / "a", SECONDS)

    async def work(state: State) -> Any:
        await state.add([Event("u0", "own", float(BEGIN)), Event("u1", "own", float(BEGIN))])
        await state.forget("u0")
        assert await state.history("u0") == [] and await state.events("u0") == []
        assert await state.users("u", 9) == ["u1"] and await state.forgotten() == {"u0"}
        await import_histories(state, path, lambda text: None)
        assert await state.history("u0") == [] and len(await state.history("u1")) == 6
        await state.add([Event("u0", "again", float(BEGIN))])
        return await state.history("u0")

    assert in_store(open_store(), work) == ["again"]


def test_a_dataset_of_another_catalogue_is_refused(open_store: Stores, tmp_path: Path) -> None:
    path = prepared(tmp_path / "a", SECONDS)
    foreign = ItemTable.from_columns(["x1", "x2"], {})
    with pytest.raises(UserError, match="no item of .* is in the catalogue of the artefact"):
        imported(open_store(), path, items=foreign)
