"""What requests and responses look like: types, limits and examples, for checks and for OpenAPI.

Items and users are named by the ids that they had in the log, as texts or as numbers: each id goes
through `jaxrec.ids.id_text`. Only the size of a body limits how long an id may be.
"""

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from jaxrec.ids import id_text
from jaxrec.typing import UserError

MAX_K = 1000
MAX_ITEMS = 1000
MAX_HISTORY = 10_000

_LARGEST_SECONDS = 1e11  # the year 5138; milliseconds of today are above
_PLAIN = re.compile(r"[A-Za-z0-9_:-]*")
_ID_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "number"}]}


def _id(value: Any) -> Any:
    """Returns the text of an id; what is none stays, for the check of types to tell of."""
    if isinstance(value, str) and value.isascii() and value.isalnum():
        return value  # most ids, in a tenth of the time
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    try:
        return id_text(value) or ""
    except UserError as error:
        raise ValueError(str(error)) from None


def _each_id(values: Any) -> Any:
    if not isinstance(values, list):
        return values
    try:
        # Most lists at once, as one by one takes longer than all else of parsing: texts of which
        # none can be a number with a fraction or have spaces around it.
        if _PLAIN.fullmatch("".join(values)):
            return values
    except TypeError:  # some are no texts
        pass
    return [_id(value) for value in values]


def _seconds(value: Any) -> Any:
    """Returns Unix seconds of a text as in ISO 8601, which is UTC unless it says its zone."""
    if isinstance(value, str):
        try:
            time = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{value[:40]!r} is no time; write 2024-05-01T10:00:00Z, or seconds since 1970"
            ) from None
        return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(value, int | float) and value >= _LARGEST_SECONDS:
        raise ValueError(
            "this is no number of seconds since 1970 but of milliseconds or less; divide it, or "
            "write 2024-05-01T10:00:00Z"
        )
    return value


def _listed(most: int, least: int = 0) -> WithJsonSchema:
    """Returns what OpenAPI says of a list of ids."""
    return WithJsonSchema(
        {"type": "array", "items": _ID_SCHEMA, "minItems": least, "maxItems": most}
    )


Id = Annotated[str, Field(min_length=1), BeforeValidator(_id), WithJsonSchema(_ID_SCHEMA)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
_Texts = list[Annotated[str, Field(min_length=1)]]
_EACH = BeforeValidator(_each_id)
_Items = Annotated[_Texts, Field(max_length=MAX_ITEMS), _EACH, _listed(MAX_ITEMS)]
_Some = Annotated[_Texts, Field(min_length=1, max_length=MAX_ITEMS), _EACH, _listed(MAX_ITEMS, 1)]
_History = Annotated[_Texts, Field(max_length=MAX_HISTORY), _EACH, _listed(MAX_HISTORY)]
Word = Annotated[str, Field(min_length=1, max_length=64)]
Number = Annotated[int, Field(strict=True)] | Annotated[float, Field(allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Filters(_Request):
    """Which items may be recommended to this one request, beside the rules of the service."""

    allow: _Items | None = Field(None, description="Only these items.", examples=[["4", "83"]])
    deny: _Items | None = Field(None, description="None of these items.", examples=[["171"]])
    categories: Annotated[list[Text], Field(max_length=50)] | None = Field(
        None, description="Only items of one of these categories.", examples=[["Comedy"]]
    )


class _Shown(_Request):
    user: Id | None = Field(
        None,
        description="Whose stored history to use, and for models that know users, who is asking.",
        examples=["196"],
    )
    history: _History | None = Field(
        None,
        description="Item ids, oldest first; in place of the stored history of the user.",
        examples=[["242", "302", "377"]],
    )
    variant: Literal["primary", "candidate"] | None = Field(
        None, description="Which model answers; the traffic split decides when it is not said."
    )
    timeout_ms: int | None = Field(
        None, ge=1, le=60_000, description="How long the request may wait for the model."
    )


class RecommendRequest(_Shown):
    """Asks for the items that a user would choose next."""

    k: int | None = Field(
        None, ge=1, le=MAX_K, description="How many; 10, or all that the model returns, by default."
    )
    filters: Filters | None = None
    context: Annotated[dict[Word, Text | bool | Number], Field(max_length=20)] | None = Field(
        None, description="What conditions of rules look at.", examples=[{"country": "DE"}]
    )
    exclude_seen: bool = Field(True, description="Leave out what is in the history.")
    explain: bool = Field(False, description="Say which item of the history is closest to each.")
    fallback: Literal["none", "popular"] = Field(
        "none", description="What to answer when nothing is known of the user: an error, or this."
    )


class ScoreRequest(_Shown):
    """Asks for the scores of given items."""

    items: _Some = Field(description="Item ids.", examples=[["4", "83", "171"]])


class SimilarRequest(_Request):
    """Asks for the items most like one item."""

    item: Id = Field(description="Item id.", examples=["242"])
    k: int | None = Field(
        None, ge=1, le=MAX_K, description="How many; 10, or all that the model returns, by default."
    )
    variant: Literal["primary", "candidate"] | None = None
    timeout_ms: int | None = Field(None, ge=1, le=60_000)


class EventIn(_Request):
    """Something that a user did with an item."""

    user: Id = Field(examples=["196"])
    item: Id = Field(examples=["242"])
    type: Word = Field("view", description="Any word, such as view, click, purchase.")
    time: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_seconds)] | None = (
        Field(
            None,
            description="Seconds since 1970, or a time as in ISO 8601, UTC unless it says its "
            "zone; now when not said. Say it, and sending an event again does not count it twice.",
            examples=[1714557600, "2024-05-01T10:00:00Z"],
        )
    )
    request_id: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="The recommendation that led to it."
    )


class EventsRequest(_Request):
    """Events to remember; each counts in the next request."""

    events: Annotated[list[EventIn], Field(min_length=1, max_length=MAX_ITEMS)]


class Reason(BaseModel):
    """Why an item is where it is."""

    kind: Literal["rule", "history", "popular"]
    name: str | None = Field(None, description="The rule, or the item of the history.")
    text: str


class ScoredItem(BaseModel):
    """An item of a list."""

    id: str
    score: float | None = Field(description="Null for an item that a rule put here.")
    title: str | None = None
    reasons: list[Reason] | None = None


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    fingerprint: str
    variant: Literal["primary", "candidate"]


class RecommendResponse(BaseModel):
    """Items, best first."""

    request_id: str = Field(examples=["03ff8831-9f86d081884c7d65"])
    model: ModelName
    experiment: str | None = None
    items: list[ScoredItem]
    unknown_items: list[str] = Field(description="Ids of the history that the model does not know.")
    fallback: bool = Field(description="Whether this is what is popular, and not the model's.")


class ItemScore(BaseModel):
    """The score of an item; null when the model does not know it."""

    id: str
    score: float | None


class ScoreResponse(BaseModel):
    """Scores in the order of the request; higher is better, comparable within one response."""

    request_id: str
    model: ModelName
    experiment: str | None = None
    scores: list[ItemScore]
    unknown_items: list[str]


class SimilarResponse(BaseModel):
    """Items by cosine similarity, best first."""

    request_id: str
    model: ModelName
    items: list[ScoredItem]


class EventsResponse(BaseModel):
    """What was stored, durably."""

    accepted: int
    unknown_items: list[str] = Field(description="Stored as well, for models that will know them.")


class ItemName(BaseModel):
    """An item and what to call it."""

    id: str
    title: str | None = None


class ItemsResponse(BaseModel):
    """Items that match a search."""

    items: list[ItemName]


class UsersResponse(BaseModel):
    """Users whose ids begin with what was asked."""

    users: list[str]


class StoredEvent(BaseModel):
    """An event that is kept of a user."""

    item: str
    type: str
    time: float = Field(description="Seconds since 1970, or a counter of the log.")


class UserEventsResponse(BaseModel):
    """What is kept of a user, oldest first."""

    user: str
    events: list[StoredEvent]


class RulesResponse(BaseModel):
    """The rules that hold, by the part that a model plays, and why a changed file was refused."""

    rules: dict[str, dict[str, Any]]
    refused: str | None


class FieldError(BaseModel):
    """What is wrong with a field."""

    path: str = Field(examples=["k"])
    message: str = Field(examples=["Input should be greater than or equal to 1"])


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["invalid_request"])
    message: str
    fields: list[FieldError] = []


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorBody
    request_id: str
