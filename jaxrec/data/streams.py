"""Text files as streams of UTF-8 whose cells are separated by one byte, as Arrow wants them."""

import codecs
import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jaxrec.data.files import compression_of
from jaxrec.typing import UserError

if TYPE_CHECKING:
    from jaxrec.data.text_files import TextFile

BLOCK_BYTES = 8 << 20  # a row, review text and all, must fit
STAND_IN = "\x1f"  # for a separator that is no single byte


def open_text(file: "TextFile") -> Any:
    """Opens a file as bytes of UTF-8 whose separator is one byte."""
    raw: Any
    if file.path.is_file():
        raw = pa.input_stream(str(file.path), compression=compression_of(file.path))
    else:
        raw = file.path.open("rb")  # a pipe
    usual = codecs.lookup(file.encoding).name in ("utf-8", "utf-8-sig")
    if usual and single(file.separator) == file.separator:
        return raw
    return _Recoded(raw, file)


class _Recoded:
    """A stream of UTF-8 out of another encoding, with a stand-in for long separators."""

    closed = False

    def __init__(self, raw: Any, file: "TextFile") -> None:
        self._raw, self._file, self._left, self._ready = raw, file, "", b""
        self._decoder = codecs.getincrementaldecoder(file.encoding)("strict")
        self._long = single(file.separator) != file.separator

    def __enter__(self) -> "_Recoded":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        self._raw.close()

    def read(self, size: int = -1) -> bytes:
        size = BLOCK_BYTES if size < 0 else size
        while len(self._ready) < size:
            raw = self._raw.read(size)
            text = self._left + self._decoder.decode(raw, not raw)
            self._left = ""
            if self._long:
                text = self._replaced(text, last=not raw)
            self._ready += text.encode()
            if not raw:
                break
        found, self._ready = self._ready[:size], self._ready[size:]
        return found

    def _replaced(self, text: str, *, last: bool) -> str:
        if STAND_IN in text:
            raise UserError(f"{self._file.path} holds the character 0x1f; it cannot be read so.")
        separator = self._file.separator
        if last:
            return text.replace(separator, STAND_IN)
        parts = text.split(separator)
        keep = len(separator) - 1  # the beginning of a separator may be the end of this block
        cut = max(len(parts[-1]) - keep, 0)
        parts[-1], self._left = parts[-1][:cut], parts[-1][cut:]
        return STAND_IN.join(parts)


def single(separator: str) -> str:
    return separator if len(separator.encode()) == 1 else STAND_IN


def text_lines(stream: Any) -> io.TextIOWrapper:
    """Returns the lines of a stream, with their ends and with bytes that are no text as marks."""
    return io.TextIOWrapper(io.BufferedReader(_Raw(stream)), "utf-8", "surrogateescape", newline="")


class _Raw(io.RawIOBase):
    """A stream for `io.BufferedReader`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
