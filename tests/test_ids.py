import numpy as np
import pytest

from jaxrec.ids import id_text
from jaxrec.typing import UserError


@pytest.mark.parametrize(
    "value",
    [12, 12.0, "12", "12.0", "12.00", " 12 ", b"12", b"12.0", np.int8(12), np.uint64(12)]
    + [np.float32(12), np.float64(12), np.str_("12"), bytearray(b"12")],
)
def test_every_spelling_of_a_whole_number_is_one_id(value: object) -> None:
    assert id_text(value) == "12"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("007", "007"),
        ("007.0", "007.0"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        ("-0.0", "-0.0"),
        ("-3.0", "-3"),
        (-3, "-3"),
        (0.0, "0"),
        (-0.0, "0"),
        (2.5, "2.5"),
        (np.float32(2.2), "2.2"),
        (2**63, "9223372036854775808"),
        (2.0**53 - 1, "9007199254740991"),
        ("NA", "NA"),
        ("  a b ", "a b"),
        ("žluť", "žluť"),
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
        ("", None),
        ("  ", None),
        (b"", None),
    ],
)
def test_an_id_is_decided_by_its_value_alone(value: object, text: str | None) -> None:
    assert id_text(value) == text


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(False), [1], {"a": 1}, (1,), b"\xff", "a\0b", "\ud800", 2.0**53]
    + [float("inf"), float("-inf"), 1j, object()],
)
def test_what_is_no_id_is_refused_in_a_sentence(value: object) -> None:
    with pytest.raises(UserError, match="id"):
        id_text(value)


def test_the_text_of_an_id_is_an_id_with_the_same_text() -> None:
    for value in (12.0, "12.000", 2.5, "x ", b"y", np.float32(0.1), -1):
        text = id_text(value)
        assert text is not None
        assert id_text(text) == text
