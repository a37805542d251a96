"""The audit log has every entry once, whatever happens to its file."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxrec.serving import audit
from jaxrec.serving.audit import AuditLog
from jaxrec.typing import UserError

ENTRY: dict[str, Any] = {
    "request_id": "0123abcd-00000000000000aa",
    "route": "/v1/recommend",
    "status": 200,
    "model": "0123abcd",
    "variant": "primary",
    "experiment": None,
    "rules": "ffee",
    "applied": ("stock",),
    "k": 10,
    "items": 9,
    "seconds": 0.0012345,
    "user": "someone",
}


def numbered(number: int) -> dict[str, Any]:
    return ENTRY | {"request_id": f"{number:06d}"}


def read(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def numbers(*paths: Path) -> list[int]:
    return [int(entry["request_id"]) for entry in read(*paths)]


def wait_for(told: Any) -> None:
    end = time.monotonic() + 10
    while not told():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    log = AuditLog(path)
    yield log
    log.close()


def test_a_line_says_what_was_answered_and_by_what(path: Path, log: AuditLog) -> None:
    before = time.time()
    log.write(**ENTRY)
    log.close()
    (entry,) = read(path)
    assert before - 0.001 <= entry.pop("time") <= time.time() + 0.001
    assert entry == {
        "request_id": "0123abcd-00000000000000aa",
        "route": "/v1/recommend",
        "status": 200,
        "model": "0123abcd",
        "variant": "primary",
        "experiment": None,
        "rules": "ffee",
        "applied": ["stock"],
        "k": 10,
        "items": 9,
        "latency_ms": 1.234,
    }


def test_users_are_named_only_when_asked(path: Path) -> None:
    log = AuditLog(path, log_users=True)
    log.write(**ENTRY)
    log.close()
    assert read(path)[0]["user"] == "someone"


def test_what_is_not_known_of_a_request_is_null(path: Path, log: AuditLog) -> None:
    log.write(route="other", status=404, seconds=0.0)
    log.close()
    (entry,) = read(path)
    assert entry.keys() == set(audit.FIELDS) - {"user"}
    assert entry["model"] is None
    assert entry["applied"] == []


def test_only_the_owner_writes_and_only_its_group_reads(path: Path, log: AuditLog) -> None:
    assert path.stat().st_mode & 0o137 == 0


def test_entries_get_written_soon_and_all_at_the_end(path: Path, log: AuditLog) -> None:
    log.write(**numbered(0))
    wait_for(lambda: numbers(path) == [0])
    for number in range(1, 5_000):
        log.write(**numbered(number))
    log.close()
    assert numbers(path) == list(range(5_000))
    assert log.lost == 0


def test_what_comes_after_the_end_is_lost_and_counted(path: Path) -> None:
    log = AuditLog(path)
    log.close()
    log.write(**ENTRY)
    assert (log.lost, read(path)) == (1, [])


def test_an_old_file_is_gone_on_with(path: Path) -> None:
    for number in range(2):
        log = AuditLog(path)
        log.write(**numbered(number))
        log.close()
    assert numbers(path) == [0, 1]


def test_full_files_are_kept_in_order_and_the_oldest_deleted(path: Path) -> None:
    length = len(audit._line((0,) * 12))
    AuditLog(path).close()
    log = AuditLog(path, max_bytes=1_000, keep=2)
    for number in range(40):
        log.write(**numbered(number))
    log.close()
    files = [path.with_name(name) for name in ("audit.log.2", "audit.log.1", "audit.log")]
    assert sorted(path.parent.iterdir()) == sorted(files)
    assert all(length < file.stat().st_size <= 1_000 for file in files)
    found = numbers(*files)
    assert found == list(range(found[0], 40))
    assert log.lost == 0


def test_a_line_longer_than_a_file_gets_one_of_its_own(path: Path) -> None:
    log = AuditLog(path, max_bytes=10, keep=3)
    for number in range(3):
        log.write(**numbered(number))
    log.close()
    assert [numbers(path.with_name(n))[0] for n in ("audit.log.2", "audit.log.1", "audit.log")] == [
        *range(3)
    ]


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced", "emptied"])
def test_a_file_that_another_program_takes_away_is_begun_anew(
    path: Path, log: AuditLog, how: str
) -> None:
    log.write(**numbered(1))
    wait_for(lambda: numbers(path) == [1])
    if how == "moved":
        path.rename(path.with_name("elsewhere"))
    elif how == "deleted":
        path.unlink()
    elif how == "replaced":
        path.with_name("new").touch()
        path.with_name("new").rename(path)
    else:
        os.truncate(path, 0)
    log.write(**numbered(2))
    log.close()
    assert numbers(path) == [2]
    assert log.lost == 0


def test_a_full_queue_loses_entries_and_counts_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_EVERY_S", 30.0)
    monkeypatch.setattr(audit, "_MOST_WAITING", 100)
    told: list[int] = []
    log = AuditLog(path, on_lost=told.append)
    for number in range(150):
        log.write(**numbered(number))
    log.close()
    assert numbers(path) == list(range(100))
    assert log.lost == sum(told) == 50


def test_a_full_disk_is_counted_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []
    log = AuditLog("/dev/full", on_lost=told.append)
    for number in range(10):
        log.write(**numbered(number))
    log.close()
    assert log.lost == sum(told) == 10
    assert "No space left on device" in caplog.text


def test_a_disk_that_is_full_for_a_while_leaves_whole_lines(path: Path) -> None:
    """A limit on the size of files stands for the disk: it too cuts a write in the middle."""
    code = """
        import resource, sys, time
        from jaxrec.serving.audit import AuditLog
        from tests.serving.test_audit import numbered, numbers, wait_for
        from pathlib import Path
        path, most = Path(sys.argv[1]), 2_000
        log = AuditLog(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        for number in range(50):
            log.write(**numbered(number))
        wait_for(lambda: log.lost)
        kept = numbers(path)
        assert kept == list(range(len(kept))) and 0 < len(kept) < 50, kept
        assert log.lost == 50 - len(kept), log.lost
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, ) * 2)
        log.write(**numbered(50))
        log.close()
        assert numbers(path) == [*kept, 50], numbers(path)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_killed_process_leaves_all_but_the_newest(path: Path) -> None:
    code = """
        import sys, time
        from jaxrec.serving.audit import AuditLog
        from tests.serving.test_audit import numbered
        log, number = AuditLog(sys.argv[1]), 0
        while True:
            log.write(**numbered(number))
            print(number, flush=True)
            number += 1
            time.sleep(0.001)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = 0
        while last < 300:
            last = int(process.stdout.readline())
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    found = numbers(path)
    assert found == list(range(len(found)))
    assert len(found) > 300


def test_a_file_that_cannot_be_opened_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory.*Name a file in a folder"):
        AuditLog(tmp_path / "nowhere" / "audit.log")
