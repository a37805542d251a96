"""Double quotes in text files: whether they hold cells together or are characters as others."""

import csv
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.data.streams import BLOCK_BYTES, open_text, single, text_lines

if TYPE_CHECKING:
    from jaxrec.data.text_files import TextFile


def is_odd(file: "TextFile") -> bool:
    """Whether a quote stands where none belongs, or a line ends inside of quotes."""
    ends = np.zeros(256, bool)
    ends[list(b'"\r\n' + single(file.separator).encode())] = True
    inside, before = 0, b"\n"
    with open_text(file) as stream:
        while block := stream.read(BLOCK_BYTES):
            if b'"' in block or inside:
                codes = np.frombuffer(before + block + b"\n", np.uint8)
                quotes = np.flatnonzero(codes[1:-1] == ord('"')) + 1
                # At the end of a block the next character is not known, and taken to be right.
                if not (ends[codes[quotes - 1]] | ends[codes[quotes + 1]]).all():
                    return True
                lines = np.flatnonzero(codes[1:-1] == ord("\n")) + 1
                if ((np.searchsorted(quotes, lines) + inside) % 2).any():
                    return True
                inside = (inside + len(quotes)) % 2
            before = block[-1:]
    return bool(inside)


def count_rows(file: "TextFile", *, quotes: bool) -> int | None:
    """Returns the rows of a file, or None when they have not equally many cells."""
    separator, width, count = single(file.separator), len(file.names), 0
    before = csv.field_size_limit(1 << 30)
    try:
        with open_text(file) as stream:
            lines = text_lines(stream)
            if quotes:
                for row in csv.reader(lines, delimiter=separator, strict=True):
                    if row and len(row) != width:
                        return None
                    count += bool(row)
                return count
            for line in lines:
                if line.strip("\r\n"):
                    if line.count(separator) + 1 != width:
                        return None
                    count += 1
            return count
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(before)


def row_number(file: "TextFile", bad: Any) -> int | None:
    """Returns the number of a row, from 1 and without the header, by looking for its text."""
    before = csv.field_size_limit(1 << 30)
    try:
        with open_text(file) as stream:
            lines = text_lines(stream)
            rows = csv.reader(
                lines,
                delimiter=single(file.separator),
                quoting=csv.QUOTE_NONE if file.quoting == "none" else csv.QUOTE_MINIMAL,
            )
            number = 0
            for row in rows:
                number += bool(row)
                if row and len(row) != bad.expected_columns:
                    return number - int(file.has_header)
    except csv.Error:
        pass
    finally:
        csv.field_size_limit(before)
    return None
