"""Retrievers on the device against a full score matrix in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.evaluation import EvaluationConfig, RetrieverRecommender, evaluate
from jaxrec.evaluation import requests_of as requests_of_split
from jaxrec.typing import Batch

NUM_USERS, NUM_ITEMS = 70, 40


def tables(seed):
    """Small integers, so that scores are exact and full of ties."""
    random = np.random.default_rng(seed)
    users = random.integers(-2, 3, (NUM_USERS + 1, 3)).astype(np.float32)
    return users, random.integers(-2, 3, (NUM_ITEMS + 1, 3)).astype(np.float32)


def retriever(users, items, config, seen_shapes=None, blocks=None):
    def make_batch(requests, rows):
        if seen_shapes is not None:
            seen_shapes.append(rows.shape)
        return Batch(users=requests.users[rows], history=requests.padded_history(4, rows))

    user_vectors = jax.jit(lambda batch: jnp.asarray(users)[batch.users])
    return RetrieverRecommender(user_vectors, lambda: blocks or [items], make_batch, config)


def brute_force(users, items, requests, k, mask_seen):
    scores = users[requests.users] @ items.T
    scores[:, 0] = -np.inf
    if mask_seen:
        rows = np.repeat(np.arange(len(requests)), requests.history_lengths)
        scores[rows, requests.history_items] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(scores, order, axis=1) == -np.inf, 0, order)


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize(("batch_size", "item_chunk"), [(16, 7), (512, 4096), (1, 41)])
def test_equals_brute_force_with_ties(random_dataset, mask_seen, batch_size, item_chunk):
    dataset = random_dataset(0, num_users=NUM_USERS, num_items=NUM_ITEMS, mean_length=8)
    requests = requests_of_split(dataset, "test")
    users, items = tables(0)
    config = EvaluationConfig(batch_size=batch_size, item_chunk=item_chunk)
    recommended = retriever(users, items, config).recommend(requests, 10, mask_seen=mask_seen)
    assert recommended.dtype == np.int32
    np.testing.assert_array_equal(recommended, brute_force(users, items, requests, 10, mask_seen))


def test_a_catalogue_in_blocks_gives_the_same_lists(random_dataset):
    dataset = random_dataset(0, num_users=NUM_USERS, num_items=NUM_ITEMS, mean_length=8)
    requests, config = requests_of_split(dataset, "test"), EvaluationConfig(batch_size=16)
    users, items = tables(4)
    blocks = [items[:11], items[11:12], items[12:]]
    found = retriever(users, items, config, blocks=blocks).recommend(requests, 15, mask_seen=True)
    np.testing.assert_array_equal(found, brute_force(users, items, requests, 15, True))


def test_users_who_have_seen_nearly_everything_get_fewer_items(random_dataset):
    dataset = random_dataset(0, num_users=NUM_USERS, num_items=NUM_ITEMS, mean_length=150)
    requests = requests_of_split(dataset, "test")
    users, items = tables(1)
    config = EvaluationConfig(batch_size=32)
    recommended = retriever(users, items, config).recommend(requests, 20, mask_seen=True)
    np.testing.assert_array_equal(recommended, brute_force(users, items, requests, 20, True))
    assert np.any(recommended == 0)


def test_batches_have_one_shape(random_dataset):
    dataset = random_dataset(0, num_users=NUM_USERS, num_items=NUM_ITEMS, mean_length=8)
    shapes: list[tuple[int, ...]] = []
    users, items = tables(0)
    config = EvaluationConfig(batch_size=32)
    requests = requests_of_split(dataset, "test")
    retriever(users, items, config, shapes).recommend(requests, 5, mask_seen=True)
    assert set(shapes) == {(32,)}
    assert len(shapes) == -(-len(requests) // 32)


def test_seen_targets_are_misses_when_masked(random_dataset):
    dataset = random_dataset(3, num_users=NUM_USERS, num_items=5, mean_length=30)
    users, items = tables(2)
    recommender = retriever(users, items, EvaluationConfig())
    config = EvaluationConfig(ks=(5,), monitor="recall@5")
    unmasked = EvaluationConfig(ks=(5,), monitor="recall@5", mask_seen=False)
    assert evaluate(recommender, dataset, "test", config).metrics["recall@5"] < 0.2
    assert evaluate(recommender, dataset, "test", unmasked).metrics["recall@5"] == 1
