"""The routes of the service, and what OpenAPI says of them."""

import asyncio
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, Literal

import pydantic_core
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import jaxrec
from jaxrec.ids import id_text
from jaxrec.serving import schemas
from jaxrec.serving.gate import Health, respond_refused
from jaxrec.serving.kserve import InferRequest, add_kserve
from jaxrec.serving.metrics import CONTENT_TYPE
from jaxrec.serving.refusals import Refusal, refusing_without_state
from jaxrec.serving.service import Reply, Service
from jaxrec.typing import UserError

# The longest beginning of a path comes first.
SCOPES = {"/v1/events": "events", "/v1/users/": "users", "/v1/": "serve", "/v2/models/": "serve"}
# What metrics and log name when a request is refused before its route is looked for.
ROUTES = (
    *("/v1/recommend", "/v1/score", "/v1/similar", "/v1/events"),
    *("/v1/model", "/v1/rules", "/v1/items", "/v1/users"),
    *("/v1/users/{id}", "DELETE /v1/users/{id}"),
    "/v2/models/{name}/infer",
)
# What may stand behind the ? of a path; other paths of /v1/ take nothing.
_QUERIES = {"/v1/items": ("query", "limit"), "/v1/users": ("query", "limit")}
_ASKED = (
    schemas.RecommendRequest,
    schemas.ScoreRequest,
    schemas.SimilarRequest,
    schemas.EventsRequest,
)
_ERRORS: dict[int, str] = {
    401: "No key, or one that is not known.",
    403: "A key without the scope.",
    404: "Something that is not known.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The request is not as described.",
    429: "Too many requests of this client; see Retry-After.",
    503: "Overloaded, or a store is gone; see Retry-After.",
}
_MOST_TOLD = 10_000  # mistakes of a body; to list more holds others up
_PAGE = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css"}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def make_app(service: Service, health: Health, *, page: bool = True) -> ASGIApp:
    """Returns the application, without the gate around it.

    Args:
      service: what answers.
      health: what the probes tell.
      page: serve the page at /, and the search for users and items that it needs.
    """
    app = FastAPI(
        title="jaxrec",
        version=jaxrec.__version__,
        summary="Recommendations from an exported model.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a client that follows would send its key to where Host says
    )
    posts = _add_posts(app, service)
    _add_probes(app, service, health)
    if page:
        _add_searches(app, service)
        _add_page(app)
    add_kserve(app, service, lambda: not health.draining)
    for kind in (Refusal, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_error)
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(_describe(FastAPI.openapi(app)))
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return posts


def parse[T: BaseModel](model: type[T], body: bytes) -> T:
    """Returns the body of a request, checked. Raises Refusal."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if (count := error.error_count()) > _MOST_TOLD:
            raise Refusal(422, "invalid_request", f"the body has {count:,} mistakes.") from None
        fields = _fields(error.errors(include_url=False, include_input=False))
        message = f"{fields[0]['path'] or 'body'}: {fields[0]['message']}"
        raise Refusal(422, "invalid_request", message, fields=fields) from None


class _Refused(Response):
    """What is said of a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond_refused(send, scope, self._refusal)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return _Refused(error)
    if isinstance(error, RequestValidationError):
        fields = _fields(error.errors())
        message = f"{fields[0]['path']}: {fields[0]['message']}"
        return _Refused(Refusal(422, "invalid_request", message, fields=fields))
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return _Refused(Refusal(error.status_code, code, error.detail, headers=error.headers))
    # Starlette raises it again once this is sent, and the gate logs it.
    return _Refused(Refusal(500, "internal", "the server failed; its log says why."))


def _fields(errors: Sequence[Any]) -> list[dict[str, str]]:
    """Returns what pydantic says is wrong, the first 20 of it, without what was sent."""
    return [
        {"path": ".".join(str(part) for part in told["loc"]), "message": told["msg"]}
        for told in errors[:20]
    ]


class _Posts:
    """Answers what is asked most by itself, and hands all else on.

    FastAPI describes these routes. On the way through its layers a request would spend as much time
    as in the rest of the service.
    """

    def __init__(self, others: ASGIApp) -> None:
        self._others = others
        self._answers: dict[str, Callable[[Scope], Awaitable[bytes]]] = {}

    def add[T: BaseModel](
        self, path: str, asked: type[T], answer: Callable[[T], Awaitable[Reply]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Adds a route; returns it in the form that FastAPI wants."""

        async def respond(scope: Scope) -> bytes:
            reply = await answer(parse(asked, scope["state"]["body"]))
            scope["state"]["note"] = reply.note
            return pydantic_core.to_json(reply.body)

        async def post(request: Request) -> Response:
            return Response(await respond(request.scope), media_type="application/json")

        self._answers[path] = respond
        return post

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["query_string"] and scope["path"].startswith("/v1/"):
            _check_query(scope["path"], scope["query_string"])
        respond = self._answers.get(scope["path"]) if scope["type"] == "http" else None
        if respond is None or scope["method"] != "POST":
            await self._others(scope, receive, send)
            return
        scope["state"]["route"] = scope["path"]
        body = await respond(scope)
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _add_posts(app: FastAPI, service: Service) -> _Posts:
    posts = _Posts(app)

    def add[T: BaseModel](
        path: str,
        asked: type[T],
        told: type[BaseModel],
        answer: Callable[[T], Awaitable[Reply]],
    ) -> None:
        body = {"$ref": f"#/components/schemas/{asked.__name__}"}
        app.add_api_route(
            path,
            posts.add(path, asked, answer),
            methods=["POST"],
            name=path.rpartition("/")[2],
            summary=(asked.__doc__ or "").strip(),
            response_model=None,
            responses={200: {"model": told}, **_errors(*_ERRORS)},
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}}
            },
        )

    recommend, score, similar, events = _ASKED
    add("/v1/recommend", recommend, schemas.RecommendResponse, service.recommend)
    add("/v1/score", score, schemas.ScoreResponse, service.score)
    add("/v1/similar", similar, schemas.SimilarResponse, service.similar)
    add("/v1/events", events, schemas.EventsResponse, service.add)
    return posts


def _add_probes(app: FastAPI, service: Service, health: Health) -> None:
    @app.get("/healthz", summary="Whether the process answers.")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz", summary="Whether it should get requests.", responses={503: {"model": _Ready}}
    )
    async def readyz() -> Response:
        problems = await service.problems(health.draining)
        body = {"status": "unready" if problems else "ready", "problems": problems}
        return Response(
            pydantic_core.to_json(body), 503 if problems else 200, media_type="application/json"
        )

    @app.get("/metrics", summary="For Prometheus.", response_class=Response)
    async def metrics() -> Response:
        waiting = (m.batcher.waiting for m in service.models.serving.values() if m.batcher)
        service.metrics.queue_length.set(sum(waiting))
        text = await asyncio.to_thread(service.metrics.exposition)
        return Response(text, media_type=CONTENT_TYPE)

    @app.get("/v1/model", summary="What serves now.", responses=_errors(401, 403, 429, 503))
    async def model() -> dict[str, Any]:
        return describe_models(service)

    @app.get(
        "/v1/rules",
        summary="The rules that hold now.",
        responses={200: {"model": schemas.RulesResponse}, **_errors(401, 403, 429, 503)},
        response_model=None,
    )
    async def rules() -> dict[str, Any]:
        serving = service.models.serving.items()
        return {
            "rules": {role: model.rules.described for role, model in serving},
            "refused": service.models.rules_refused,
        }

    _add_user(app, service)


def _add_user(app: FastAPI, service: Service) -> None:
    path, errors = "/v1/users/{id:path}", _errors(401, 403, 404, 422, 429, 503)

    def asked(request: Request, id: str, route: str) -> str:
        try:
            user = id_text(id)
        except UserError as error:
            raise Refusal(422, "invalid_request", str(error)) from None
        if not user:
            raise Refusal(422, "invalid_request", "say which user: /v1/users/ID.")
        request.scope["state"] |= {"route": route, "note": {"user": user}}
        return user

    @app.get(
        path,
        responses={200: {"model": schemas.UserEventsResponse}, **errors},
        response_model=None,
    )
    async def events(id: str, request: Request) -> dict[str, Any]:
        """Shows the events that are kept of a user."""
        user = asked(request, id, "/v1/users/{id}")
        return await service.events_of(user)

    @app.delete(path, status_code=204, responses=errors, response_class=Response)
    async def forget(id: str, request: Request) -> Response:
        """Removes all events of a user for good; what is posted afterwards counts."""
        await service.forget(asked(request, id, "DELETE /v1/users/{id}"))
        return Response(status_code=204)


def _add_searches(app: FastAPI, service: Service) -> None:
    errors = _errors(401, 403, 422, 429, 503)

    @app.get(
        "/v1/items",
        responses={200: {"model": schemas.ItemsResponse}, **errors},
        response_model=None,
    )
    async def items(query: str = "", limit: int = 20) -> dict[str, Any]:
        """Finds items whose id or title has all words of a query."""
        _check_search(query, limit)
        _, model = service.models.choose("", "primary")
        found = await asyncio.to_thread(model.catalogue.search, query, limit)
        named = [(model.catalogue.ids[n], model.catalogue.title(n)) for n in found]
        return {"items": [{"id": id, "title": title} for id, title in named]}

    @app.get(
        "/v1/users",
        responses={200: {"model": schemas.UsersResponse}, **errors},
        response_model=None,
    )
    async def users(query: str = "", limit: int = 20) -> dict[str, Any]:
        """Finds users whose ids begin with a text."""
        _check_search(query, limit)
        with refusing_without_state():
            return {"users": await service.state.users(query, limit)}


def _add_page(app: FastAPI) -> None:
    folder = resources.files("jaxrec.serving") / "page"

    def add(path: str, name: str) -> None:
        content = (folder / name).read_bytes()
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"

        async def get() -> Response:
            return Response(content, headers=_PAGE_HEADERS, media_type=kind)

        app.add_api_route(path, get, include_in_schema=False, response_model=None)

    for path, name in _PAGE.items():
        add(path, name)


def describe_models(service: Service) -> dict[str, Any]:
    """Returns what /v1/model says."""
    models, deployment = service.models, service.models.deployment
    described = {}
    for role, model in models.serving.items():
        manifest = model.artefact.manifest
        described[role] = {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "num_items": manifest["num_items"],
            "max_len": manifest["max_len"],
            "k": manifest["k"],
            "shown": list(manifest["shown"]),
            "metrics": manifest["metrics"],
            "score": manifest["score"],
            "rules": model.rules.version,
        }
    return {
        "models": described,
        "experiment": deployment.experiment if deployment else None,
        "share": deployment.share if deployment else 0.0,
        "shadow": deployment.shadow if deployment else False,
        "refused": models.refused,
        "rules_refused": models.rules_refused,
    }


class _Ready(BaseModel):
    """Why the server should get no requests."""

    status: str
    problems: list[str]


def _check_query(path: str, query: bytes) -> None:
    """Refuses names that no route reads, as unknown fields of a body are."""
    known = _QUERIES.get(path, ())
    for name, _ in urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "it takes none"
            told = f"{path} has no query parameter {name[:64]!r}; {there}."
            raise Refusal(
                422, "invalid_request", told, fields=[{"path": name[:64], "message": told}]
            )


def _check_search(query: str, limit: int) -> None:
    if len(query) > 256:
        raise Refusal(422, "invalid_request", "query has at most 256 characters.")
    if not 1 <= limit <= 100:
        raise Refusal(422, "invalid_request", f"limit is from 1 to 100; got {limit}.")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.ErrorResponse, "description": _ERRORS[status]}
        for status in statuses
    }


def _describe(openapi: dict[str, Any]) -> dict[str, Any]:
    """Adds the bodies of requests, which routes read themselves."""
    place = "#/components/schemas/{model}"
    asked: list[tuple[type[BaseModel], Literal["validation"]]]
    asked = [(model, "validation") for model in (*_ASKED, InferRequest)]
    _, defined = models_json_schema(asked, ref_template=place)
    parts = openapi.setdefault("components", {})
    parts.setdefault("schemas", {}).update(defined.get("$defs", {}))
    parts["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    return openapi
