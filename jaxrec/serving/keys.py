"""API keys: a file that holds their hashes, one key a line, so that it gives none away.

A line is a JSON object: {"name": "shop", "sha256": "…", "scopes": ["serve"], "rate": 50.0}. To
withdraw a key, remove its line. A plain SHA-256 is enough, as a key is 256 random bits and not a
word that can be guessed.
"""

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrec.config import whole_file
from jaxrec.typing import UserError

SCOPES = ("serve", "events", "users")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Key:
    """Who may ask, and what for.

    Attributes:
      name: whose it is, for limits and logs.
      sha256: of the key's text, in hexadecimal digits.
      scopes: what it is for: "serve" asks, "events" adds events, "users" sees and removes what is
        kept of a user.
      rate: requests a second; None is the rate of all.
    """

    name: str
    sha256: str
    scopes: tuple[str, ...]
    rate: float | None = None


class Keys:
    """The keys of a file."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: str) -> Key | None:
        """Returns the key of this text, or None; how long that takes does not tell which."""
        digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def load_keys(path: Path) -> Keys:
    """Reads a file of keys; warns in the log when others on this machine may read or change it.

    Raises:
      UserError: naming file and line, for what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the file of keys {path} cannot be read ({error}). Make a key with scripts/serve.py "
            "--keys=FILE --new_key=NAME."
        ) from None
    if mode & 0o007:
        _LOG.warning("%s may be read or changed by all. Say: chmod 600 %s", path, path)
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    keys = [_parse(line, f"{path}, line {n}") for n, line in lines]
    names = [key.name for key in keys]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two keys are called {twice!r}. Give each a name of its own.")
    return Keys(keys)


def new_key(
    path: Path,
    name: str,
    *,
    scopes: Sequence[str] = ("serve", "events"),
    rate: float | None = None,
) -> str:
    """Makes a random key, adds its hash to a file, and returns its text, which is nowhere else.

    The file is made if need be, for its owner alone, and is written whole or not at all.

    Raises:
      UserError: when the name is taken, or a value does not fit.
    """
    text = secrets.token_urlsafe(32)
    line: dict[str, Any] = {
        "name": name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "scopes": list(scopes),
    }
    if rate is not None:
        line["rate"] = rate
    _parse(json.dumps(line), f"the new key {name!r}")
    before, mode = "", 0o600
    if path.exists():
        if any(key.name == name for key in load_keys(path)._keys):
            raise UserError(f"{path} has a key called {name!r} already. Choose another name.")
        before, mode = path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)
    if before and not before.endswith("\n"):
        before += "\n"
    try:
        with whole_file(path) as partial:
            partial.unlink(missing_ok=True)
            with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(before + json.dumps(line) + "\n")
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    return text


def _parse(line: str, where: str) -> Key:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{where}: a key is a JSON object on a line of its own.")
    wanted = ("name", "sha256", "scopes", "rate")
    if unknown := [field for field in values if field not in wanted]:
        raise UserError(f"{where}: a key has {', '.join(wanted)}; got {unknown[0]!r} too.")
    name, digest, scopes = (values.get(field) for field in wanted[:3])
    rate = values.get("rate")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: `name` is a text; got {name!r}.")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(f"{where}: `sha256` is 64 hexadecimal digits, the hash of a key.")
    if not isinstance(scopes, list) or not scopes or not all(one in SCOPES for one in scopes):
        raise UserError(f"{where}: `scopes` lists some of {', '.join(SCOPES)}; got {scopes!r}.")
    if rate is not None and not (type(rate) in (int, float) and math.isfinite(rate) and rate > 0):
        raise UserError(f"{where}: `rate` is a number of requests a second above 0; got {rate!r}.")
    return Key(name=name, sha256=digest, scopes=tuple(scopes), rate=rate)
