"""Starting, watching and ending the server: one process, one event loop, one thread a model."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import jax
import uvicorn

from jaxrec.serving.app import ROUTES, SCOPES, make_app
from jaxrec.serving.audit import AuditLog
from jaxrec.serving.batching import THREAD, Batcher
from jaxrec.serving.deployment import Change, Deployment, Model, Models, Role, seen_of
from jaxrec.serving.engine import Engine
from jaxrec.serving.gate import Gate, GateConfig, Health
from jaxrec.serving.histories import import_histories
from jaxrec.serving.keys import load_keys
from jaxrec.serving.limits import Limits
from jaxrec.serving.listening import Server, listen, protocol
from jaxrec.serving.metrics import Metrics
from jaxrec.serving.rules import Rules, load_rules
from jaxrec.serving.service import Service
from jaxrec.serving.state import StateUnavailable, open_state
from jaxrec.typing import UserError

log = logging.getLogger(__name__)

# The thread of the model waits for Python's lock after each batch; 5 ms, as usual, is as long as a
# batch.
_SWITCH_S = 0.0005
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How to serve.

    Attributes:
      deployment: what serves, or the file that says so.
      host, port: where to listen; port 0 takes any that is free.
      state: where events are kept; see `jaxrec.serving.state.open_state`.
      max_events: how many events of each user are kept.
      histories: a dataset whose events the store shall have.
      rules: the file of rules, or none.
      keys: the file of API keys; without one everybody may ask.
      rate: requests a second of each address, or of keys that have no rate of their own.
      audit_log: the file of the audit log, or none.
      log_users: the audit log names users.
      page: serve the page at /.
      threads: how many threads of a CPU compute; all cores but one by default, which is for the
        requests: threads that wait for a core slow each other down.
      max_batch: how many requests run at once.
      max_waiting: how many may wait for the model.
      timeout_s: how long each may wait unless it says.
      max_body: how many bytes a body may have.
      max_connections: how many clients may be connected.
      client_timeout_s: how long a client may take to send the head of a request, as long again to
        send its body, and to read what it is sent.
      drain_s: after SIGTERM, how long new requests are still answered while /readyz says no.
      reload_every_s: how often artefacts, rules and keys are looked at for changes.
      compile_cache: a folder that keeps compiled programs for the next start, or none.
    """

    deployment: Path | Deployment
    host: str = "127.0.0.1"
    port: int = 8000
    state: str = "memory:"
    max_events: int = 1000
    histories: Path | None = None
    rules: Path | None = None
    keys: Path | None = None
    rate: float | None = None
    audit_log: Path | None = None
    log_users: bool = False
    page: bool = True
    threads: int | None = None
    max_batch: int = 16
    max_waiting: int = 512
    timeout_s: float = 1.0
    max_body: int = 1 << 20
    max_connections: int = 2048
    client_timeout_s: float = 10.0
    drain_s: float = 1.0
    reload_every_s: float = 2.0
    compile_cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "timeout_s", "client_timeout_s", "reload_every_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name.removesuffix('_s')} is a number above 0; got {value}.")


def serve(config: ServerConfig, *, say: Callable[[str], None] = print) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what it has and returns.

    SIGHUP looks for changed artefacts, rules and keys at once.

    Args:
      config: how.
      say: is told in sentences what a person who starts the server waits for.

    Raises:
      UserError: when something of the configuration cannot be used.
    """
    import uvloop

    sys.setswitchinterval(_SWITCH_S)
    threads = config.threads or max(1, (os.cpu_count() or 1) - 1)
    os.environ["PJRT_NPROC"] = str(threads)  # XLA reads it when it first computes
    # What uvicorn warns of, any client can make it say as often as it likes.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Server(config, say).run())


class _Server:
    """All parts of a running server."""

    def __init__(self, config: ServerConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.began = time.perf_counter()
        self.metrics = Metrics()
        self.health = Health()
        self.keys = _Watched(load_keys, config.keys)
        self.audit: AuditLog | None = None

    async def run(self) -> None:
        config = self.config
        if config.compile_cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(config.compile_cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)
        sockets = [listen(config.host, config.port)]
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(sockets[0].close)
            self.keys.refresh()
            state = open_state(config.state, max_events=config.max_events)
            stack.push_async_callback(state.close)
            try:
                # What it needs is opened now: a full disk would not let it be opened later.
                await state.check()
            except StateUnavailable as error:
                log.warning("%s", error)
            if config.audit_log is not None:
                self.audit = AuditLog(
                    config.audit_log,
                    log_users=config.log_users,
                    on_lost=self.metrics.audit_lost.inc,
                )
                stack.push_async_callback(asyncio.to_thread, self.audit.close)
            models = self._models()
            stack.push_async_callback(models.close)
            await models.refresh()
            if config.histories is not None:
                _, model = models.choose("", "primary")
                await import_histories(state, config.histories, self.say, model.catalogue.items)
            # What is here now stays: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 20)  # a request makes a hundred things and keeps none
            service = Service(models, state, self.metrics, timeout_s=config.timeout_s)
            await self._serve(service, models, sockets)

    async def _serve(self, service: Service, models: Models, sockets: list[socket.socket]) -> None:
        config = self.config
        app = make_app(service, self.health, page=config.page)
        gate = Gate(
            app,
            config=GateConfig(
                max_body=config.max_body,
                body_timeout_s=config.client_timeout_s,
                hosts=_LOCAL | {config.host} if config.host in _LOCAL else None,
            ),
            scopes=SCOPES,
            metrics=self.metrics,
            audit=self.audit,
            keys=lambda: self.keys.value,
            limits=Limits(config.rate) if config.rate or config.keys else None,
            health=self.health,
            routes=ROUTES,
        )

        def ready() -> None:
            seconds = time.perf_counter() - self.began
            host, port = sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            self.say(f"ready in {seconds:.1f} s: http://{host}:{port}")

        server = Server(
            uvicorn.Config(
                gate,
                http=protocol(config.max_connections, config.client_timeout_s),
                loop="none",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,  # longer than load balancers keep what is idle
                timeout_graceful_shutdown=65,
            ),
            on_listening=ready,
        )
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, changed.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, server, number)
        async with _running(self.health.watch(), self._watch(service, changed), self._watch_keys()):
            await server.serve(sockets)
        self.say("stopped.")

    def _models(self) -> Models:
        def make_batcher(engine: Engine) -> Batcher:
            return Batcher(
                engine,
                max_waiting=self.config.max_waiting,
                on_batch=self.metrics.batch_size.observe,
            )

        return Models(
            self.config.deployment,
            max_batch=self.config.max_batch,
            make_batcher=make_batcher,
            load_rules=self._load_rules,
            on_change=self._changed,
            on_refused=self.metrics.refused,
            say=self.say,
        )

    def _load_rules(self, model: Model) -> Rules:
        rules = load_rules(self.config.rules, model.catalogue.items)
        for warning in rules.warnings[:20]:
            log.warning("%s", warning)
        return rules

    def _changed(self, result: Change, models: Mapping[Role, Model]) -> None:
        self.metrics.reload(result)
        self.metrics.show_models({role: model.served for role, model in models.items()})

    def _drain(self, server: uvicorn.Server, number: signal.Signals) -> None:
        if self.health.draining:
            if number == signal.SIGINT:  # somebody who waits at a terminal
                server.should_exit = server.force_exit = True
            return
        self.health.draining = True

        def end() -> None:
            server.should_exit = True

        asyncio.get_running_loop().call_later(self.config.drain_s, end)
        self.say("ending: answering what is here.")

    async def _watch(self, service: Service, changed: asyncio.Event) -> None:
        models = service.models

        async def problems() -> None:
            await service.problems(self.health.draining)

        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self.config.reload_every_s)
            changed.clear()
            for refresh in (problems, models.refresh, models.refresh_rules):
                await _told(refresh)

    async def _watch_keys(self) -> None:
        """By itself: a key that is withdrawn does not hold on while a model is compiled."""

        async def refresh() -> None:
            try:
                self.keys.refresh()
            except UserError as error:
                self.metrics.refused("keys", str(error))
                raise
            if not self.keys.refused:
                self.metrics.refused("keys", None)

        while True:
            await asyncio.sleep(self.config.reload_every_s)
            await _told(refresh)

    def _count_compilation(self, event: str, duration_secs: float, **more: str | int) -> None:
        if event == _COMPILED:
            serving = threading.current_thread().name == THREAD
            self.metrics.compiled("serving" if serving else "warmup")


class _Watched[T]:
    """What a file holds; read again when the file changes. None without a file."""

    def __init__(self, read: Callable[[Path], T], path: Path | None) -> None:
        self._read, self._path = read, path
        self._seen: tuple[int, ...] | None = None
        self.value: T | None = None
        self.refused = False

    def refresh(self) -> None:
        """Raises UserError when the file has changed and cannot be used; the old value stays."""
        if self._path is None:
            return
        seen = seen_of(self._path)
        if seen != self._seen:
            self._seen, self.refused = seen, True
            self.value = self._read(self._path)
            self.refused = False


@contextlib.asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs work beside what is done inside, and ends it afterwards."""
    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(_tell_of_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _told(refresh: Callable[[], Awaitable[object]]) -> None:
    """Looks for changes; what is wrong with them goes to the log, and the looking goes on."""
    try:
        await refresh()
    except UserError as error:
        log.warning("%s", error)
    except Exception:
        log.exception("looking for changes failed")


def _tell_of_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("work beside the requests ended", exc_info=error)
