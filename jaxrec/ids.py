"""What an id is: one text for every value that may stand for it.

Logs, appends, metadata, requests of scripts and of the HTTP API all come here, so that 12 in a file
of integers, 12.0 in one that pandas wrote, "12" in a request and b"12" in Parquet are one user. The
text of a value depends on the value alone.
"""

import math
import re
from decimal import Decimal
from numbers import Integral, Real

from jaxrec.typing import UserError

_WHOLE_WITH_FRACTION = re.compile(r"(-?[0-9]+)\.0+")
_ZERO_OR_NO_LEADING_ZERO = re.compile(r"0|-?[1-9][0-9]*")
_EXACT = 2.0**53  # floats from here on stand for several integers each


def id_text(value: object) -> str | None:
    """Returns the text of an id.

    Args:
      value: a text, bytes in UTF-8, an integer, a float or a decimal. Spaces around a text do not
        count. A number without a fraction is an integer, as a number and as a text, so 12, 12.0,
        "12", "12.00" and b"12" are "12". Other texts stay: "007", "1.50", "1e3".

    Returns:
      The text; None for what says nothing: None, NaN and "".

    Raises:
      UserError: for what is no id: a truth value, a list, bytes that are no UTF-8, a text with NUL
        or half a surrogate pair, infinity, a float so large that it stands for several integers.
    """
    if value is None:
        return None
    if isinstance(value, bytes | bytearray):
        try:
            return _of_text(value.decode())
        except UnicodeDecodeError:
            raise UserError(
                f"the id {bytes(value[:40])!r} is bytes that are no UTF-8 text. Write ids as text "
                "or whole numbers."
            ) from None
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        raise UserError(f"{value} is a truth value and no id. Write ids as text or whole numbers.")
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal) and not value.is_infinite():
        # As a number: the zeros at its end belong to the type of its column.
        return None if value.is_nan() else _of_text(f"{value.normalize():f}")
    if isinstance(value, Real | Decimal):
        return _of_float(float(value), value)
    raise UserError(
        f"{str(value)[:80]!r} is of the type {type(value).__name__} and no id. Write ids as text "
        "or whole numbers."
    )


def _of_text(text: str) -> str | None:
    text = text.strip()
    if "\0" in text or not is_unicode(text):
        raise UserError(f"the id {text[:80]!r} holds a NUL or half a character. Correct it.")
    match = _WHOLE_WITH_FRACTION.fullmatch(text)
    if match and _ZERO_OR_NO_LEADING_ZERO.fullmatch(match[1]):
        return match[1]
    return text or None


def _of_float(number: float, value: object) -> str | None:
    if math.isnan(number):
        return None
    if not abs(number) < _EXACT:
        raise UserError(
            f"the id {number!r} is a float that stands for several whole numbers. Write large ids "
            "as integers or text."
        )
    if number.is_integer():
        return str(int(number))
    # A float32 has its own shortest spelling: 2.2 and not 2.200000047683716.
    return str(value)


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: half a surrogate pair is a `str` of Python's, and cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
