"""Leaving a run of several processes."""

import os

import jax
import pytest

from jaxrec.training import leave
from jaxrec.typing import UserError


@pytest.mark.parametrize(
    ("error", "said"), [(UserError("a mistake"), "error: a mistake"), (KeyError("a"), "KeyError: ")]
)
def test_whatever_ends_one_process_of_several_ends_it_at_once_and_is_told(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    leave(error)
    assert codes == []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    leave(error)
    assert codes == [1]
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
