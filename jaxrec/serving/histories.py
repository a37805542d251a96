"""What users did before the service began: a dataset's events, put into a store.

The store notes which dataset filled it. It takes what is new of that dataset after an append, and
refuses another one, whose users and items may go by the same ids and mean others.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrec.serving.state import Event, State, StateUnavailable
from jaxrec.typing import UserError

if TYPE_CHECKING:
    from jaxrec.data.dataset import Dataset
    from jaxrec.serving.items import ItemTable

_AT_ONCE = 10_000
_NOTE = "histories"
_COUNTERS_END = 1e8  # seconds: 1973


async def import_histories(
    state: State, path: Path, say: Callable[[str], None], items: "ItemTable | None" = None
) -> None:
    """Adds the events of a prepared dataset to a store that has not all of them.

    Events are as durable, and as often there, as any: one that is there already counts once, so an
    import that was killed is done again. Users who were forgotten stay so.

    Args:
      state: the store.
      path: a directory that `scripts/prepare.py` wrote.
      say: is told how far it is.
      items: the catalogue that is served.

    Raises:
      UserError: when there is no dataset, the store was filled from another one, no item of it is
        in the catalogue, or the store does not answer.
    """
    # pandas comes with it, and a server that imports nothing does without.
    from jaxrec.data.dataset import open_dataset

    dataset = open_dataset(path)
    if items is not None and not len(items.indices(dataset.item_vocabulary["id"])[0]):
        raise UserError(
            f"no item of {path} is in the catalogue of the artefact, so its histories are of "
            "something else. Name the dataset of this model: --histories=DATASET."
        )
    try:
        await _import(state, dataset, path, say)
    except StateUnavailable as error:
        raise UserError(f"histories cannot be imported: {error}.") from None


async def _import(state: State, dataset: "Dataset", path: Path, say: Callable[[str], None]) -> None:
    manifest = dataset.manifest
    told = await state.note(_NOTE)
    before: dict[str, Any] = json.loads(told) if told else {}
    filled = before.get("fingerprint", "")
    if filled == manifest.fingerprint and before["whole"]:
        say("the store has these histories already.")
        return
    ancestors = [step["parent"] for step in manifest.lineage]
    if filled not in ("", manifest.fingerprint, *ancestors):
        raise UserError(
            f"the store was filled from another dataset (fingerprint {filled[:12]}) than {path} "
            f"({manifest.fingerprint[:12]}), and none that it was appended to. Give that dataset, "
            "or another --state for this one."
        )
    note = {"fingerprint": manifest.fingerprint, "items": manifest.item_fingerprint}
    # First of all: of what is killed half way, another dataset must not go on.
    await state.set_note(_NOTE, json.dumps(note | {"whole": False}))
    await _add(state, dataset, say)
    await state.set_note(_NOTE, json.dumps(note | {"whole": True}))


async def _add(state: State, dataset: "Dataset", say: Callable[[str], None]) -> None:
    users = dataset.user_vocabulary["id"].tolist()
    items = dataset.item_vocabulary["id"].tolist()
    forgotten = await state.forgotten()
    count, latest = dataset.manifest.num_events, 0.0
    for start in range(0, count, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        times = dataset.manifest.unix_seconds(dataset.times[part]).tolist()
        pairs = zip(dataset.users[part].tolist(), dataset.items[part].tolist(), strict=True)
        events = [
            Event(users[user - 1], items[item - 1], time)
            for (user, item), time in zip(pairs, times, strict=True)
            if users[user - 1] not in forgotten
        ]
        latest = max(latest, *times)
        await state.add(events)
        say(f"histories: {min(start + _AT_ONCE, count):,} of {count:,} events")
    if latest < _COUNTERS_END:
        say(
            "the times of these histories are counters and no dates, so all of them come before "
            "events that are posted."
        )
