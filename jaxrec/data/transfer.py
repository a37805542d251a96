"""Downloads that resume where they broke off and are checked before they are used."""

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from jaxrec.typing import UserError

_CHUNK = 1 << 18
_TIMEOUT_S = 60


def download(
    url: str, path: Path, *, md5: str | None = None, attempts: int = 4, pause_s: float = 1.0
) -> Path:
    """Downloads a file, unless a good copy is there already.

    What has arrived is kept in `path` + ".part" until it is whole, and the next attempt or the next
    call goes on from there. Without a published checksum, the SHA-256 of the first download is
    printed, kept in `path` + ".sha256" and compared from then on.

    Args:
      url: where from.
      path: where to.
      md5: the published checksum.
      attempts: how often to try before giving up.
      pause_s: seconds before the second attempt, doubled before each further one.

    Returns:
      `path`.

    Raises:
      UserError: when the server does not give the file, or gives one with another checksum; that
        one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".sha256")
    algorithm, wanted = ("md5", md5) if md5 else ("sha256", _read_note(note))
    if path.exists():
        if wanted is None or checksum(path, algorithm) == wanted:
            return path
        print(f"{path} is damaged; downloading it again", file=sys.stderr)
        path.unlink()
    problem = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            _receive(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise UserError(
                    f"{url} answered {error.code} {error.reason}. Get the file in another way and "
                    "give it as a local copy."
                ) from None
            if not _is_network(error):
                raise
            problem = str(getattr(error, "reason", error)) or type(error).__name__
    else:
        raise UserError(
            f"{url} could not be downloaded ({problem}). Run again to go on from where it stopped, "
            "or give a local copy of the file."
        )
    found = checksum(part, algorithm)
    if wanted is not None and found != wanted:
        part.unlink()
        raise UserError(
            f"{url} has the {algorithm} {found}, but {wanted} was wanted; the file was removed. "
            "Run again, or give a local copy of the file."
        )
    if wanted is None:
        print(f"{path.name}: no published checksum; sha256 {found} noted", file=sys.stderr)
        note.write_text(f"{found}  {path.name}\n")
    part.rename(path)
    return path


def checksum(path: Path, algorithm: str) -> str:
    """Returns the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _receive(url: str, part: Path) -> None:
    """Receives what is missing of a file. Raises ConnectionError when the server stops early."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it had arrived already
        part.unlink()
        return _receive(url, part)
    with response:
        if response.status != 206:
            have = 0  # the server sends the file from its start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            meter = _Meter(part.name.removesuffix(".part"), total)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                meter.show(file.tell())
            size = file.tell()
            meter.show(size, last=True)
    if total is not None and size < total:
        raise ConnectionError(f"the connection broke at {size:,} of {total:,} bytes")


class _Meter:
    """Progress on stderr: a live line in a terminal, one line at the end elsewhere."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.shown = name, total, 0.0

    def show(self, size: int, *, last: bool = False) -> None:
        live = sys.stderr.isatty()
        if not last and (not live or time.monotonic() - self.shown < 0.2):
            return
        self.shown = time.monotonic()
        of = f" of {self.total / 1e6:,.1f} MB ({size / self.total:.0%})" if self.total else " MB"
        start, end = ("\r", "\n" if last else "") if live else ("", "\n")
        print(f"{start}{self.name}: {size / 1e6:,.1f}{of}", end=end, file=sys.stderr, flush=True)


def _is_network(error: Exception) -> bool:
    kinds = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
    return isinstance(error, kinds)


def _read_note(note: Path) -> str | None:
    return note.read_text().split()[0] if note.exists() else None
