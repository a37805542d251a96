"""Requests that are not answered, and why."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from jaxrec.serving.state import StateUnavailable


class Refusal(Exception):
    """A request that is not answered: an HTTP status, a code, and a sentence for its sender."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Sequence[Mapping[str, str]] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.fields, self.retry_after = fields, retry_after
        self.headers = headers or {}


@contextlib.contextmanager
def refusing_without_state() -> Iterator[None]:
    """Turns `StateUnavailable` of what is done inside into a refusal."""
    try:
        yield
    except StateUnavailable as error:
        message = f"the store of events does not answer ({error})."
        raise Refusal(503, "state_unavailable", message, retry_after=1) from None
