"""Keys are found by their text alone, lie in a file as hashes, and mistakes in it are named."""

import hashlib
import json
import logging
import stat
from pathlib import Path

import pytest

from jaxrec.serving.keys import Key, load_keys, new_key
from jaxrec.typing import UserError


def test_a_new_key_is_found_by_its_text_and_by_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    shop = new_key(path, "shop")
    admin = new_key(path, "ops", scopes=["events"], rate=2.5)
    keys = load_keys(path)
    assert len(keys) == 2
    hashed = hashlib.sha256(admin.encode()).hexdigest()
    assert keys.find(admin) == Key(name="ops", sha256=hashed, scopes=("events",), rate=2.5)
    found = keys.find(shop)
    assert found is not None
    assert (found.name, found.scopes, found.rate) == ("shop", ("serve", "events"), None)
    for text in ("", shop + " ", shop[:-1], shop.swapcase(), hashed, "\ud800", "ü"):
        assert keys.find(text) is None
    assert shop not in path.read_text() and admin not in path.read_text()
    assert len(shop) == 43 and shop != admin  # 256 bits in base 64


def test_the_file_is_made_for_its_owner_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = new_key(path, "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    path.write_text(path.read_text().rstrip("\n"))
    second = new_key(path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert all(load_keys(path).find(text) for text in (first, second))
    assert [p.name for p in tmp_path.iterdir()] == ["keys"]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    new_key(path, "a")
    before = path.read_bytes()
    with pytest.raises(UserError, match="has a key called 'a' already"):
        new_key(path, "a")
    assert path.read_bytes() == before
    path.write_bytes(before * 2)
    with pytest.raises(UserError, match="two keys are called 'a'"):
        load_keys(path)


def test_a_file_that_all_may_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    text = new_key(path, "a")
    with caplog.at_level(logging.WARNING):
        load_keys(path)
        assert caplog.messages == []
        path.chmod(0o644)
        assert load_keys(path).find(text)
    assert len(caplog.messages) == 1 and "chmod 600" in caplog.messages[0]


GOOD = {"name": "a", "sha256": "0" * 64, "scopes": ["serve"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: a key is a JSON object on a line of its own"),
        ("[]", "line 2: a key is a JSON object on a line of its own"),
        (json.dumps(GOOD | {"name": ""}), "line 2: `name` is a text; got ''"),
        (json.dumps(GOOD | {"sha256": "a key"}), "line 2: `sha256` is 64 hexadecimal digits"),
        (json.dumps(GOOD | {"scopes": ["all"]}), r"line 2: `scopes` lists some of .*got \['all'\]"),
        (json.dumps(GOOD | {"scopes": []}), r"line 2: `scopes` lists some of .*got \[\]"),
        (json.dumps(GOOD | {"scopes": "serve"}), "line 2: `scopes` lists some of"),
        (json.dumps(GOOD | {"rate": 0}), "line 2: `rate` is a number .* above 0; got 0"),
        (json.dumps(GOOD | {"rate": True}), "line 2: `rate` is a number .* above 0; got True"),
        (json.dumps(GOOD | {"key": "x"}), "line 2: a key has name, .*; got 'key' too"),
    ],
)
def test_mistakes_in_the_file_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"\n{line}\n")
    with pytest.raises(UserError, match=f"keys, {message}"):
        load_keys(path)


def test_hashes_are_not_repeated_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(json.dumps(GOOD | {"sha256": "a key in plain text"}))
    with pytest.raises(UserError) as caught:
        load_keys(path)
    assert "plain text" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"scopes": ["everything"]}, "`scopes` lists some of"), ({"rate": -1.0}, "`rate` is a num")],
)
def test_a_key_that_makes_no_sense_is_not_made(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        new_key(tmp_path / "keys", "a", **values)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there_or_cannot_be_written_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read .*--new_key=NAME"):
        load_keys(tmp_path / "keys")
    with pytest.raises(UserError, match="cannot be written: No such file"):
        new_key(tmp_path / "absent" / "keys", "a")
