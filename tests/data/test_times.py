"""Times: numbers stay, dates become UTC nanoseconds, mistakes are named with their row."""

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import build
from jaxrec.data.times import choose_spelling, examine, parse_moment, to_times
from jaxrec.typing import UserError

DAY_NS = 86_400 * 10**9


def nanoseconds(values: object) -> list[int]:
    times, missing = to_times(pd.Series(values), "t")
    assert times.dtype == np.dtype("datetime64[ns]")
    assert not missing.any()
    return times.view(np.int64).tolist()


@pytest.mark.parametrize("values", [[3, 1], ["3", "1"], [3.0, 1.0], pd.array([3, 1], "Int64")])
def test_whole_numbers_keep_the_unit_of_the_log(values: object) -> None:
    times, _ = to_times(pd.Series(values), "t")
    assert times.dtype == np.int64
    assert times.tolist() == [3, 1]


def test_large_whole_numbers_as_text_are_exact() -> None:
    assert to_times(pd.Series(["1700000000123456789"]), "t")[0].tolist() == [1700000000123456789]


def test_seconds_with_fractions_become_nanoseconds() -> None:
    assert nanoseconds([1.5, 2.0]) == [1_500_000_000, 2_000_000_000]


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
    times = ["2023-10-29T02:30:00+02:00", "2023-10-29T02:15:00+01:00"]
    assert np.diff(nanoseconds(times)).tolist() == [45 * 60 * 10**9]


def test_missing_times_are_marked() -> None:
    for values in ([1.0, None], ["1", None], ["2020-01-01", None], [pd.Timestamp(0), pd.NaT]):
        times, missing = to_times(pd.Series(values), "t")
        assert missing.tolist() == [False, True]
        assert times.view(np.int64)[1] == 0


@pytest.mark.parametrize(
    ("values", "row", "value"),
    [
        (["1", "2", "soon", "later"], 3, "soon"),
        (["2020-01-01", "2020-13-01"], 2, "2020-13-01"),
        (["2020-01-01", "2020-01-02", "7x"], 3, "7x"),
        ([1.0, np.inf], 2, "inf"),
        (["1500-01-01"], 1, "1500-01-01"),
    ],
)
def test_the_first_bad_time_is_named(values: list, row: int, value: str) -> None:
    with pytest.raises(UserError, match=rf"'t' holds '{value}.*' in row {row} "):
        to_times(pd.Series(values), "t")


def test_moments_take_the_unit_of_the_log() -> None:
    second = 1_577_836_800  # 2020-01-01
    for scale in (1, 1000, 10**6, 10**9):
        times = np.array([second * scale], np.int64)
        assert parse_moment("2020-01-01", times, "valid_from") == second * scale
    dates = np.array(["2021-05-05"], "datetime64[ns]")
    assert parse_moment("2020", dates, "valid_from") == second * 10**9
    assert parse_moment("17", np.array([1, 20]), "valid_from") == 17


def test_moments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="no date"):
        parse_moment("spring", np.array([10**9]), "valid_from")
    with pytest.raises(UserError, match="counters"):
        parse_moment("2020-01-01", np.array([1, 20]), "valid_from")
