"""Times have one unit and one reading, decided for the whole column or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import Dataset, build, format_report, prepare
from jaxrec.typing import UserError

SECOND = 1_704_067_200  # 2024-01-01
NS = 10**9


def log(times: Any) -> pd.DataFrame:
    return pd.DataFrame({"user_id": 1, "item_id": np.arange(len(times)), "t": times})


def of(times: Any, **options: Any) -> Dataset:
    return build(log(times), time_column="t", **options)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", NS)])
@pytest.mark.parametrize("engine", ["frame", "duckdb", "pandas"])
def test_every_unit_since_1970_becomes_nanoseconds(
    tmp_path: Path, unit: str, factor: int, engine: str
) -> None:
    whole = [SECOND * factor, (SECOND + 5) * factor]
    expected = [SECOND * NS, (SECOND + 5) * NS]
    for kind in ("int64", "str", "float64", "uint64"):
        frame = log(pd.Series(whole).astype(kind))
        if engine == "frame":
            data = build(frame, time_column="t")
        else:
            frame.to_parquet(tmp_path / "a.parquet")
            data = prepare(
                *(tmp_path / "a.parquet", tmp_path / "out"),
                engine=engine,
                time_column="t",
                overwrite=True,
            )
        np.testing.assert_allclose(data.times, expected, rtol=0, atol=256)
        assert (data.manifest.time_unit, data.manifest.time_source) == ("ns", unit)
        seconds = data.manifest.unix_seconds(data.times)
        assert seconds.dtype == np.float64
        np.testing.assert_allclose(seconds, [SECOND, SECOND + 5], atol=1e-6)


def test_counters_and_rows_stay_and_say_nothing_of_a_clock() -> None:
    data = of([3, 1])
    assert (data.times.tolist(), data.manifest.time_unit) == ([1, 3], "counter")
    assert data.manifest.unix_seconds(data.times).tolist() == [1.0, 3.0]
    rows = build(log([1, 2])[["user_id", "item_id"]])
    assert (rows.times.tolist(), rows.manifest.time_unit) == ([0, 1], "row")
    assert "no times: rows are taken to be in time order" in format_report(rows.manifest.report)


@pytest.mark.parametrize("stray", [0, -1, 17, SECOND * 1000, SECOND * 10**6])
@pytest.mark.parametrize("kind", ["int64", "str", "float64"])
def test_two_magnitudes_are_refused_with_a_value_of_each(stray: int, kind: str) -> None:
    times = pd.Series([SECOND, SECOND + 1, stray]).astype(kind)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="two magnitudes.*row (1|3).*row (1|3).*time_unit="):
        of(times)
    if stray <= 17:
        assert of(times, time_unit="s").times.tolist()[0] == stray * NS
    assert of(times, time_unit="counter").times.tolist()[0] == min(stray, SECOND)


def test_two_files_and_an_append_in_other_units_are_refused(tmp_path: Path) -> None:
    for name, factor in (("a", 1), ("b", 1000)):
        log([SECOND * factor]).to_csv(tmp_path / f"{name}.csv", index=False)
        log([SECOND * factor]).to_parquet(tmp_path / f"{name}.parquet")
    for engine in ("duckdb", "pandas"):
        for end in ("csv", "parquet"):
            with pytest.raises(UserError, match=rf"row 1 of .*a\.{end} .*row 1 of .*b\.{end}"):
                prepare(tmp_path / f"*.{end}", tmp_path / "out", time_column="t", engine=engine)
    prepare(tmp_path / "a.csv", tmp_path / "out", time_column="t")
    for other, words in (
        (tmp_path / "b.csv", "milliseconds since 1970 .* are seconds since 1970"),
        (log([5]), "whole numbers .* are seconds since 1970"),
        (log(["2024-01-01"]), "dates .* are seconds since 1970"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(other, tmp_path / "out", append=True)
    assert prepare(log([SECOND + 9]), tmp_path / "out", append=True).manifest.num_events == 2


@pytest.mark.parametrize("kind", ["int64", "str", "float64"])
def test_numbers_that_are_calendar_days_are_days(kind: str) -> None:
    for days in ([20240131, 20240201], [202401310000, 202402010000], [20240131000000]):
        data = of(pd.Series(days).astype(kind))  # type: ignore[call-overload]
        assert data.times[0] == pd.Timestamp("2024-01-31").value
        assert "taken for calendar days" in format_report(data.manifest.report)
    assert of([20240131, 20240199]).manifest.time_unit == "counter"
    assert of([20240131], time_unit="counter").times.tolist() == [20240131]


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        (["28/01/2024", "05/02/2024", "01/02/2024"], "2024-01-28"),
        (["01/28/2024", "02/05/2024"], "2024-01-28"),
        (["28.01.2024 10:15", "05.02.2024 10:15"], "2024-01-28T10:15"),
        (["31 Jan 2024", "1 February 2024"], "2024-01-31"),
        (["Jan 31, 2024 3:04 PM", "Feb 1, 2024 12:00 AM"], "2024-01-31T15:04"),
        (["Wed, 31 Jan 2024 10:15:00 GMT"], "2024-01-31T10:15"),
        (["Wed Jan 31 10:15:00 +0000 2024"], "2024-01-31T10:15"),
        (["2024/01/31", "2024-02-01"], "2024-01-31"),
        (["2024-01-31 10:15:00 +01:00", "2024-02-01"], "2024-01-31T09:15"),
        (["20240131T101500Z"], "2024-01-31T10:15"),
        (["1960-05-01", "2024-01-01"], "1960-05-01"),
        (["05/05/2024"], "2024-05-05"),
    ],
)
def test_dates_have_one_reading_over_the_column(texts: list[str], first: str) -> None:
    for values in (texts, texts[::-1]):
        assert of(values).times[0] == pd.Timestamp(first).value


def test_the_day_or_month_is_first_throughout_or_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'05/02/2024' in row 1 .*day_first=true or day_first=f"):
        of(["05/02/2024", "06/02/2024"])
    with pytest.raises(UserError, match="'28/01/2024' in row 2.*'01/28/2024' in row 3"):
        of(["05/02/2024", "28/01/2024", "01/28/2024"])
    assert of(["05/02/2024"], day_first=True).times[0] == pd.Timestamp("2024-02-05").value
    assert of(["05/02/2024"], day_first=False).times[0] == pd.Timestamp("2024-05-02").value
    with pytest.raises(UserError, match="day_first=false does not allow"):
        of(["28/01/2024"], day_first=False)
    # Decided over chunks, files and appends.
    many = ["05/02/2024"] * 300_000 + ["28/01/2024"]
    log(many).to_parquet(tmp_path / "many.parquet")
    for engine in ("duckdb", "pandas"):
        data = prepare(
            *(tmp_path / "many.parquet", tmp_path / engine), time_column="t", engine=engine
        )
        assert data.times[-1] == pd.Timestamp("2024-02-05").value
        assert data.manifest.day_first is True
    day = prepare(log(["06/02/2024"]), tmp_path / "duckdb", append=True)
    assert day.times[-1] == pd.Timestamp("2024-02-06").value
    with pytest.raises(UserError, match="the month first and those of the dataset the day"):
        prepare(log(["02/28/2024"]), tmp_path / "duckdb", append=True)


@pytest.mark.parametrize(
    "text",
    ["10:15", "10:15:00", "now", "today", "Jan", "monday", "28/01/24", "31/31/2024", "2024-02-30"]
    + ["1500-01-01", "inf", "True", "5x"],
)
def test_nothing_is_filled_in_and_the_row_is_named(text: str) -> None:
    for values in ([text], ["2024-01-01", text]):
        with pytest.raises(UserError, match=f"'t' holds '{text}' in row {len(values)} "):
            of(values)


def test_numbers_among_dates_are_refused() -> None:
    for stray in ("5", str(SECOND), "1712010203"):
        with pytest.raises(UserError, match=f"the date '2024-01-01' in row 1.*number '{stray}'"):
            of(["2024-01-01", stray])
    mixed = pd.Series([pd.Timestamp("2024-01-01"), 5], dtype=object)
    with pytest.raises(UserError, match="number '5' in row 2"):
        of(mixed)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2024-01-02", "2024-01-02"),
        (SECOND + 86_400, "2024-01-02"),
        ((SECOND + 86_400) * 1000, "2024-01-02"),
        ("20240102", "2024-01-02"),
        ("31/01/2024", "2024-01-31"),
        ("2025", "2025-01-01"),
        ("2024-01-02T01:00:00+01:00", "2024-01-02"),
    ],
)
def test_cuts_obey_the_rules_of_times(moment: Any, expected: str) -> None:
    days = pd.date_range("2023-12-25", "2024-02-10").astype("str")
    cuts = {"valid_from": moment, "test_from": "2026-01-01"}
    data = of(days, split="temporal", **cuts)
    assert data.manifest.split["valid_from"] == pd.Timestamp(expected).value


@pytest.mark.parametrize("moment", ["10:15", "now", "today", "05/02/2024", "17", "Jan", "soon"])
def test_cuts_that_are_no_moment_are_refused(moment: str) -> None:
    with pytest.raises(UserError, match=f"valid_from='{moment}'"):
        of(["2023-01-01", "2024-01-01"], split="temporal", valid_from=moment, test_from="2026")


TIMES: list[tuple[str, Any]] = [
    ("timestamp", [5, 6]),
    ("event_time", ["2024-01-01", "2024-01-02"]),
    ("createdAt", [SECOND, SECOND + 1]),
    ("unixReviewTime", [1, 2]),
    ("x", pd.to_datetime(["2024-01-01", "2024-01-02"])),
    ("y", ["2024-01-01T10:00", "2024-01-02T10:00"]),
    ("z", [SECOND, SECOND + 1]),
    ("ms", [SECOND * 1000, SECOND * 1000 + 1]),
]


@pytest.mark.parametrize(("name", "values"), TIMES)
def test_a_column_that_looks_like_times_is_refused_until_it_is_said(
    tmp_path: Path, name: str, values: Any
) -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": [1, 2], name: values})
    with pytest.raises(UserError, match=f"'{name}' looks like times.*rows_in_time_order=true"):
        build(frame)
    for end in ("csv", "parquet"):
        path = tmp_path / f"a.{end}"
        frame.to_csv(path, index=False) if end == "csv" else frame.to_parquet(path)
        with pytest.raises(UserError, match=f"time_column={name}"):
            prepare(path, tmp_path / "out")
    assert build(frame, rows_in_time_order=True).manifest.time_unit == "row"
    assert build(frame, time_column=name).manifest.time_unit in ("ns", "counter")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rating", [1, 5]),
        ("daytime", ["morning", "noon"]),
        ("weekday", ["monday", "friday"]),
        ("date", ["monday", "friday"]),
        ("updated", [True, False]),
        ("session_id", [SECOND, SECOND + 1]),
        ("plays", [3, 400_000_000]),
        ("title", ["1984", "300"]),
        ("year", [1984, 2001]),
        ("tags", [["a"], ["b"]]),
    ],
)
def test_other_columns_are_no_times(name: str, values: Any) -> None:
    data = build(pd.DataFrame({"user_id": 1, "item_id": [1, 2], name: values}))
    assert f"columns without a role, 1 of 3: {name}" in format_report(data.manifest.report)
