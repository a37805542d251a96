"""What the service does for each request, whatever protocol it came by."""

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.serving.answers import listed, named
from jaxrec.serving.batching import Batcher, DeadlineExceeded, Overloaded, Timed
from jaxrec.serving.deployment import Model, Models, Role
from jaxrec.serving.engine import Query
from jaxrec.serving.masks import NO_FILTERS, Filters
from jaxrec.serving.metrics import Metrics
from jaxrec.serving.refusals import Refusal, refusing_without_state
from jaxrec.serving.rules import Candidates
from jaxrec.serving.rules_file import Context
from jaxrec.serving.schemas import (
    EventsRequest,
    RecommendRequest,
    ScoreRequest,
    SimilarRequest,
)
from jaxrec.serving.state import Event, State, StateUnavailable
from jaxrec.typing import UserError

_SHADOWS = 256
_NOTHING = np.zeros(0, np.int32)
_random = random.Random()  # of the operating system's making; ids are names, not secrets
_FALLBACK = 'ask for {"fallback": "popular"}'


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A response's body, and what the audit log says of it."""

    body: dict[str, Any]
    note: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """What a model knows of who is asking.

    Attributes:
      history: (n,) int32 items, oldest first, all of them.
      unknown: ids of the history that the model does not know.
      user: index of the user, for models that know users; else 0.
    """

    history: np.ndarray
    unknown: list[str]
    user: int

    @property
    def unknown_share(self) -> float:
        return len(self.unknown) / max(1, len(self.unknown) + len(self.history))


class _Chosen(NamedTuple):
    """The model that answers a request, its part, and the name of the comparison it is in.

    Held from the beginning to the end of the request, as any of them may be replaced meanwhile.
    """

    role: Role
    model: Model
    experiment: str | None


class Service:
    """The models, the state and the measures of one server."""

    def __init__(
        self, models: Models, state: State, metrics: Metrics, *, timeout_s: float = 1.0
    ) -> None:
        """Answers with what serves at the time of each request.

        Args:
          models: what answers.
          state: what users did.
          metrics: what counts.
          timeout_s: how long a request waits for the model unless it says.
        """
        self.models, self.state, self.metrics = models, state, metrics
        self._timeout_s = timeout_s
        self._shadows: set[asyncio.Task[None]] = set()

    async def recommend(self, ask: RecommendRequest) -> Reply:
        """Recommends items. Raises Refusal."""
        chosen = self._choose(ask.user or "\0".join(ask.history or ()), ask.variant)
        model, rules = chosen.model, chosen.model.rules  # the same ones to the end of the request
        k = _count(ask.k, model)
        known = await self._known(model, ask.user, ask.history)
        # Time of day decides what is fresh; all steps of a request see the same.
        now, context, filters = time.time(), ask.context or {}, _filters(ask)
        allowed, make_allowed = _mask(model, filters, context, now)
        seen = known.history if ask.exclude_seen else _NOTHING
        fallback = False
        if _answerable(model, known):
            query = _query(model, known, ask.exclude_seen, allowed, make_allowed)
            timed = await self._compute(model, query, ask.timeout_ms)
            count = int(np.count_nonzero(timed.answer.items))
            candidates = Candidates(
                items=timed.answer.items[:count],
                scores=timed.answer.scores[:count],
                vectors=model.catalogue.units,
                excluded=seen,
            )
            model.served.answered(
                history_length=len(known.history),
                unknown_share=known.unknown_share,
                items=candidates.items,
                scores=candidates.scores,
            )
            if chosen.role == "primary":
                self._shadow(ask, candidates.items[:k], model, now)
        elif ask.fallback == "popular":
            fallback = True
            candidates = _popular(model, seen, make_allowed)
        else:
            raise _unknown(model, ask.user, ask.history)
        started = time.perf_counter()
        ranked = rules.rerank(candidates, k, context, now, filters)
        body = _head(chosen)
        body["items"] = listed(
            model, ranked, _newest(model, known.history) if ask.explain else None, fallback
        )
        body["unknown_items"] = known.unknown
        body["fallback"] = fallback
        if ranked:
            model.served.gave(np.array([one.item for one in ranked], np.int32))
        self.metrics.impression(model.served, body["experiment"])
        self.metrics.stage("rules", time.perf_counter() - started)
        applied = sorted({reason.name for one in ranked for reason in one.reasons if reason.name})
        note = _note(body, user=ask.user, k=k, items=len(ranked))
        return Reply(body, {**note, "rules": rules.version, "applied": applied})

    async def score(self, ask: ScoreRequest) -> Reply:
        """Scores items. Raises Refusal."""
        chosen = self._choose(ask.user or "\0".join(ask.history or ()), ask.variant)
        model = chosen.model
        known = await self._known(model, ask.user, ask.history)
        if not _answerable(model, known):
            raise _unknown(model, ask.user, ask.history)
        found = {id: n for n, id in enumerate(ask.items)}
        items, unknown = model.catalogue.items.known_indices(found)
        self.metrics.ids("item", len(found), len(unknown))
        of: dict[str, float] = {}
        if len(items):
            scores = await self._scores(model, known, items, ask.timeout_ms)
            of = {
                model.catalogue.ids[n]: score
                for n, score in zip(items.tolist(), scores.tolist(), strict=True)
            }
        body = _head(chosen)
        body["scores"] = [{"id": id, "score": of.get(id)} for id in ask.items]
        body["unknown_items"] = known.unknown
        return Reply(body, _note(body, user=ask.user, items=len(ask.items)))

    async def scores(
        self, model: Model, *, history: np.ndarray | None, user: str | None, items: np.ndarray
    ) -> np.ndarray:
        """Returns (c,) float32 scores of items (c,) int32, -inf at 0, as `score` does by ids.

        Args:
          model: what scores.
          history: (l,) int32 items, oldest first; 0 is left out.
          user: the user's id, for models that know users.
          items: what to score.

        Raises:
          Refusal: when the model knows nothing of who is asking, or has no time.
        """
        seen = _NOTHING if history is None else history[history > 0]
        known = _Known(seen, [], model.catalogue.user(user))
        if not _answerable(model, known):
            raise _unknown(model, user, None if history is None else [""] * len(history))
        return await self._scores(model, known, items, None)

    async def _scores(
        self, model: Model, known: _Known, items: np.ndarray, timeout_ms: int | None
    ) -> np.ndarray:
        history = _newest(model, known.history)
        query = Query("score", history=history, user=known.user, items=items)
        return (await self._compute(model, query, timeout_ms)).answer.scores

    async def similar(self, ask: SimilarRequest) -> Reply:
        """Finds the items most like one. Raises Refusal."""
        chosen = self._choose(ask.item, ask.variant)
        model = chosen.model
        k = _count(ask.k, model)
        items, unknown = model.catalogue.items.known_indices([ask.item])
        self.metrics.ids("item", 1, len(unknown))
        if unknown:
            raise Refusal(404, "unknown_item", f"the model does not know the item {ask.item!r}.")
        timed = await self._compute(model, Query("similar", items=items), ask.timeout_ms)
        body = _head(chosen)
        pairs = zip(timed.answer.items.tolist(), timed.answer.scores.tolist(), strict=True)
        known = model.catalogue.items.known
        body["items"] = [named(model, n, score) for n, score in pairs if known[n]][:k]
        return Reply(body, _note(body, k=k, items=len(body["items"])))

    async def add(self, ask: EventsRequest) -> Reply:
        """Stores events; when it returns they are durable. Raises Refusal."""
        now = time.time()
        try:
            events = [
                Event(e.user, e.item, now if e.time is None else e.time, e.type) for e in ask.events
            ]
        except UserError as error:
            raise Refusal(422, "invalid_request", str(error)) from None
        started = time.perf_counter()
        with refusing_without_state():
            await self.state.add(events)
        self.metrics.stage("state", time.perf_counter() - started)
        for event in ask.events:
            if event.request_id:
                self.metrics.feedback(event.request_id[:8], event.type)
        _, model = self.models.choose("", "primary")
        _, unknown = model.catalogue.items.known_indices(event.item for event in events)
        self.metrics.ids("item", len(events), len(unknown))
        body = {"accepted": len(events), "unknown_items": unknown}
        return Reply(body, {"items": len(events)})

    async def events_of(self, user: str) -> dict[str, Any]:
        """Returns what is kept of a user. Raises Refusal, also when that is nothing."""
        with refusing_without_state():
            events = await self.state.events(user)
        if not events:
            raise Refusal(404, "unknown_user", f"no event is kept of the user {user!r}.")
        kept = [{"item": e.item, "type": e.type, "time": e.time} for e in events]
        return {"user": user, "events": kept}

    async def forget(self, user: str) -> None:
        """Removes what is kept of a user; when it returns that is durable. Raises Refusal."""
        with refusing_without_state():
            await self.state.forget(user)

    async def problems(self, draining: bool) -> list[str]:
        """Returns why the server should get no requests, and counts it ready without a reason."""
        problems = ["the server is about to end"] if draining else []
        try:
            await self.state.check()
        except StateUnavailable as error:
            problems.append(f"the store of events does not answer ({error})")
        self.metrics.ready.set(0 if problems else 1)
        return problems

    def _choose(self, key: str, asked: Role | None) -> _Chosen:
        try:
            role, model = self.models.choose(key, asked)
        except UserError as error:
            raise Refusal(404, "no_such_model", str(error)) from None
        deployment = self.models.deployment
        compared = deployment is not None and deployment.candidate is not None
        return _Chosen(role, model, deployment.experiment if deployment and compared else None)

    async def _known(self, model: Model, user: str | None, history: Sequence[str] | None) -> _Known:
        if user is None and history is None:
            raise Refusal(422, "invalid_request", "say whose items these are: user or history.")
        ids = history
        if ids is None and user is not None:
            started = time.perf_counter()
            with refusing_without_state():
                ids = await self.state.history(user)
            self.metrics.stage("state", time.perf_counter() - started)
        items, unknown = model.catalogue.items.known_indices(ids or ())
        self.metrics.ids("item", len(items) + len(unknown), len(unknown))
        index = model.catalogue.user(user)
        if "users" in model.artefact.shown:
            self.metrics.ids("user", 1, int(not index))
        return _Known(items, unknown, index)

    async def _compute(self, model: Model, query: Query, timeout_ms: int | None) -> Timed:
        timeout = self._timeout_s if timeout_ms is None else timeout_ms / 1000
        batcher = _batcher(model)
        try:
            timed = await batcher.submit(query, timeout)
        except Overloaded as error:
            raise Refusal(503, "overloaded", f"{error}.", retry_after=error.retry_after) from None
        except UserError as error:
            raise Refusal(422, "invalid_request", str(error)) from None
        except DeadlineExceeded:
            raise Refusal(
                503, "deadline", "the model did not get to it in time.", retry_after=1
            ) from None
        self.metrics.stage("queue", timed.waited)
        self.metrics.stage("compute", timed.computed)
        return timed

    def _shadow(self, ask: RecommendRequest, items: np.ndarray, primary: Model, now: float) -> None:
        """Asks the candidate the same beside the answer, and compares the lists."""
        deployment = self.models.deployment
        candidate = self.models.serving.get("candidate")
        if not (deployment and deployment.shadow and candidate and len(self._shadows) < _SHADOWS):
            return
        task = asyncio.create_task(self._compare(ask, items, primary, candidate, now))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(
        self,
        ask: RecommendRequest,
        items: np.ndarray,
        primary: Model,
        candidate: Model,
        now: float,
    ) -> None:
        try:
            known = await self._known(candidate, ask.user, ask.history)
            if not _answerable(candidate, known) or not len(items):
                return
            allowed = _mask(candidate, _filters(ask), ask.context or {}, now)
            query = _query(candidate, known, ask.exclude_seen, *allowed)
            answer = (await self._compute(candidate, query, ask.timeout_ms)).answer
        except Refusal:  # a shadow has no one to tell
            return
        shown = answer.items[answer.items > 0]
        candidate.served.answered(
            history_length=len(known.history),
            unknown_share=known.unknown_share,
            items=shown,
            scores=answer.scores[: len(shown)],
        )
        ours = {primary.catalogue.ids[n] for n in items.tolist()}
        theirs = {candidate.catalogue.ids[n] for n in shown[: len(items)].tolist()}
        self.metrics.shadow_overlap.observe(len(ours & theirs) / len(ours))


def _filters(ask: RecommendRequest) -> Filters:
    wished = ask.filters
    if wished is None:
        return NO_FILTERS
    return Filters(allow=wished.allow, deny=wished.deny, categories=wished.categories)


def _mask(
    model: Model, filters: Filters, context: Context, now: float
) -> tuple[Hashable, Callable[[], np.ndarray]]:
    try:
        return model.rules.mask(filters, context, now)
    except UserError as error:
        raise Refusal(422, "invalid_request", str(error)) from None


def _head(chosen: _Chosen) -> dict[str, Any]:
    role, model, experiment = chosen
    return {
        "request_id": f"{model.fingerprint[:8]}-{_random.getrandbits(64):016x}",
        "model": {"name": model.name, "fingerprint": model.fingerprint, "variant": role},
        "experiment": experiment,
    }


def _batcher(model: Model) -> Batcher:
    assert model.batcher is not None, "models that serve have a batcher"
    return model.batcher


def _answerable(model: Model, known: _Known) -> bool:
    return known.user > 0 if "users" in model.artefact.shown else len(known.history) > 0


def _newest(model: Model, history: np.ndarray) -> np.ndarray:
    longest = model.artefact.manifest["max_len"]
    return history[-longest:] if longest else history[:0]


def _query(
    model: Model,
    known: _Known,
    mask_seen: bool,
    allowed: Hashable,
    make_allowed: Callable[[], np.ndarray],
) -> Query:
    """Returns what to ask; items that the model does not read are left out one by one."""
    recent, older = _newest(model, known.history), _NOTHING
    if mask_seen and len(known.history) > len(recent):
        older = np.unique(known.history[: len(known.history) - len(recent)])
    if len(older) > model.engine.sizes.exclude[-1]:
        # Too many to name: they leave a list of their own, whose name nothing else equals.
        make, allowed = make_allowed, object()

        def without_older() -> np.ndarray:
            mask = make().copy()
            mask[older] = False
            return mask

        return Query("recommend", recent, known.user, _NOTHING, allowed, without_older, mask_seen)
    return Query("recommend", recent, known.user, older, allowed, make_allowed, mask_seen)


def _popular(model: Model, seen: np.ndarray, make_allowed: Callable[[], np.ndarray]) -> Candidates:
    items = model.catalogue.popular
    keep = make_allowed().copy()
    keep[seen] = False
    items = items[keep[items]][: model.artefact.manifest["k"]]
    scores = model.catalogue.counts[items].astype(np.float32)
    return Candidates(items=items, scores=scores, vectors=model.catalogue.units, excluded=seen)


def _note(body: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    model = body["model"]
    return {
        "request_id": body["request_id"],
        "model": model["fingerprint"],
        "variant": model["variant"],
        "experiment": body.get("experiment"),
        **more,
    }


def _unknown(model: Model, user: str | None, history: Sequence[str] | None) -> Refusal:
    if "users" in model.artefact.shown:
        what = "says no user" if user is None else f"names the user {user!r}, who is unknown"
        status = 422 if user is None else 404
        why = f"the request {what}, and the model knows only users that it was trained on"
        return Refusal(status, "unknown_user", f"{why}. Name one of them, or {_FALLBACK}.")
    then = f"Send a history, or {_FALLBACK}."
    if history is not None:
        what = "the model knows no item of the history" if history else "the history is empty"
        return Refusal(422, "unknown_items", f"{what}. {then}")
    return Refusal(404, "unknown_user", f"nothing is known of the user {user!r}. {then}")


def _count(k: int | None, model: Model) -> int:
    """Returns how many items to give. Raises Refusal for more than there may be."""
    most = int(model.artefact.manifest["k"])
    if k is None:
        return min(10, most)
    if k > most:
        told = f"k is at most {most} for this model; got {k}."
        raise Refusal(422, "invalid_request", told, fields=[{"path": "k", "message": told}])
    return k
