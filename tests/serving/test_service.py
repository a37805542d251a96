"""What a request begins with holds to its end, whatever is replaced meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from jaxrec.serving.batching import Batcher, Timed
from jaxrec.serving.deployment import Deployment, Models
from jaxrec.serving.engine import Engine, Query
from jaxrec.serving.metrics import Metrics
from jaxrec.serving.refusals import Refusal
from jaxrec.serving.rules import load_rules
from jaxrec.serving.schemas import EventsRequest, RecommendRequest
from jaxrec.serving.service import Service
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


class HeldBatcher(Batcher):
    """Keeps queries until it may let them go."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def submit(self, query: Query, timeout: float) -> Timed:
        self.asked.set()
        await self.go.wait()
        return await super().submit(query, timeout)


def run(
    deployment: Deployment, rules: Path, work: Callable[[Service], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        models = Models(
            deployment,
            make_batcher=HeldBatcher,
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

    def deployed(experiment: str) -> Deployment:
        first, second = exported("sasrec", 0), exported("sasrec", 1)
        return Deployment(primary=first, candidate=second, experiment=experiment)

    async def work(service: Service) -> None:
        models = service.models
        model = models.serving["primary"]
        before = model.rules
        ask = RecommendRequest.model_validate({"history": ["i3"], "k": 5})
        under_way = asyncio.create_task(service.recommend(ask))
        batcher = model.batcher
        assert isinstance(batcher, HeldBatcher)
        await batcher.asked.wait()
        file.write_text(RULES.replace("i40", "i50").replace("old", "new"))
        await models.refresh_rules()
        models.deployment = deployed("another")
        batcher.go.set()
        reply = await under_way
        assert model.rules.version != before.version
        assert reply.body["items"][0]["id"] == "i40"
        assert reply.body["items"][0]["reasons"][0]["name"] == "old"
        assert (reply.note["rules"], reply.note["applied"]) == (before.version, ["old"])
        assert reply.body["experiment"] == reply.note["experiment"] == "one"
        reply = await service.recommend(ask)
        assert reply.body["items"][0]["id"] == "i50"
        assert (reply.note["rules"], reply.body["experiment"]) == (model.rules.version, "another")

    run(deployed("one"), file, work)


def test_events_are_stored_whole_or_refused(
    exported: Callable[[str, int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("")

    async def work(service: Service) -> None:
        good, bad = {"user": "u", "item": "i3"}, {"user": "u", "item": "i4", "type": "a\0"}
        with pytest.raises(Refusal, match="without NUL"):
            await service.add(EventsRequest.model_validate({"events": [good, bad]}))
        assert await service.state.history("u") == []
        reply = await service.add(EventsRequest.model_validate({"events": [good]}))
        assert reply.body == {"accepted": 1, "unknown_items": []}

    run(Deployment(primary=exported("sasrec", 0)), file, work)
