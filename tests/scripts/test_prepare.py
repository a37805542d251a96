"""scripts/prepare.py as a user meets it: a real process, its messages and exit codes."""

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrec.data import open_dataset

ROOT = Path(__file__).parents[2]
LOG = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{i}\n" for u in (1, 2) for i in range(5))
TIMED = "--time_column=timestamp"
REAL = ROOT.parent / "shared" / "data" / "ml-100k"


STARTER: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def _starter(scripts: Any) -> None:
    STARTER["scripts"] = scripts


def start(*flags: str, limit: Callable[[], object] | None = None) -> Any:
    if limit is None:
        return STARTER["scripts"].start("prepare", *flags)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "prepare.py"), *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def run(*flags: str, limit: Callable[[], object] | None = None) -> tuple[int, str, str]:
    with start(*flags, limit=limit) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def fails(directory: Path, *flags: str, content: str = LOG) -> str:
    """Runs on a log, checks that it failed as it should, and returns the one line it said."""
    (directory / "log.csv").write_text(content)
    names = [flag.partition("=")[0] for flag in flags]
    times = () if "--time_column" in names else ("--time_column=timestamp",)
    code, out, err = run(
        f"--input={directory / 'log.csv'}", f"--output={directory / 'out'}", *times, *flags
    )
    assert code == 1, err
    assert "Traceback" not in err
    assert not out
    assert not (directory / "out").exists()
    assert [path.name for path in directory.iterdir()] == ["log.csv"]
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_log_becomes_a_dataset_with_its_report(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LOG)
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\n3,1,1\n")
    flags = [f"--input={tmp_path / name}" for name in ("a.csv", "b.csv")]
    code, out, err = run(*flags, f"--output={tmp_path / 'out'}", "--time_column=timestamp")
    assert (code, err) == (0, "")
    assert out.startswith("rule ")
    assert "3 users, 5 items, 11 events; split leave_last_out: 7 train, 2 valid, 2 test" in out
    # The user with one event stays, in training.
    data = open_dataset(tmp_path / "out")
    assert data.split[data.users == data.user_index(3)].tolist() == [0]


def test_the_embedded_data_needs_no_file(tmp_path: Path) -> None:
    code, out, _ = run("--input=synthetic", f"--output={tmp_path / 'out'}", "--min_user_events=5")
    assert code == 0
    assert "2,000 users, 600 items" in out
    assert "title" in open_dataset(tmp_path / "out").item_vocabulary


def test_an_empty_file(tmp_path: Path) -> None:
    assert "is empty" in fails(tmp_path, content="")


def test_a_missing_column(tmp_path: Path) -> None:
    assert "Did you mean 'timestamp'" in fails(tmp_path, "--time_column=time_stamp")


def test_a_time_that_is_no_number(tmp_path: Path) -> None:
    said = fails(tmp_path, "--time_column=timestamp", content=LOG + "3,1,soon\n")
    assert "'soon' in row 11" in said


def test_all_users_filtered_away(tmp_path: Path) -> None:
    assert "min_user_events=9" in fails(tmp_path, "--min_user_events=9")


def test_a_wrong_split(tmp_path: Path) -> None:
    assert "Did you mean 'leave_last_out'" in fails(tmp_path, "--split=leave_one_out")


def test_an_absent_file(tmp_path: Path) -> None:
    assert "no file matches" in fails(tmp_path, f"--input={tmp_path / 'absent.csv'}")


def test_a_stray_argument(tmp_path: Path) -> None:
    assert "unexpected argument 'more'" in fails(tmp_path, "more")


def test_a_misspelt_flag_names_the_closest() -> None:
    code, _, err = run("--inptu=a.csv")
    assert code == 1
    assert "Did you mean: input" in err
    assert "Traceback" not in err


def test_an_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    flags = (f"--input={tmp_path / 'log.csv'}", f"--output={tmp_path / 'out'}", TIMED)
    assert run(*flags)[0] == 0
    code, _, err = run(*flags)
    assert (code, "exists already" in err) == (1, True)
    assert run(*flags, "--overwrite")[0] == 0


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    code, _, err = run(
        "--input=synthetic",
        f"--output={tmp_path / 'out'}",
        limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert code == 1
    assert err.startswith("error: the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_disk_that_fills_while_files_are_sorted(tmp_path: Path) -> None:
    rows = "".join(f"{i % 977},{i % 89},{i}\n" for i in range(100_000))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    flags = (f"--input={tmp_path / 'log.csv'}", f"--output={tmp_path / 'out'}")
    assert run(*flags, TIMED)[0] == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    for more in ("--overwrite", "--append"):
        code, _, err = run(
            *flags,
            more,
            "--time_column=timestamp" if more == "--overwrite" else "--engine=pandas",
            limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        )
        assert (code, err.startswith("error: the disk is full")) == (1, True), err
        assert err.count("\n") == 1
        assert (tmp_path / "out" / "manifest.json").read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]


def test_a_day_is_appended(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "day.csv").write_text("user_id,item_id,timestamp\n2,9,9\n3,1,9\n")
    output = f"--output={tmp_path / 'out'}"
    assert run(f"--input={tmp_path / 'log.csv'}", output, "--time_column=timestamp")[0] == 0
    code, out, err = run(f"--input={tmp_path / 'day.csv'}", output, "--append")
    assert (code, err) == (0, "")
    assert "with the earlier events" in out
    assert "3 users, 6 items, 12 events" in out
    assert open_dataset(tmp_path / "out").item_index(9) == 6


def test_a_memory_limit_that_is_no_size(tmp_path: Path) -> None:
    assert "Write it like 4GB" in fails(tmp_path, "--memory_limit=lots")


@pytest.mark.parametrize("sort", [True, False])
def test_a_killed_preparation_leaves_the_earlier_dataset(tmp_path: Path, sort: bool) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    flags = (f"--input={tmp_path / 'log.csv'}", f"--output={tmp_path / 'out'}", TIMED)
    assert run(*flags)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    os.mkfifo(tmp_path / "day.csv")
    more = ("--overwrite",) if sort else ("--append",)
    with start(f"--input={tmp_path / 'day.csv'}", flags[1], *more) as process:
        with (tmp_path / "day.csv").open("w") as pipe:
            pipe.write(LOG)
            pipe.flush()
            time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "day.csv").unlink()
    assert run(*flags, "--overwrite")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "error: interrupted.\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_stops_it_and_leaves_nothing(
    tmp_path: Path, number: int, code: int, message: str
) -> None:
    os.mkfifo(tmp_path / "log.csv")  # a log whose end never comes
    flags = (f"--input={tmp_path / 'log.csv'}", f"--output={tmp_path / 'out'}")
    # Opening the pipe waits for the reader, so the signal meets it at work.
    # A job in a shell's background ignores SIGINT, and so would what it starts.
    heed = functools.partial(signal.signal, number, signal.SIG_DFL)
    with start(*flags, limit=heed) as process, (tmp_path / "log.csv").open("w"):
        time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, message)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.skipif(not REAL.exists(), reason="the MovieLens files are not beside the checkout")
@pytest.mark.parametrize("split", ["leave_last_out", "temporal", "random"])
def test_movielens_100k(tmp_path: Path, split: str) -> None:
    code, _, err = run(
        f"--input={REAL / 'ratings.csv'}",
        f"--items={REAL / 'items.csv'}",
        f"--output={tmp_path / 'out'}",
        "--time_column=timestamp",
        "--label_column=rating",
        f"--split={split}",
    )
    assert code == 0, err
    data = open_dataset(tmp_path / "out")
    assert (data.num_users, data.num_items, len(data.users)) == (943, 1682, 100_000)
    assert data.item_names([data.item_index(1)]) == ["Toy Story"]  # type: ignore[arg-type]
    events = data.manifest.split["events"]
    if split == "leave_last_out":
        assert events == {"train": 98_114, "valid": 943, "test": 943}
    else:
        assert abs(events["train"] - 80_000) < 500
