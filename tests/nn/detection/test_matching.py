"""Matching by both rules: small cases by hand, and MMDetection's rule written out as a loop."""

import jax
import numpy as np
import pytest

from eca_jax.nn.detection import BELOW, BETWEEN, labels_of, match_mmdet1, match_torchvision
from tests.nn.detection import cases

OVERLAPS = np.array(
    [
        # Of four candidates, the first object overlaps two equally, the second one that the first overlaps more, the
        # third none.
        [0.8, 0.8, 0.1, 0.4],
        [0.0, 0.2, 0.1, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
)
ALL = np.ones(4, bool)


def torchvision(overlaps, valid, candidates=ALL, *, low_quality=True):
    return match_torchvision(overlaps, valid, candidates, high=0.7, low=0.3, low_quality=low_quality).tolist()


def mmdet1(overlaps, valid, candidates=ALL, smallest=0.15):
    return match_mmdet1(overlaps, valid, candidates, high=0.7, low=0.3, smallest=smallest).tolist()


def test_thresholds():
    first = np.array([True, False, False])
    assert torchvision(OVERLAPS, first, low_quality=False) == [0, 0, BELOW, BETWEEN]
    assert torchvision(OVERLAPS, first) == mmdet1(OVERLAPS, first) == [0, 0, BELOW, BETWEEN]


def test_an_object_that_nothing_overlaps_much():
    """In torchvision, its best candidate is matched to what that overlaps most; in MMDetection, the object takes it."""
    two = np.array([True, True, False])
    assert torchvision(OVERLAPS, two) == [0, 0, BELOW, BETWEEN]
    assert mmdet1(OVERLAPS, two) == [0, 1, BELOW, BETWEEN]
    assert mmdet1(OVERLAPS, two, smallest=0.3) == [0, 0, BELOW, BETWEEN]
    only = np.array([False, True, False])
    assert torchvision(OVERLAPS, only) == mmdet1(OVERLAPS, only) == [BELOW, 1, BELOW, BELOW]


def test_an_object_that_nothing_overlaps_at_all():
    """In torchvision, all candidates are its best then."""
    every = np.array([True, True, True])
    assert torchvision(OVERLAPS, every) == [0, 0, 0, 0]
    assert mmdet1(OVERLAPS, every) == [0, 1, BELOW, BETWEEN]
    assert mmdet1(OVERLAPS, every, smallest=0.0) == [2, 2, 2, 2]


@pytest.mark.parametrize("match", [torchvision, mmdet1])
def test_without_objects_everything_is_background(match):
    assert match(OVERLAPS, np.zeros(3, bool)) == [BELOW] * 4
    assert match(np.full_like(OVERLAPS, np.nan), np.zeros(3, bool)) == [BELOW] * 4


@pytest.mark.parametrize("match", [torchvision, mmdet1])
def test_others_than_candidates_are_not_matched(match):
    """And take no object from a candidate: the second one's best is now the third."""
    overlaps = np.array([[0.1, 0.6, 0.5, 0.0]], np.float32)
    assert match(overlaps, np.array([True]), np.array([True, False, True, True])) == [BELOW, BETWEEN, 0, BELOW]
    assert match(overlaps, np.array([True]), np.zeros(4, bool)) == [BETWEEN] * 4


def by_loop(overlaps, valid, candidates, high, low, smallest):
    """MMDetection's rule in its own order: don't care, then negative, then positive, then object by object."""
    found = np.full(len(candidates), BETWEEN)
    if not valid.any():
        found[candidates] = BELOW
        return found
    for j in np.flatnonzero(candidates):
        column = [(overlaps[i, j], i) for i in np.flatnonzero(valid)]
        if any(np.isnan(value) for value, _ in column):
            continue
        best = max(value for value, _ in column)
        nearest = min(i for value, i in column if value == best)
        found[j] = nearest if best >= high else BELOW if best < low else BETWEEN
    for i in np.flatnonzero(valid):
        row = {j: overlaps[i, j] for j in np.flatnonzero(candidates)}
        if row and not any(np.isnan(value) for value in row.values()) and max(row.values()) >= smallest:
            for j, value in row.items():
                if value == max(row.values()):
                    found[j] = i
    return found


@pytest.mark.parametrize(("high", "low", "smallest"), [(0.7, 0.3, 0.3), (0.5, 0.4, 0.0), (0.5, 0.5, 0.5)])
def test_the_rule_of_mmdetection(rng, high, low, smallest):
    overlaps, valid, candidates = cases.overlaps(rng, 3, 6)
    got = jax.jit(jax.vmap(lambda *case: match_mmdet1(*case, high=high, low=low, smallest=smallest)))(
        overlaps, valid, candidates
    )
    thresholds = (np.float32(high), np.float32(low), np.float32(smallest))
    want = [by_loop(*case, *thresholds) for case in zip(overlaps, valid, candidates, strict=True)]
    assert len(want) == cases.CASES
    np.testing.assert_array_equal(got, want)


def test_labels():
    matches = np.array([2, 0, BELOW, BETWEEN])
    assert labels_of(matches, np.array([7, 8, 9])).tolist() == [9, 7, 0, -1]
