"""An invented catalogue and invented viewers, from a seed.

Why a sequence model wins here: items come in series ("The Silent Harbour", "The Silent Harbour
II"), and after one instalment users mostly take the next. Between series, tastes drift around a
ring of genres. Popularity is skewed, but knows neither.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxrec.typing import UserError

# A ring: neighbours are alike.
GENRES = (
    *("Comedy", "Romance", "Drama", "History", "War", "Western"),
    *("Crime", "Thriller", "Horror", "Fantasy", "Science Fiction", "Animation"),
)
_ADJECTIVES = (
    *("Silent", "Crimson", "Hidden", "Golden", "Last", "Wandering", "Broken", "Northern", "Paper"),
    *("Hollow", "Velvet", "Electric", "Forgotten", "Burning", "Quiet", "Distant", "Iron", "Glass"),
)
_NOUNS = (
    *("Harbour", "Orchard", "Signal", "Garden", "Empire", "Lantern", "River", "Machine", "Promise"),
    *("Station", "Winter", "Compass", "Theatre", "Voyage", "Mirror", "Kingdom", "Letter", "Tower"),
)
_PLACES = ("Arden", "Belmora", "Calder", "Dunmore", "Farrow", "Holm", "Istra", "Jura")
_NUMERALS = ("", " II", " III", " IV", " V", " VI")

_FOLLOW = 0.7  # chance of the next instalment, where there is one
_DRIFT = 0.35  # chance that a new series is of a neighbouring genre
_SKEW = 0.7  # exponent of the Zipf law of series within a genre
_TRIES = 4  # draws of a new series before a user who has seen them all skips a step


def synthetic(
    seed: int = 0,
    *,
    num_users: int = 2000,
    num_items: int = 600,
    min_events: int = 20,
    max_events: int = 60,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Invents a log.

    Args:
      seed: the same seed and sizes give the same log.
      num_users: number of users.
      num_items: number of items, at least 60. Memory grows with users times items.
      min_events, max_events: a user has between these many events (a few less where a small
        catalogue runs out); no item comes twice.

    Returns:
      events: columns user_id, item_id (int64 from 1), timestamp (int64, seconds since 1970) and
        rating (int64, 1 to 5), in time order over all users.
      items: columns item_id, title and genres (a genre, and for some items a second one behind
        "|").

    Raises:
      UserError: for sizes that cannot be.
    """
    if num_items < 60 or num_users < 1 or not 1 <= min_events <= max_events <= num_items // 2:
        raise UserError(
            f"synthetic data of {num_users} users, {num_items} items and {min_events} to "
            f"{max_events} events cannot be made. Wanted: at least 1 user and 60 items, and at "
            "most half as many events as items."
        )
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(rng, num_items)
    watched = _walk(rng, catalogue, num_users, max_events)
    lengths = rng.integers(min_events, max_events + 1, num_users)
    watched[np.arange(max_events) >= lengths[:, None]] = -1
    return _events(rng, catalogue, watched), _items(rng, catalogue)


class _Catalogue(NamedTuple):
    """Items in order of series. S series, I items; a series lies in one genre."""

    first: np.ndarray  # (S,) item at which a series starts
    length: np.ndarray  # (S,) instalments
    genre: np.ndarray  # (S,)
    series: np.ndarray  # (I,) series of an item
    by_genre: np.ndarray  # (S,) series sorted by genre
    bounds: np.ndarray  # (S,) genre + share of the popularity in it up to this series, ascending
    ids: np.ndarray  # (I,) item_id, shuffled so that ids tell nothing


def _catalogue(rng: np.random.Generator, num_items: int) -> _Catalogue:
    length = rng.integers(2, len(_NUMERALS) + 1, num_items)
    ends = np.cumsum(length)
    count = int(np.searchsorted(ends, num_items)) + 1
    length = length[:count]
    length[-1] -= ends[count - 1] - num_items
    genre = np.arange(count) % len(GENRES)
    rank = np.arange(count) // len(GENRES) + 1.0
    by_genre = np.argsort(genre, kind="stable")
    weights = (rank**-_SKEW)[by_genre]
    shares = weights / np.bincount(genre[by_genre], weights)[genre[by_genre]]
    before = np.cumsum(np.bincount(genre, minlength=len(GENRES)))
    running = np.cumsum(shares)
    bounds = running - np.append(0.0, running[before[:-1] - 1])[genre[by_genre]] + genre[by_genre]
    return _Catalogue(
        first=np.cumsum(length) - length,
        length=length,
        genre=genre,
        series=np.repeat(np.arange(count), length),
        by_genre=by_genre,
        bounds=bounds,
        ids=rng.permutation(num_items) + 1,
    )


def _walk(rng: np.random.Generator, catalogue: _Catalogue, users: int, steps: int) -> np.ndarray:
    """Returns (users, steps) items, -1 where a user found nothing new."""
    rows = np.arange(users)
    seen = np.zeros((users, len(catalogue.series)), bool)
    genre = rng.integers(len(GENRES), size=users)
    current = np.full(users, -1)
    watched = np.full((users, steps), -1)
    for step in range(steps):
        series = catalogue.series[current]
        following = np.minimum(current + 1, len(catalogue.series) - 1)
        goes_on = (current >= 0) & (catalogue.series[following] == series) & (following != current)
        goes_on &= (rng.random(users) < _FOLLOW) & ~seen[rows, following]
        item = np.where(goes_on, following, -1)
        for _ in range(_TRIES):
            drift = np.where(rng.random(users) < _DRIFT, rng.choice((-1, 1), users), 0)
            new_genre = (genre + drift) % len(GENRES)
            place = np.searchsorted(catalogue.bounds, new_genre + rng.random(users))
            found = catalogue.first[catalogue.by_genre[place.clip(max=len(catalogue.first) - 1)]]
            fits = (item < 0) & ~seen[rows, found]
            item = np.where(fits, found, item)
            genre = np.where(fits, new_genre, genre)
        taken = item >= 0
        seen[rows[taken], item[taken]] = True
        current = np.where(taken, item, current)
        watched[:, step] = item
    return watched


def _events(rng: np.random.Generator, catalogue: _Catalogue, watched: np.ndarray) -> pd.DataFrame:
    users, steps = watched.shape
    gaps = rng.exponential(86_400.0, (users, steps)).astype(np.int64) + 60
    start = 1_600_000_000 + rng.integers(0, 365 * 86_400, (users, 1))
    times = start + np.cumsum(gaps, axis=1)
    series = catalogue.series[watched]
    quality = rng.normal(0.0, 0.6, len(catalogue.length))[series]
    liking = 3.6 + quality + rng.normal(0.0, 0.5, (users, 1)) + rng.normal(0.0, 0.6, watched.shape)
    where = watched >= 0
    events = pd.DataFrame(
        {
            "user_id": np.broadcast_to(np.arange(1, users + 1)[:, None], watched.shape)[where],
            "item_id": catalogue.ids[watched[where]],
            "timestamp": times[where],
            "rating": np.rint(liking[where]).clip(1, 5).astype(np.int64),
        }
    )
    return events.sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)


def _items(rng: np.random.Generator, catalogue: _Catalogue) -> pd.DataFrame:
    count = len(catalogue.length)
    pairs = pd.MultiIndex.from_product([_ADJECTIVES, _NOUNS]).to_frame(index=False)
    names = rng.permutation(("The " + pairs[0] + " " + pairs[1]).to_numpy(object))
    # A large catalogue goes through the names again, each time in another place.
    round_, position = np.divmod(np.arange(count), len(names))
    places = np.array(["", *(f" of {place}" for place in _PLACES)], object)
    around, place = np.divmod(round_, len(places))
    suffix = np.where(around > 0, np.char.add(" ", (around + 1).astype(str)).astype(object), "")
    titles = names[position] + places[place] + suffix
    instalment = np.arange(len(catalogue.series)) - catalogue.first[catalogue.series]
    second = (catalogue.genre + rng.choice((-1, 1), count)) % len(GENRES)
    words = np.array(GENRES, object)
    genres = words[catalogue.genre]
    genres = np.where(rng.random(count) < 0.3, genres + "|" + words[second], genres)
    items = pd.DataFrame(
        {
            "item_id": catalogue.ids,
            "title": titles[catalogue.series] + np.array(_NUMERALS, object)[instalment],
            "genres": genres[catalogue.series],
        }
    )
    return items.sort_values("item_id", ignore_index=True)
