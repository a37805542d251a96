"""Which artefacts serve: loading them beside the ones that do, swapping, splitting the traffic.

A deployment is data: one artefact, or a file that names two and how they share the traffic. When
the file or an artefact changes, the new one is loaded, checked and compiled beside the old one,
which answers until then, and stays when the new one is refused. The artefact that served last is
kept, so that going back to it takes no time.
"""

import asyncio
import dataclasses
import hashlib
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from jaxrec.export import load_artefact
from jaxrec.export.artefact import MANIFEST
from jaxrec.export.golden import check_golden
from jaxrec.serving.batching import Batcher
from jaxrec.serving.catalogue import Catalogue
from jaxrec.serving.drift import Drift
from jaxrec.serving.engine import Engine, Sizes
from jaxrec.serving.rules import Rules
from jaxrec.serving.served import Served
from jaxrec.typing import UserError

log = logging.getLogger(__name__)

type Role = Literal["primary", "candidate"]
type Watched = Literal["artefact", "rules", "keys"]
type Change = Literal["swapped", "rolled_back", "refused"]
ROLES: tuple[Role, ...] = ("primary", "candidate")
# Longer than any request may wait: who holds a model that was replaced is answered by then.
_GRACE_S = 65.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """Which artefacts serve.

    Attributes:
      primary: the artefact that answers.
      candidate: one that is compared with it.
      share: of users that the candidate answers, from 0 to 1. A user stays with one of them.
      shadow: the candidate computes what the primary is asked, and its answers are compared and
        thrown away.
      experiment: names the comparison in responses and logs; another name splits users anew.
    """

    primary: Path
    candidate: Path | None = None
    share: float = 0.0
    shadow: bool = False
    experiment: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"share is a part of users, from 0 to 1; got {self.share}.")
        if self.candidate is None and (self.share or self.shadow):
            raise UserError("share and shadow are about a candidate; name one, or leave them out.")


def read_deployment(path: Path) -> Deployment:
    """Reads a deployment from TOML; artefacts lie relative to the file.

    Raises:
      UserError: when it cannot be read, or a field is missing, unknown or of another type.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is no TOML ({error}).") from None
    known: dict[str, type | tuple[type, ...]]
    known = {"primary": str, "candidate": str, "share": (int, float), "shadow": bool}
    known |= {"experiment": str}
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"{path} has a field {name!r}; there are {', '.join(known)}.")
        if not isinstance(value, known[name]) or (name == "share" and isinstance(value, bool)):
            raise UserError(f"{path}: {name} does not take {value!r}.")
    if "primary" not in fields:
        raise UserError(f'{path} must name the artefact that answers: primary = "DIR".')
    for role in ROLES:
        if role in fields:
            fields[role] = path.parent / fields[role]
    try:
        return Deployment(**fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class Model:
    """A loaded artefact, and what answers with it.

    Attributes:
      version: what would change if another artefact lay in its place.
      engine: its programs.
      catalogue: its items.
      served: what it gave out.
      rules: what holds for its items; replaced whole.
      batcher: what runs the engine, once it serves.
    """

    rules: Rules

    def __init__(self, engine: Engine, version: tuple[Any, ...]) -> None:
        self.version = version
        self.engine = engine
        self.artefact = engine.artefact
        self.catalogue = Catalogue(engine.artefact)
        self.batcher: Batcher | None = None
        self.served = Served(
            name=self.name,
            fingerprint=self.fingerprint,
            popularity=self.catalogue.counts,
            drift=Drift(self.artefact.snapshot),
        )

    @property
    def name(self) -> str:
        return str(self.artefact.manifest["model"])

    @property
    def fingerprint(self) -> str:
        return self.artefact.fingerprint


class Models:
    """The models of a deployment. Belongs to one event loop, but for loading."""

    def __init__(
        self,
        source: Path | Deployment,
        *,
        make_batcher: Callable[[Engine], Batcher],
        load_rules: Callable[[Model], Rules],
        max_batch: int = 16,
        on_change: Callable[[Change, dict[Role, Model]], None] = lambda result, models: None,
        on_refused: Callable[[Watched, str | None], None] = lambda what, why: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Loads nothing yet.

        Args:
          source: a deployment, or the file that holds one.
          make_batcher: makes what an engine is run by.
          load_rules: makes the rules for a model's items.
          max_batch: how many queries run at once.
          on_change: is told how a change ended, and what serves now.
          on_refused: is told of what was refused, and why, and with None that nothing is any more.
          say: is told how far loading is.
        """
        self._source = source
        self._max_batch = max_batch
        self._make_batcher = make_batcher
        self._load_rules = load_rules
        self._say = say
        self._on_change, self._on_refused = on_change, on_refused
        self._serving: dict[Role, Model] = {}
        self._kept: Model | None = None
        self._ending = False
        self._rules_seen: list[tuple[int, ...]] = []
        self.rules_refused: str | None = None
        self._tried: tuple[Any, ...] | None = None
        self._reloading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self.deployment: Deployment | None = None
        self.refused: str | None = None

    @property
    def serving(self) -> dict[Role, Model]:
        """What answers, by role."""
        return self._serving

    def choose(self, key: str, asked: Role | None = None) -> tuple[Role, Model]:
        """Returns the model for a request.

        Args:
          key: names who is asking: the same key gets the same model throughout an experiment.
          asked: the role that the request wants.

        Raises:
          UserError: when there is no such role now.
        """
        role = asked or "primary"
        deployment = self.deployment
        if asked is None and deployment and deployment.share and "candidate" in self._serving:
            text = f"{deployment.experiment or ''}\0{key}".encode()
            part = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
            role = "candidate" if part < deployment.share else "primary"
        if role not in self._serving:
            raise UserError(f"no {role} model is served now.")
        return role, self._serving[role]

    async def refresh(self) -> bool:
        """Looks at the deployment, and loads what changed; returns whether anything did.

        What was refused is not tried again until it changes.

        Raises:
          UserError: when the deployment or an artefact is refused; what served before serves on.
        """
        async with self._reloading:
            try:
                deployment = self._read()
                versions = self._versions(deployment)
            except UserError as error:
                if self._tried == (str(error),):
                    return False
                self._refuse((str(error),), error)
            state = (deployment, tuple(versions.items()))
            if state == self._tried:
                return False
            try:
                models = {role: await self._model(*entry) for role, entry in versions.items()}
            except UserError as error:
                self._refuse(state, error)
            except Exception as error:  # such as too little memory for both
                log.exception("loading failed")
                told = f"the artefact could not be loaded ({type(error).__name__}: {error})."
                self._refuse(state, UserError(told))
            self._tried, self.refused = state, None
            self._on_refused("artefact", None)
            self._swap(deployment, models)
            return True

    async def refresh_rules(self) -> None:
        """Loads the rules of all models again, or of none, when a file of theirs changed.

        Raises:
          UserError: when they are refused; those before hold on.
        """
        models = self._all()
        seen = [seen_of(path) for model in models for path in model.rules.watched()]
        if seen == self._rules_seen:
            if self.rules_refused:  # what was refused is gone, and what holds is there again
                self.rules_refused = None
                self._on_refused("rules", None)
            return
        new: dict[Model, Rules] = {}
        for model in models:
            try:
                new[model] = await asyncio.to_thread(self._load_rules, model)
            except UserError as error:
                if model is not self._kept:
                    self._refuse_rules(error)
                    return
        # What is kept for going back has no say: it may lack a column that rules are about now.
        if self._kept is not None and self._kept not in new:
            self._close_later(self._kept)
            self._kept = None
        self._rules_seen, self.rules_refused = seen, None
        self._on_refused("rules", None)
        for model, rules in new.items():
            model.rules = rules
        if self.refused:  # it may have been for the rules from before
            self._tried = None

    def _refuse_rules(self, error: UserError) -> None:
        """Raises the error once; rules are tried again, as a file may come late."""
        if self.rules_refused != str(error):
            self.rules_refused = str(error)
            self._on_refused("rules", str(error))
            raise error

    def _refuse(self, state: tuple[Any, ...], error: UserError) -> NoReturn:
        self._tried, self.refused = state, str(error)
        self._on_refused("artefact", str(error))
        self._on_change("refused", self._serving)
        raise error

    def _read(self) -> Deployment:
        if isinstance(self._source, Deployment):
            return self._source
        return read_deployment(self._source)

    def _versions(self, deployment: Deployment) -> dict[Role, tuple[Path, tuple[Any, ...]]]:
        paths = {"primary": deployment.primary, "candidate": deployment.candidate}
        return {role: _version(path) for role in ROLES if (path := paths[role]) is not None}

    async def _model(self, path: Path, version: tuple[Any, ...]) -> Model:
        for model in (*self._serving.values(), self._kept):
            if model is not None and model.version == version:
                return model
        try:
            return await asyncio.to_thread(self._load, path, version)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}).") from None

    def _load(self, path: Path, version: tuple[Any, ...]) -> Model:
        # Where a link leads now: it may be moved while files are read.
        artefact = load_artefact(path.resolve())
        if _version(path)[1] != version:
            raise UserError(f"{path} changed while it was loaded; it is looked at again.")
        self._say(f"{path}: {artefact.fingerprint[:8]}, every file is right")
        check_golden(artefact)
        model = Model(Engine(artefact, Sizes.of(artefact, max_batch=self._max_batch)), version)
        model.rules = self._load_rules(model)
        model.catalogue.prepare()

        def progress(done: int, of: int) -> None:
            if self._ending:
                raise UserError("the server ends.")
            if done % 8 == 0 or done == of:
                self._say(f"{path}: {done} of {of} programs compiled")

        model.engine.warm_up(progress)
        return model

    def _swap(self, deployment: Deployment, models: dict[Role, Model]) -> None:
        before, kept = self._serving, self._kept
        for model in models.values():
            if model.batcher is None:
                model.batcher = self._make_batcher(model.engine)
        self.deployment, self._serving = deployment, models
        old = before.get("primary")
        if old is not None and old not in models.values():
            self._kept = old
        elif kept in models.values():
            self._kept = None
        for model in {*before.values(), *([kept] if kept else [])} - {*models.values(), self._kept}:
            self._close_later(model)
        back = kept is not None and models["primary"] is kept
        self._on_change("rolled_back" if back else "swapped", models)

    def _close_later(self, model: Model) -> None:
        async def close() -> None:
            await asyncio.sleep(_GRACE_S)
            if model.batcher:
                await model.batcher.close()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Answers what is waiting, and ends; what is being loaded is given up."""
        self._ending = True
        for task in self._closing:
            task.cancel()
        for model in self._all():
            if model.batcher:
                await model.batcher.close()

    def _all(self) -> list[Model]:
        return [*self._serving.values(), *([self._kept] if self._kept else [])]


def seen_of(path: Path) -> tuple[int, ...]:
    """Returns what changes when a file does; nothing of a file that is gone."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _version(path: Path) -> tuple[Path, tuple[Any, ...]]:
    """Returns where an artefact lies, and what changes when another one lies there."""
    # Without the file there is nothing to tell artefacts by; loading will say what is wrong.
    return path, (str(path.resolve()), *seen_of(path / MANIFEST))
