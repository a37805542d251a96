"""Artefacts are swapped whole or not at all, users stay with a model, and bad files are refused."""

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrec.serving.batching import Batcher
from jaxrec.serving.deployment import Deployment, Models, read_deployment
from jaxrec.serving.engine import Query
from jaxrec.serving.masks import NO_FILTERS
from jaxrec.serving.rules import load_rules
from jaxrec.typing import UserError

type Export = Callable[[str, int], Path]


def run(
    source: Path | Deployment, work: Callable[[Models, list[str]], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        changes: list[str] = []
        models = Models(
            source,
            make_batcher=Batcher,
            load_rules=lambda model: load_rules(None, model.catalogue.items),
            max_batch=1,
            on_change=lambda result, serving: changes.append(result),
        )
        try:
            await work(models, changes)
        finally:
            await models.close()

    asyncio.run(main())


async def first_item(models: Models) -> int:
    _, model = models.choose("anyone")
    assert model.batcher is not None
    query = Query("recommend", history=np.array([3, 5], np.int32))
    return int((await model.batcher.submit(query, 20)).answer.items[0])


def point(link: Path, target: Path) -> None:
    """Moves a symbolic link to another place, at once."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.rename(link)


def test_another_artefact_takes_over_and_the_last_one_comes_back_without_loading(
    exported: Export, tmp_path: Path
) -> None:
    a, b = exported("sasrec", 0), exported("sasrec", 1)
    link = tmp_path / "now"
    point(link, a)

    async def work(models: Models, changes: list[str]) -> None:
        assert await models.refresh()
        before = models.choose("anyone")[1]
        item = await first_item(models)
        assert not await models.refresh()
        point(link, b)
        assert await models.refresh()
        assert models.choose("anyone")[1].fingerprint != before.fingerprint
        # Whoever took hold of the old one is still answered.
        query = Query("recommend", history=np.array([3, 5], np.int32))
        assert before.batcher is not None
        assert (await before.batcher.submit(query, 20)).answer.items[0] == item
        point(link, a)
        assert await models.refresh()
        assert models.choose("anyone")[1] is before
        assert await first_item(models) == item
        assert changes == ["swapped", "swapped", "rolled_back"]

    run(Deployment(primary=link), work)


@pytest.mark.parametrize("harm", ["weights", "golden", "gone"])
def test_a_bad_artefact_is_refused_once_and_what_served_serves_on(
    exported: Export, tmp_path: Path, harm: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(exported("sasrec", 1), bad)
    if harm == "weights":
        data = bytearray((bad / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (bad / "weights.safetensors").write_bytes(data)
    elif harm == "golden":
        spoil_golden(bad)
    else:
        (bad / "manifest.json").unlink()
    said = {"weights": "weights.safetensors", "golden": "golden request", "gone": "manifest.json"}
    link = tmp_path / "now"
    point(link, exported("sasrec", 0))

    async def work(models: Models, changes: list[str]) -> None:
        await models.refresh()
        before = models.choose("anyone")[1]
        point(link, bad)
        with pytest.raises(UserError, match=said[harm]):
            await models.refresh()
        assert models.refused is not None and said[harm] in models.refused
        assert not await models.refresh()
        assert models.choose("anyone")[1] is before
        await first_item(models)
        point(link, exported("sasrec", 1))
        assert await models.refresh()
        assert models.refused is None
        assert changes == ["swapped", "refused", "swapped"]

    run(Deployment(primary=link), work)


def spoil_golden(artefact: Path) -> None:
    """Makes an artefact whose files are all as its manifest says, and that answers otherwise."""
    import json

    from jaxrec.export.artefact import describe_file, fingerprint_of

    golden = json.loads((artefact / "golden.json").read_text())
    golden["scores"][3][0] += 0.5
    (artefact / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((artefact / "manifest.json").read_text())
    manifest["files"]["golden.json"] = describe_file(artefact / "golden.json")
    manifest["fingerprint"] = fingerprint_of(manifest)
    (artefact / "manifest.json").write_text(json.dumps(manifest))


def test_users_keep_their_model_and_the_share_of_them_is_kept(
    exported: Export, tmp_path: Path
) -> None:
    file = tmp_path / "deployment.toml"

    def deploy(share: float, experiment: str) -> None:
        paths = (exported("sasrec", 0), exported("sasrec", 1))
        new = tmp_path / "new.toml"
        new.write_text(
            f'primary = "{paths[0]}"\ncandidate = "{paths[1]}"\nshare = {share}\n'
            f'experiment = "{experiment}"\n'
        )
        os.replace(new, file)

    async def work(models: Models, changes: list[str]) -> None:
        deploy(0.2, "first")
        await models.refresh()
        users = [f"user {n}" for n in range(2000)]
        chosen = [models.choose(user)[0] for user in users]
        assert chosen == [models.choose(user)[0] for user in users]
        share = chosen.count("candidate") / len(users)
        assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(users)) ** 0.5
        assert models.choose(users[0], "candidate")[0] == "candidate"
        deploy(0.5, "first")  # who had the candidate keeps it when its share grows
        await models.refresh()
        more = [models.choose(user)[0] for user in users]
        assert all(b == "candidate" for a, b in zip(chosen, more, strict=True) if a == "candidate")
        deploy(0.5, "second")
        await models.refresh()
        again = [models.choose(user)[0] for user in users]
        agreeing = sum(a == b for a, b in zip(more, again, strict=True)) / len(users)
        assert abs(agreeing - 0.5) < 0.06

    run(file, work)


def test_without_a_candidate_the_primary_answers_all(exported: Export) -> None:
    async def work(models: Models, changes: list[str]) -> None:
        await models.refresh()
        assert {models.choose(f"{n}")[0] for n in range(50)} == {"primary"}
        with pytest.raises(UserError, match="no candidate model is served"):
            models.choose("a", "candidate")

    run(Deployment(primary=exported("mf", 0)), work)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("primary = ", "is no TOML"),
        ("", "must name the artefact that answers"),
        ('primary = "a"\nshares = 0.1', "a field 'shares'; there are primary, candidate, share"),
        ("primary = 3", "primary does not take 3"),
        ('primary = "a"\ncandidate = "b"\nshare = true', "share does not take True"),
        ('primary = "a"\ncandidate = "b"\nshare = 1.5', "from 0 to 1; got 1.5"),
        ('primary = "a"\nshadow = true', "are about a candidate"),
    ],
)
def test_a_deployment_file_says_what_is_wrong_with_it(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "deployment.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_deployment(file)


def test_artefacts_lie_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "deployment.toml"
    file.write_text('primary = "a"\ncandidate = "/b"\nshare = 1')
    read = read_deployment(file)
    assert (read.primary, read.candidate, read.share) == (tmp_path / "a", Path("/b"), 1)
    with pytest.raises(UserError, match="nothing.toml cannot be read: No such file"):
        read_deployment(tmp_path / "nothing.toml")


def test_a_model_that_was_replaced_twice_is_freed_at_once(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxrec.serving.deployment._GRACE_S", 0.01)
    link = tmp_path / "now"
    point(link, exported("sasrec", 0))

    async def work(models: Models, changes: list[str]) -> None:
        await models.refresh()
        gc.freeze()  # as the server does; what is frozen no collector finds
        gone = weakref.ref(models.choose("anyone")[1].engine)
        gc.disable()
        try:
            for seed in (1, 2):
                point(link, exported("sasrec", seed))
                await models.refresh()
            assert await within(5, lambda: gone() is None)
        finally:
            gc.enable()
            gc.unfreeze()

    run(Deployment(primary=link), work)


async def within(seconds: float, condition: Callable[[], bool]) -> bool:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
    return True


def test_a_model_that_is_only_kept_does_not_veto_rules(exported: Export, tmp_path: Path) -> None:
    link, wanted = tmp_path / "now", tmp_path / "rules.toml"
    point(link, exported("sasrec", 0))
    wanted.write_text("")
    old: list[str] = []

    def load(model: Any) -> Any:
        if old and model.fingerprint == old[0] and wanted.read_text():
            raise UserError("the items have no column 'brand'.")
        return load_rules(wanted, model.catalogue.items)

    async def main() -> None:
        models = Models(
            Deployment(primary=link), make_batcher=Batcher, load_rules=load, max_batch=1
        )
        await models.refresh()
        await models.refresh_rules()
        old.append(models.choose("a")[1].fingerprint)
        point(link, exported("sasrec", 1))
        await models.refresh()
        wanted.write_text('[[deny]]\nname = "recalled"\nfile = "recalled.txt"\n')
        with pytest.raises(UserError, match=r"recalled\.txt"):
            await models.refresh_rules()
        await models.refresh_rules()  # it is said once
        (tmp_path / "recalled.txt").write_text("i3\n")
        await models.refresh_rules()
        assert not models.choose("a")[1].rules.mask(NO_FILTERS, {}, 0.0)[1]()[3]
        await models.close()

    asyncio.run(main())


def test_an_artefact_that_fails_to_load_in_any_way_is_refused_once(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "now"
    point(link, exported("sasrec", 0))

    async def work(models: Models, changes: list[str]) -> None:
        await models.refresh()
        point(link, exported("sasrec", 1))
        with monkeypatch.context() as patch:
            patch.setattr("jaxrec.serving.deployment.check_golden", lambda artefact: [][1])
            with pytest.raises(UserError, match="could not be loaded .IndexError"):
                await models.refresh()
            assert not await models.refresh()
        assert changes == ["swapped", "refused"]

    run(Deployment(primary=link), work)
