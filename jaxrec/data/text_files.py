"""Text files of rows and cells: their encoding, separator and quotes, read by Arrow in batches."""

import codecs
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from jaxrec.data.files import SEPARATORS, kind_of, unknown_kind
from jaxrec.data.quotes import count_rows, is_odd, row_number
from jaxrec.data.streams import BLOCK_BYTES, STAND_IN, open_text, single
from jaxrec.typing import UserError

QUOTINGS = ("minimal", "none")
_ATOMIC = ("token", "float", "token_seq", "float_seq")
_CANDIDATES = ("::", ";", "\t", "|", ",", ":", " ")
_FAULTS = (OSError, EOFError, ValueError, pa.ArrowException, csv.Error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How text files are written, where that is not as usual.

    Attributes:
      separator: of cells, any text; None takes the one of the ending: "," of .csv, a tab of .tsv.
      encoding: such as "latin-1", "cp1250" or "utf-16"; None means UTF-8.
      quoting: "minimal", cells in double quotes may hold anything, with doubled quotes inside;
        "none", quotes are characters as others. None looks at the file: it is "minimal" if the
        quotes of the file are right, else "none".
      column_names: of files without a header.

    Raises:
      UserError: for an encoding, a quoting or names that cannot be.
    """

    separator: str | None = None
    encoding: str | None = None
    quoting: str | None = None
    column_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.separator is not None:
            object.__setattr__(self, "separator", self.separator.replace("\\t", "\t"))
            if not self.separator or self.separator in ('"', "\n", "\r"):
                raise UserError(
                    f"separator={self.separator!r} cannot separate cells. Write ; or ::"
                )
        if self.quoting is not None and self.quoting not in QUOTINGS:
            raise UserError(f"quoting={self.quoting!r} is not known. Choose minimal or none.")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise UserError(
                    f"encoding={self.encoding!r} is not known. Write it like latin-1, cp1250 or "
                    "utf-16."
                ) from None
        if self.column_names is not None:
            names = self.column_names
            names = names.split(",") if isinstance(names, str) else names
            object.__setattr__(self, "column_names", tuple(name.strip() for name in names))
            if len(set(self.column_names)) < len(self.column_names) or not self.column_names:
                raise UserError(
                    f"column_names={','.join(self.column_names)} must be the names of all columns, "
                    "each once."
                )

    @property
    def is_usual(self) -> bool:
        """Whether nothing was said."""
        return self == TextFormat()

    def without_names(self) -> "TextFormat":
        """Returns the format of files beside the log: these have headers."""
        return dataclasses.replace(self, column_names=None)


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A text file as it was found to be.

    Attributes:
      path: where it is.
      names: of its columns, in order, without the types of atomic files.
      types: of the columns of an atomic file, such as "token"; empty for other files.
      separator, encoding, quoting: as in `TextFormat`, decided.
      first: lines before the first row of events: empty ones and the header.
      has_header: whether the first row is one.
      note: what to say of it in the report, or "".
    """

    path: Path
    names: tuple[str, ...]
    types: tuple[str, ...]
    separator: str
    encoding: str
    quoting: str
    blank: int
    has_header: bool
    note: str = ""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Reads columns as text, as they are written, some megabytes at a time.

        Raises:
          UserError: for a row with more or fewer cells than there are columns, bytes that are no
            text, or a damaged file.
        """
        places = [str(self.names.index(name)) for name in columns]
        bad: list[Any] = []

        def on_invalid(row: Any) -> str:
            bad.append(row)
            return "error"

        options: dict[str, Any] = {
            "read_options": pa.csv.ReadOptions(
                block_size=BLOCK_BYTES,
                column_names=[str(number) for number in range(len(self.names))],
                skip_rows=self.blank,
                skip_rows_after_names=int(self.has_header),
            ),
            "parse_options": pa.csv.ParseOptions(
                delimiter=single(self.separator),
                quote_char='"' if self.quoting == "minimal" else False,
                newlines_in_values=self.quoting == "minimal",
                invalid_row_handler=on_invalid,
            ),
            "convert_options": pa.csv.ConvertOptions(
                include_columns=list(dict.fromkeys(places)),
                column_types=dict.fromkeys(places, pa.string()),
                strings_can_be_null=False,
            ),
        }
        count = 0
        try:
            with open_text(self) as stream, pa.csv.open_csv(stream, **options) as reader:
                for batch in reader:
                    count += len(batch)
                    arrays = [self._restored(batch.column(place)) for place in places]
                    yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
        except UserError:
            raise
        except _FAULTS as error:
            if bad:
                raise self._shifted(bad[0]) from None
            if isinstance(error, StopIteration) or "Empty CSV" in str(error):
                return
            raise unreadable(self.path, error) from None

    def _restored(self, values: pa.Array) -> pa.Array:
        if single(self.separator) == self.separator:
            return values
        return pc.replace_substring(values, STAND_IN, self.separator)

    def _shifted(self, row: Any) -> UserError:
        """Returns the one sentence for a row with a wrong number of cells."""
        text = row.text.replace(STAND_IN, self.separator).strip()
        number = row_number(self, row)
        where = f"row {number} (header not counted), {text[:80]!r}," if number else f"{text[:80]!r}"
        hint = "Put cells that hold the separator in double quotes, or correct the row."
        if '"' in text:
            hint = "Double the quotes inside of quoted cells, or say quoting=none."
        return UserError(
            f"{self.path} cannot be read: {where} has {row.actual_columns} cells and the file has "
            f"{row.expected_columns} columns. {hint}"
        )


def look(path: Path, form: TextFormat) -> TextFile:
    """Finds out how a text file is written: its columns, separator and quotes.

    Raises:
      UserError: when it is empty, damaged, of no known ending, or its quotes can be read in two
        ways.
    """
    kind = kind_of(path)
    separator = form.separator or SEPARATORS.get(kind or "", "")
    if not separator:
        raise unknown_kind(path)
    if path.is_file() and path.stat().st_size == 0:
        raise _empty(path)
    file = TextFile(
        path=path,
        names=(),
        types=(),
        separator=separator,
        encoding=form.encoding or "utf-8",
        quoting=form.quoting or "minimal",
        blank=0,
        has_header=form.column_names is None,
    )
    try:
        file = _with_names(file, form)
        if form.quoting is None and path.is_file():
            file = _with_quoting(file)
    except UserError:
        raise
    except _FAULTS as error:
        raise unreadable(path, error) from None
    return file


def hint(file: TextFile) -> str:
    """Returns what to try when a file has not the columns that were wanted."""
    (first, *more) = file.names
    if not more:
        for separator in _CANDIDATES:
            if separator in first and separator != file.separator:
                return f" Its cells may be separated otherwise: try separator={separator!r}."
    if any(name.strip().lstrip("-").replace(".", "", 1).isdigit() for name in file.names):
        return " If it has no header, say column_names=NAME,NAME,… of all its columns."
    return ""


def unreadable(path: Path, error: Exception) -> UserError:
    """Returns the one sentence for a file that made a reader fail."""
    words = str(error).strip()
    reason = words.splitlines()[0][:200] if words else type(error).__name__
    if "utf8" in reason.lower() or (isinstance(error, UnicodeError) and "utf-8" in reason):
        return UserError(
            f"{path} is not UTF-8 text ({reason}). Say its encoding, such as encoding=latin-1, "
            "cp1252 or utf-16."
        )
    if isinstance(error, UnicodeError):
        return UserError(f"{path} is not in the encoding that was said ({reason}). Say another.")
    return UserError(f"{path} cannot be read ({reason}). It may be damaged or of another format.")


def _empty(path: Path) -> UserError:
    return UserError(f"{path} is empty. Give a file with a header and events.")


def _with_names(file: TextFile, form: TextFormat) -> TextFile:
    with open_text(file) as stream:
        start = stream.read(1 << 20)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{file.path} is not UTF-8 but UTF-16 text. Say encoding=utf-16.")
    text = start.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=single(file.separator),
        quoting=csv.QUOTE_NONE if file.quoting == "none" else csv.QUOTE_MINIMAL,
    )
    blank, first = 0, None
    for row in reader:
        if row:
            first = [cell.replace(STAND_IN, file.separator) for cell in row]
            break
        blank = reader.line_num
    if first is None:
        raise _empty(file.path)
    "".join(first).encode()  # raises for what is no UTF-8
    names: tuple[str, ...] = tuple(first)
    types: tuple[str, ...] = ()
    if form.column_names is not None:
        names = tuple(form.column_names)
        if len(names) != len(first):
            raise UserError(
                f"column_names has {len(names)} names, and the first row of {file.path} has "
                f"{len(first)} cells. Name every column."
            )
    elif all(":" in name and name.rpartition(":")[2] in _ATOMIC for name in names):
        types = tuple(name.rpartition(":")[2] for name in names)
        names = tuple(name.rpartition(":")[0] for name in names)
    return dataclasses.replace(file, names=names, types=types, blank=blank)


def _with_quoting(file: TextFile) -> TextFile:
    """Decides whether quotes are quotes, by what makes rows of equally many cells."""
    if not is_odd(file):
        return file
    quoted, plain = count_rows(file, quotes=True), count_rows(file, quotes=False)
    if quoted is not None and plain is not None and quoted != plain:
        raise UserError(
            f"{file.path} has {quoted:,} rows if double quotes hold cells together and {plain:,} "
            "if they are characters as others. Say quoting=none for characters, or "
            "quoting=minimal."
        )
    if quoted is None and plain is not None:
        note = f"{file.path}: double quotes are taken for characters as others (quoting=none)"
        # The header, too, is what it says.
        names = _with_names(dataclasses.replace(file, quoting="none"), TextFormat()).names
        names = names if file.has_header and not file.types else file.names
        return dataclasses.replace(file, quoting="none", names=names, note=note)
    return file
