"""What users did before the service began: a dataset's events, put into a store."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.serving.state import Event, State, StateUnavailable
from jaxrec.typing import UserError

if TYPE_CHECKING:
    from jaxrec.data.dataset import Dataset

_AT_ONCE = 10_000


async def import_histories(state: State, path: Path, say: Callable[[str], None]) -> None:
    """Adds the events of a prepared dataset to a store that has not all of them.

    Events are as durable, and as often there, as any: one that is there already counts once. They
    come user by user, so a store that knows what the last user did has them all, and an import that
    was killed is done again.

    Args:
      state: the store.
      path: a directory that `scripts/prepare.py` wrote.
      say: is told how far it is.

    Raises:
      UserError: when there is no dataset, or the store does not answer.
    """
    # pandas comes with it, and a server that imports nothing does without.
    from jaxrec.data.dataset import open_dataset

    dataset = open_dataset(path)
    try:
        await _import(state, dataset, say)
    except StateUnavailable as error:
        raise UserError(f"histories cannot be imported: {error}.") from None


async def _import(state: State, dataset: "Dataset", say: Callable[[str], None]) -> None:
    users = dataset.user_vocabulary["id"].tolist()
    items = dataset.item_vocabulary["id"].tolist()
    last = dataset.users == dataset.users[-1:]
    if last.any():
        known = set(await state.history(users[int(dataset.users[-1]) - 1]))
        if known.issuperset(items[item - 1] for item in dataset.items[last].tolist()):
            say("the store has these histories already.")
            return
    count = dataset.manifest.num_events
    for start in range(0, count, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        await state.add(
            [
                Event(users[user - 1], items[item - 1], float(time))
                for user, item, time in zip(
                    dataset.users[part].tolist(),
                    dataset.items[part].tolist(),
                    dataset.times[part].tolist(),
                    strict=True,
                )
            ]
        )
        say(f"histories: {min(start + _AT_ONCE, count):,} of {count:,} events")
