"""Columns of items as values and as times, from lists and from a parquet file that is replaced."""

import datetime
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxrec.serving.items import ItemTable
from jaxrec.typing import UserError


def table(*cells: Any) -> ItemTable:
    return ItemTable.from_columns([f"i{n}" for n in range(1, len(cells) + 1)], {"c": cells})


def test_cells_hold_one_value_several_or_none() -> None:
    cells = ["a|b", " b ", None, "", ["c", "a", None], 3, 3.0, True, float("nan"), "a||a"]
    values = table(*cells).values("c")
    found = [[values.names[code] for code in values.of(item)] for item in range(len(cells) + 1)]
    expected = [[], ["a", "b"], ["b"], [], [], ["c", "a"], ["3"], ["3"], ["true"], [], ["a"]]
    assert found == expected
    items = np.array([10, 1, 3, 5, 5])
    assert values.having(items, ["a", "nothing"]).tolist() == [True, True, False, True, True]
    everything = np.arange(len(cells) + 1)
    for name in values.names:
        assert values.having(everything, [name]).tolist() == [name in cell for cell in expected]


def test_times_are_read_in_every_form() -> None:
    utc = datetime.UTC
    cells = [
        *("1970-01-02", "1970-01-02T01:00:00+01:00", datetime.date(1970, 1, 2), 86_400, 86_400.0),
        *(datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 2, tzinfo=utc), None, ""),
    ]
    times = table(*cells).times("c")
    assert times.dtype == np.float64
    np.testing.assert_array_equal(times, [np.nan, *[86_400.0] * 7, np.nan, np.nan])


@pytest.mark.parametrize("cell", ["soon", True, 1_700_000_000_000, ["2024-01-01"]])
def test_what_is_no_time_is_named(cell: Any) -> None:
    with pytest.raises(UserError, match="column 'c' is no column of times: item 'i2' has"):
        table("2024-01-01", cell).times("c")


def test_unknown_ids_are_told_and_the_id_of_no_item_is_unknown() -> None:
    known, unknown = table("x", "y", "z").indices(["i3", "no", "i1", ""])
    assert known.tolist() == [3, 1] and known.dtype == np.int32
    assert unknown == ["no", ""]


def test_an_artefact_replaced_on_disk_does_not_change_the_table(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "genre": ["x", None], "year": [1999, None]})
    frame.to_parquet(tmp_path / "items.parquet")
    ids = np.array(["", "a", "b"])
    artefact = types.SimpleNamespace(path=tmp_path, item_ids=ids, known_items=ids != "")
    items = ItemTable.of(artefact)  # type: ignore[arg-type]
    assert items.columns == ("id", "genre", "year") and len(items) == 3
    frame["genre"] = ["other", "other"]
    frame.to_parquet(tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "items.parquet")
    assert items.values("genre").names == ("x",)
    assert items.values("year").names == ("1999",)
