"""The SQLite store when things go wrong: killed, full, locked, damaged, shared."""

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jaxrec.serving.state import Event, State, StateUnavailable, open_state

# Adds events from several tasks and says which are acknowledged.
WRITER = """
import asyncio, os, sys
from jaxrec.serving.state import Event, open_state

async def add(store, name):
    for n in range(100_000):
        await store.add([Event(name, str(n), float(n))])
        os.write(1, f"{name} {n}\\n".encode())

async def main():
    store = open_state(f"sqlite:{sys.argv[1]}", max_events=1_000_000)
    await asyncio.gather(*(add(store, f"{sys.argv[2]}{task}") for task in range(8)))

asyncio.run(main())
"""


def start(code: str, *arguments: str) -> Any:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **pipes)


def histories(file: Path, users: list[str]) -> dict[str, list[str]]:
    async def run() -> dict[str, list[str]]:
        store = open_state(f"sqlite:{file}", max_events=1_000_000)
        found = {user: await store.history(user) for user in users}
        await store.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("seed", range(3))
def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "state.db"
    writers = [start(WRITER, str(file), name) for name in "ab"]
    said: list[list[str]] = [[], []]

    def listen(index: int) -> None:
        said[index].extend(iter(writers[index].stdout.readline, ""))

    listeners = [threading.Thread(target=listen, args=(index,)) for index in range(2)]
    for listener in listeners:
        listener.start()
    while min(map(len, said)) < 20:
        assert all(writer.poll() is None for writer in writers), "a writer gave up"
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    for writer, listener in zip(writers, listeners, strict=True):
        listener.join()
        assert writer.wait() == -signal.SIGKILL
        writer.stdin.close()
        writer.stdout.close()
    acknowledged = {tuple(line.split()) for lines in said for line in lines if line.endswith("\n")}
    users = sorted({user for user, _ in acknowledged})
    kept = histories(file, users)
    assert len(users) == 16
    assert acknowledged <= {(user, item) for user in users for item in kept[user]}


def commits(log: Path) -> int:
    """How many transactions lie in a write-ahead log: frames that say how large the file is."""
    content = log.read_bytes()
    page = int.from_bytes(content[8:12])
    heads = [content[at : at + 24] for at in range(32, len(content), 24 + page)]
    return sum(int.from_bytes(head[4:8]) > 0 for head in heads if head[8:16] == content[16:24])


def test_additions_that_wait_together_share_commits(tmp_path: Path) -> None:
    async def run() -> tuple[int, int]:
        store = open_state(f"sqlite:{tmp_path / 'state.db'}")
        await store.check()
        for n in range(20):
            await store.add([Event("u", str(n), n)])
        alone = commits(tmp_path / "state.db-wal")
        await asyncio.gather(*(store.add([Event("v", str(n), n)]) for n in range(200)))
        together = commits(tmp_path / "state.db-wal") - alone
        await store.close()
        return alone, together

    alone, together = asyncio.run(run())
    assert alone >= 20
    assert 1 <= together <= 20


# Writes until the file may not grow, and once more when it may. A limit of files' sizes is told to
# SQLite by the kernel when it writes, as a full disk is.
FULL = """
import asyncio, resource, sys, time
from jaxrec.serving.state import Event, StateUnavailable, open_state

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    store = open_state(f"sqlite:{sys.argv[1]}", max_events=100_000)
    limit(300_000)
    kept, failed = 0, 0
    while failed < 3:
        start = time.monotonic()
        try:
            await store.add([Event("u", f"{kept:06}" + "x" * 1000, float(kept))])
            kept += 1
        except StateUnavailable as error:
            failed += 1
            assert sys.argv[1] in str(error), error
            assert time.monotonic() - start < 2
    assert len(await store.history("u")) == kept > 10
    limit(resource.RLIM_INFINITY)
    await store.add([Event("u", "last", float(kept))])
    history = await store.history("u")
    assert history[-1] == "last" and len(history) == kept + 1
    await store.close()
    print("kept", kept + 1)

asyncio.run(main())
"""


def test_a_full_disk_is_unavailable_and_service_returns_with_space(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    writer = start(FULL, str(file))
    out, _ = writer.communicate(timeout=60)
    assert writer.returncode == 0
    assert len(histories(file, ["u"])["u"]) == int(out.split()[1])


def opened(file: Path) -> State:
    return open_state(f"sqlite:{file}")


def test_a_locked_file_is_unavailable_for_additions_until_it_is_let_go(tmp_path: Path) -> None:
    file = tmp_path / "state.db"

    async def run() -> None:
        store = opened(file)
        await store.add([Event("u", "1", 1)])
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        with pytest.raises(StateUnavailable, match="cannot be written: database is locked"):
            await store.add([Event("u", "2", 2)])
        assert time.monotonic() - start < 4
        assert await store.history("u") == ["1"]
        waiting = asyncio.create_task(store.add([Event("u", "3", 3)]))
        await asyncio.sleep(0.1)
        other.execute("ROLLBACK")
        other.close()
        await waiting
        assert await store.history("u") == ["1", "3"]
        await store.close()

    asyncio.run(run())


def test_a_file_that_is_no_database_is_unavailable_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    content = b"not a database " * 1000
    file.write_bytes(content)

    async def run() -> None:
        store = opened(file)
        for call in (store.check(), store.history("u"), store.add([Event("u", "1", 1)])):
            with pytest.raises(StateUnavailable, match="not a database"):
                await call
        await store.close()

    asyncio.run(run())
    assert file.read_bytes() == content


def test_a_file_damaged_while_it_is_open_is_unavailable_and_a_restored_one_is_read(
    tmp_path: Path,
) -> None:
    file = tmp_path / "state.db"

    async def fill(store: State) -> None:
        for n in range(20):
            await store.add([Event(f"user {m}", "x" * 200, n) for m in range(20)])

    async def run() -> None:
        store = opened(file)
        await fill(store)
        await store.close()
        good = file.read_bytes()
        file.write_bytes(good[:4096] + b"\x55" * (len(good) - 4096))
        store = opened(file)
        with pytest.raises(StateUnavailable, match="malformed"):
            await store.history("user 3")
        with pytest.raises(StateUnavailable):
            await store.add([Event("user 3", "y", 99)])
        restored = tmp_path / "restored.db"
        restored.write_bytes(good)
        restored.replace(file)
        await store.add([Event("user 3", "y", 99)])
        assert await store.history("user 3") == ["x" * 200] * 20 + ["y"]
        await store.close()

    asyncio.run(run())


OPENER = """
import asyncio, sys
from jaxrec.serving.state import Event, open_state

async def main():
    store = open_state(f"sqlite:{sys.argv[1]}")
    print("ready", flush=True)
    sys.stdin.readline()
    await store.check()
    for n in range(20):
        await store.add([Event("shared", f"{sys.argv[2]}-{n}", float(n))])
    await store.close()

asyncio.run(main())
"""


def test_processes_may_make_and_share_a_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    processes = [start(OPENER, str(file), name) for name in "abc"]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    items = histories(file, ["shared"])["shared"]
    assert sorted(items) == sorted(f"{name}-{n}" for name in "abc" for n in range(20))
    assert [int(item[2:]) for item in items] == sorted(int(item[2:]) for item in items)


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    async def run() -> None:
        store = opened(tmp_path / "state.db")
        await store.add([Event("u", "1", 1)])
        modes = {path.name: stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()}
        assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
        await store.close()

    asyncio.run(run())


def test_a_closed_store_takes_nothing_more_and_has_all_that_it_took(tmp_path: Path) -> None:
    async def run() -> None:
        store = opened(tmp_path / "state.db")
        added = asyncio.create_task(store.add([Event("u", "1", 1)]))
        await asyncio.sleep(0)
        await store.close()
        await added
        with pytest.raises(StateUnavailable, match="does not take more"):
            await store.add([Event("u", "2", 2)])

    asyncio.run(run())
    assert histories(tmp_path / "state.db", ["u"]) == {"u": ["1"]}
