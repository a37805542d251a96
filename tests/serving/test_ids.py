"""Ids and times of requests in every spelling that means them, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from jaxrec.serving import schemas
from jaxrec.serving.kserve import Tensor, _from_binary, _from_json
from jaxrec.serving.refusals import Refusal
from jaxrec.serving.rules_file import read_rules_file, to_id
from jaxrec.typing import UserError

REQUESTS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "user": (schemas.RecommendRequest, {}),
    "history": (schemas.RecommendRequest, {}),
    "filters.allow": (schemas.RecommendRequest, {}),
    "filters.deny": (schemas.RecommendRequest, {}),
    "items": (schemas.ScoreRequest, {"user": "1"}),
    "item": (schemas.SimilarRequest, {}),
    "events.user": (schemas.EventsRequest, {"item": "1"}),
    "events.item": (schemas.EventsRequest, {"user": "1"}),
}
LISTS = {"history", "filters.allow", "filters.deny", "items"}


def parsed(field: str, value: Any) -> str:
    """The id that a request has when a field of it is a value."""
    kind, rest = REQUESTS[field]
    outer, _, name = field.rpartition(".")
    given = rest | {name: [value] if field in LISTS else value}
    if outer:
        given = {outer: [given] if outer == "events" else given}
    body: Any = kind.model_validate_json(json.dumps(given))
    if outer:
        body = getattr(body, outer)
        body = body[0] if outer == "events" else body
    found = getattr(body, name)
    return str(found[0] if field in LISTS else found)


@pytest.mark.parametrize("field", REQUESTS)
def test_ids_are_texts_or_numbers_in_every_field(field: str) -> None:
    for value in (196, "196", 196.0, "196.0", " 196 "):
        assert parsed(field, value) == "196"
    for value in ("007", "a b", "é", "1e3", "x" * 5_000):
        assert parsed(field, value) == value
    wrong: list[Any] = [True, False, None if field in LISTS else [], "", " ", {}, 1e300, "a\0b"]
    for value in wrong:
        with pytest.raises(ValidationError):
            parsed(field, value)


def test_every_id_of_a_request_is_of_the_type_of_ids() -> None:
    """Of all fields that name users or items, those of this file are tried."""
    named = {"user", "item", "items", "history", "allow", "deny"}
    there = {
        (kind.__name__, name)
        for kind in vars(schemas).values()
        if isinstance(kind, type) and issubclass(kind, schemas._Request)
        for name in kind.model_fields
        if name in named
    }
    for kind, name in there:
        schema = getattr(schemas, kind).model_json_schema()["properties"][name]
        assert "number" in json.dumps(schema), f"{kind}.{name} takes no numbers"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (1_714_557_600, 1_714_557_600.0),
        (0.5, 0.5),
        ("2024-05-01T10:00:00Z", 1_714_557_600.0),
        ("2024-05-01T12:00:00+02:00", 1_714_557_600.0),
        ("2024-05-01T10:00:00", 1_714_557_600.0),
        ("2024-05-01", 1_714_521_600.0),
    ],
)
def test_times_are_seconds_or_iso(time: Any, seconds: float) -> None:
    body = json.dumps({"user": 1, "item": 2, "time": time})
    assert schemas.EventIn.model_validate_json(body).time == seconds


@pytest.mark.parametrize(
    "time", [1_714_557_600_000, "now", "10:15", "1714557600", True, -1, "", []]
)
def test_what_is_no_time_is_refused(time: Any) -> None:
    body = json.dumps({"user": 1, "item": 2, "time": time})
    with pytest.raises(ValidationError) as error:
        schemas.EventIn.model_validate_json(body)
    if isinstance(time, int) and time > 1e11:
        assert "milliseconds" in str(error.value)


def test_ids_of_the_inference_protocol_are_ids_too() -> None:
    values = _from_json(
        Tensor(name="items", shape=[4], datatype="BYTES", data=[12, "12.0", "", "a"])
    )
    assert values == ["12", "12", "", "a"]
    for wrong in (True, None, ["x"]):
        with pytest.raises(Refusal):
            _from_json(Tensor(name="items", shape=[1], datatype="BYTES", data=[wrong]))
    data = b"".join(len(text).to_bytes(4, "little") + text for text in (b" 12 ", b"3.0"))
    assert _from_binary(Tensor(name="items", shape=[2], datatype="BYTES"), data) == ["12", "3"]


def test_ids_of_rules_are_ids_too(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("12.0\n 7 \n\nabc\n")
    (tmp_path / "rules.toml").write_text('[[deny]]\nname = "a"\nfile = "ids.txt"\n')
    assert read_rules_file(tmp_path / "rules.toml").ids == {"ids.txt": ["12", "7", "abc"]}
    assert (to_id(12), to_id("12.0"), to_id("")) == ("12", "12", "")
    (tmp_path / "ids.txt").write_text("a\0b\n")
    with pytest.raises(UserError, match=r"ids.txt.*NUL"):
        read_rules_file(tmp_path / "rules.toml")
