"""What a request begins with holds to its end, whatever is replaced meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from jaxrec.serving.batching import Batcher
from jaxrec.serving.deployment import Deployment, Models
from jaxrec.serving.metrics import Metrics
from jaxrec.serving.rules import load_rules
from jaxrec.serving.schemas import EventIn, EventsRequest, RecommendRequest
from jaxrec.serving.service import Refusal, Service
from jaxrec.serving.state import open_state

RULES = """
[[deny]]
name = "some"
items = ["i1", "i2"]

[[pin]]
name = "old"
item = "i40"
position = 1
"""


def run(
    deployment: Deployment, rules: Path, work: Callable[[Service], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        models = Models(
            deployment,
            make_batcher=Batcher,
            load_rules=lambda model: load_rules(rules, model.catalogue.items),
            max_batch=1,
        )
        try:
            await models.refresh()
            await work(Service(models, open_state("memory:"), Metrics(), timeout_s=30))
        finally:
            await models.close()

    asyncio.run(main())


def test_rules_and_experiment_are_the_same_throughout_a_request(
    exported: Callable[[str, int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    paths = {"primary": exported("sasrec", 0), "candidate": exported("sasrec", 1)}

    async def work(service: Service) -> None:
        models = service.models
        model = models.serving["primary"]
        before = model.rules
        ask = RecommendRequest(history=["i3"], k=5)
        under_way = asyncio.create_task(service.recommend(ask))
        while not under_way.done():  # it waits for the model
            await asyncio.sleep(0)
            if model.rules is before:
                file.write_text(RULES.replace("i40", "i50").replace("old", "new"))
                await models.refresh_rules()
                models.deployment = Deployment(**paths, experiment="another")
        reply = await under_way
        assert model.rules.version != before.version
        assert reply.body["items"][0]["id"] == "i40"
        assert reply.body["items"][0]["reasons"][0]["name"] == "old"
        assert (reply.note["rules"], reply.note["applied"]) == (before.version, ["old"])
        assert reply.body["experiment"] == reply.note["experiment"] == "one"
        reply = await service.recommend(ask)
        assert reply.body["items"][0]["id"] == "i50"
        assert (reply.note["rules"], reply.body["experiment"]) == (model.rules.version, "another")

    run(Deployment(**paths, experiment="one"), file, work)


def test_events_are_stored_whole_or_refused(
    exported: Callable[[str, int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("")

    async def work(service: Service) -> None:
        good, bad = EventIn(user="u", item="i3"), EventIn(user="u", item="i\0")
        with pytest.raises(Refusal, match="without NUL"):
            await service.add(EventsRequest(events=[good, bad]))
        assert await service.state.history("u") == []
        reply = await service.add(EventsRequest(events=[good]))
        assert reply.body == {"accepted": 1, "unknown_items": []}

    run(Deployment(primary=exported("sasrec", 0)), file, work)
