"""Engines answer as their artefacts do, whatever runs beside a query, and compile nothing later."""

import functools
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from jaxrec.export import Artefact
from jaxrec.export.golden import difference_of_lists
from jaxrec.serving.engine import Answer, Engine, Lane, Query, Sizes
from jaxrec.typing import UserError

SIZES = Sizes(rows=(1, 3), lengths=(2, 8), exclude=(2, 20), items=(3, 6), lists=5)


@pytest.fixture(scope="module")
def engine(sasrec: Artefact) -> Engine:
    engine = Engine(sasrec, SIZES)
    engine.warm_up()
    return engine


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """What compiles while a test runs."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **more: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def items(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def drawn(random: np.random.Generator, num_items: int, most: int, least: int = 0) -> np.ndarray:
    return random.integers(1, num_items + 1, random.integers(least, most + 1)).astype(np.int32)


def recommended(artefact: Artefact, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """What the artefact itself says, asked for one query alone."""
    history = np.zeros((1, 8), np.int32)
    if len(query.history):
        history[0, -len(query.history) :] = query.history
    masks = None if query.make_allowed is None else query.make_allowed()[None]
    found, scores = artefact.recommend(
        history=history,
        exclude=query.exclude[None] if len(query.exclude) else None,
        masks=masks,
        mask_seen=query.mask_seen,
    )
    return np.asarray(found[0]), np.asarray(scores[0])


def test_batches_of_all_sizes_answer_as_the_artefact_does(
    engine: Engine, sasrec: Artefact, compilations: list[str]
) -> None:
    random = np.random.default_rng(0)
    queries = []
    for n in range(60):
        allowed = random.random(sasrec.num_items + 1) < 0.6 if n % 3 else None
        query = Query(
            "recommend",
            history=drawn(random, sasrec.num_items, 8, 1),
            exclude=drawn(random, sasrec.num_items, 20 if n % 2 else 2),
            allowed=n if allowed is not None else None,
            make_allowed=None if allowed is None else functools.partial(np.copy, allowed),
            mask_seen=bool(n % 5),
        )
        queries.append(query)
    of_lane: dict[Lane, list[int]] = {}
    for n, query in enumerate(queries):
        of_lane.setdefault(engine.lane_of(query), []).append(n)
    assert of_lane.keys() == {lane for lane in engine.lanes if lane.program == "recommend"}
    answers: dict[int, Answer] = {}
    for lane, members in of_lane.items():
        for start in range(0, len(members), 3):
            batch = members[start : start + 3]
            answers |= zip(batch, engine.run(lane, [queries[n] for n in batch]), strict=True)
    assert not compilations
    for n, query in enumerate(queries):
        found, scores = recommended(sasrec, query)
        answer = answers[n].items[None], answers[n].scores[None]
        assert not difference_of_lists(answer, (found[None], scores[None]), 1e-5)


def test_scores_and_neighbours_are_the_artefacts(engine: Engine, sasrec: Artefact) -> None:
    history = items(3, 1, 4)
    query = Query("score", history=history, items=items(5, 2, 0, 9, 6))
    [answer] = engine.run(engine.lane_of(query), [query])
    wanted = sasrec.score(items(5, 2, 0, 9, 6)[None], history=history[None])
    np.testing.assert_allclose(answer.scores, np.asarray(wanted)[0], atol=1e-5)
    assert answer.scores[2] == -np.inf
    near = Query("similar", items=items(7))
    found, scores = engine.run(engine.lane_of(near), [near, near])[1]
    assert not difference_of_lists((found[None], scores[None]), sasrec.similar(items(7)), 1e-6)


def test_lists_that_make_room_for_others_are_made_again(engine: Engine) -> None:
    made: list[int] = []

    def query(item: int) -> Query:
        def only() -> np.ndarray:
            made.append(item)
            mask = np.zeros(engine.artefact.num_items + 1, bool)
            mask[item] = True
            return mask

        return Query("recommend", items(30), allowed=("only", item), make_allowed=only)

    lane = engine.lane_of(query(1))
    for item in [1, 2, 3, 4, 1, 5, 1, 2]:  # there is room for four
        [answer] = engine.run(lane, [query(item)])
        assert answer.items.tolist() == [item] + [0] * (len(answer.items) - 1)
    assert made == [1, 2, 3, 4, 5, 2]
    three = engine.run(lane, [query(item) for item in (6, 2, 7)])
    assert [answer.items[0] for answer in three] == [6, 2, 7]


def test_a_model_of_users_is_asked_by_user(factorization: Artefact) -> None:
    engine = Engine(factorization, SIZES)
    queries = [Query("recommend", user=user, exclude=items(4)) for user in (2, 5)]
    [lane] = {engine.lane_of(query) for query in queries}
    found = engine.run(lane, queries)
    wanted = factorization.recommend(users=items(2, 5), exclude=items(4, 4)[:, None])
    answers = np.array([answer.items for answer in found]), np.array([x.scores for x in found])
    assert not difference_of_lists(answers, wanted, 1e-5)


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [(1, 1), (2, 1), (3, 3), (4, 4), (8, 4), (9, 9), (16, 16), (30, 16), (32, 16)],
)
def test_a_batch_is_more_than_half_full_or_the_next_smaller_size(
    sasrec: Artefact, waiting: int, taken: int
) -> None:
    sizes = Sizes(rows=(1, 4, 16), lengths=(8,), exclude=(2,), items=(3,), lists=40)
    assert Engine(sasrec, sizes).take(waiting) == taken


def test_sizes_suit_the_model(sasrec: Artefact, factorization: Artefact) -> None:
    assert Sizes.of(sasrec, max_batch=20).rows == (1, 4, 16, 20)
    assert Sizes.of(sasrec).lengths == (8,)
    assert Sizes.of(factorization).lengths == (0,)
    with pytest.raises(UserError, match="max_batch and max_exclude must be at least 1; got 0"):
        Sizes.of(sasrec, max_batch=0)


def test_queries_beyond_the_largest_size_are_refused(engine: Engine) -> None:
    many = np.ones(21, np.int32)
    with pytest.raises(UserError, match="at most 20 items to leave out; got 21"):
        engine.lane_of(Query("recommend", items(1), exclude=many))
    with pytest.raises(UserError, match="at most 8 items of history; got 21"):
        engine.lane_of(Query("recommend", many))
    with pytest.raises(UserError, match="at most 6 items; got 21"):
        engine.lane_of(Query("score", items=many))
