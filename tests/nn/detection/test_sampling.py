"""Samples of positives and negatives: how many, which, and each equally often."""

import itertools

import jax
import numpy as np

from eca_jax.nn.detection import sample
from tests.nn.detection import cases

KEY = jax.random.key(0)
MANY = jax.random.split(KEY, cases.CASES)
draw = jax.jit(sample, static_argnums=(2, 3))


def test_numbers(rng):
    """At most a quarter of 8 are positive, negatives fill up, and neither are more than there are."""
    labels = np.where(rng.random((cases.CASES, 1)) < rng.random((cases.CASES, 12)), rng.integers(-1, 3), -1)
    labels = np.where(rng.random(labels.shape) < 0.5, rng.integers(-1, 4, labels.shape), labels)
    positives, negatives = jax.jit(jax.vmap(lambda key, x: sample(key, x, 8, 0.25)))(MANY, labels)
    want = np.minimum((labels > 0).sum(1), 2)
    np.testing.assert_array_equal(positives.sum(1), want)
    np.testing.assert_array_equal(negatives.sum(1), np.minimum((labels == 0).sum(1), 8 - want))
    assert not (positives & (labels <= 0)).any()
    assert not (negatives & (labels != 0)).any()
    assert set(want.tolist()) == {0, 1, 2}


def test_fewer_than_are_asked_for():
    labels = np.array([1, 0, -1, 5, 0])
    positives, negatives = draw(KEY, labels, 512, 0.5)
    assert positives.tolist() == [True, False, False, True, False]
    assert negatives.tolist() == [False, True, False, False, True]
    assert not any(mask.any() for mask in draw(KEY, np.full(5, -1), 512, 0.5))


def test_the_same_key_makes_the_same_choice(rng):
    labels = rng.integers(-1, 2, 1000)
    first, again, other = (draw(key, labels, 256, 0.5) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_every_choice_is_equally_probable():
    """Of 6 positives and of 7 negatives, 3 each: 20 and 35 choices, by Pearson's test over 20,000 keys."""
    labels = np.array([1, 0, 2, -1, 0, 0, 1, 1, 0, 0, -1, 3, 0, 1, 0])
    masks = jax.jit(jax.vmap(lambda key: sample(key, labels, 6, 0.5)))(jax.random.split(KEY, 20_000))
    # What chi-square exceeds in one case of a thousand, with 19 and with 34 degrees of freedom.
    for mask, places, limit in zip(masks, ((labels > 0), (labels == 0)), (43.82, 65.25), strict=True):
        chosen = np.asarray(mask)[:, places] @ (1 << np.arange(places.sum()))
        choices = [sum(1 << i for i in three) for three in itertools.combinations(range(places.sum()), 3)]
        counts = np.array([(chosen == choice).sum() for choice in choices])
        expected = 20_000 / len(choices)
        assert counts.sum() == 20_000
        assert ((counts - expected) ** 2 / expected).sum() < limit
