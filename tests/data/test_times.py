"""Converting columns of times chunk by chunk: exact numbers, zones, and what is missing."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec.data import build
from jaxrec.data.times import choose_reading, examine, parse_moment, time_columns
from jaxrec.typing import UserError

DAY_NS = 86_400 * 10**9


def convert(values: Any, **options: Any) -> tuple[list[int | None], bool]:
    """Converts a column in two chunks; returns the times and whether they are nanoseconds."""
    series = pd.Series(values)
    cut = len(series) // 2
    chunks = [series.iloc[:cut], series.iloc[cut:]] if cut else [series]
    seen = [examine(chunk, np.asarray(chunk.index)) for chunk in chunks]
    reading = choose_reading(seen, name="t", place=str, **options)
    times = pa.concat_arrays([time_columns(chunk, reading)[0] for chunk in chunks])
    assert times.type == pa.int64()
    return times.to_pylist(), reading.unit == "ns"


def nanoseconds(values: Any) -> list[int | None]:
    times, dates = convert(values)
    assert dates
    assert None not in times
    return times


@pytest.mark.parametrize("values", [[3, 1], ["3", "1"], [3.0, 1.0], pd.array([3, 1], "Int64")])
def test_whole_numbers_keep_the_unit_of_the_log(values: object) -> None:
    times, dates = convert(values)
    assert not dates
    assert times == [3, 1]


def test_large_whole_numbers_as_text_are_exact() -> None:
    large = "1700000000123456789"
    assert convert([large, "1"], time_unit="counter")[0] == [int(large), 1]
    assert nanoseconds([large]) == [int(large)]


def test_the_spelling_is_that_of_the_whole_column_not_of_its_first_chunk() -> None:
    assert nanoseconds(["19700102", "1970-01-02"]) == [DAY_NS] * 2
    assert nanoseconds([1.0, 1.5]) == [10**9, 1_500_000_000]
    assert nanoseconds(["1", "1.5"]) == [10**9, 1_500_000_000]
    times, dates = convert(["5", "6.0"])
    assert (times, dates) == ([5, 6], False)


def test_seconds_with_fractions_become_nanoseconds() -> None:
    assert nanoseconds([1.5, 2.0]) == [1_500_000_000, 2_000_000_000]
    assert nanoseconds(["1700000000.123456", "1700000000"])[0] == pytest.approx(
        1_700_000_000_123_456_000, abs=200
    )


def test_dates_are_utc_unless_they_say_otherwise() -> None:
    texts = [
        "1970-01-02",
        "1970-01-02 00:00:00",
        "1970-01-02T02:00:00+02:00",
        "1970-01-01T24:00:00Z",
    ]
    assert nanoseconds(texts[:3]) == [DAY_NS] * 3
    assert nanoseconds(pd.to_datetime(["1970-01-02"])) == [DAY_NS]
    berlin = pd.to_datetime(["1970-01-02"]).tz_localize("Europe/Berlin")
    assert nanoseconds(berlin) == [DAY_NS - 3600 * 10**9]


def test_clocks_set_back_do_not_change_the_order() -> None:
    times: Any = nanoseconds(["2023-10-29T02:30:00+02:00", "2023-10-29T02:15:00+01:00"])
    assert np.diff(times).tolist() == [45 * 60 * 10**9]


def test_missing_times_are_marked() -> None:
    for values in ([1.0, None], ["1", None], ["2020-01-01", None], [pd.Timestamp(0), pd.NaT]):
        assert [time is None for time in convert(values)[0]] == [False, True]


@pytest.mark.parametrize(
    ("values", "row", "value"),
    [
        (["1", "2", "soon", "later"], 3, "soon"),
        (["2020-01-01", "2020-13-01"], 2, "2020-13-01"),
        (["2020-01-01", "2020-01-02", "7x"], 3, "7x"),
        ([1.0, np.inf], 2, "inf"),
        (["1500-01-01"], 1, "1500-01-01"),
        ([2_000_000_000, 9_300_000_000], 2, "9300000000"),
    ],
)
def test_the_first_bad_time_is_named(values: list, row: int, value: str) -> None:
    with pytest.raises(UserError, match=rf"'t' holds '{value}.*' in row {row} "):
        build(pd.DataFrame({"user_id": 1, "item_id": 1, "t": values}), time_column="t")


def test_moments_take_the_unit_of_the_log() -> None:
    second = 1_577_836_800  # 2020-01-01
    for scale in (1, 1000, 10**6, 10**9):
        assert parse_moment(second * scale, "valid_from", unit="ns") == second * 10**9
    assert parse_moment("2020-01-01", "valid_from", unit="ns") == second * 10**9
    assert parse_moment("2020", "valid_from", unit="ns") == second * 10**9
    assert parse_moment("17", "valid_from", unit="counter", largest=20) == 17


def test_moments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="no date"):
        parse_moment("spring", "valid_from", unit="ns")
    with pytest.raises(UserError, match="counters"):
        parse_moment("2020-01-01", "valid_from", unit="counter", largest=20)
    with pytest.raises(UserError, match="counters"):
        parse_moment("1577836800", "valid_from", unit="counter", largest=20)
