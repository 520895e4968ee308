"""Non-maximum suppression against the definition, one box after the other, in NumPy."""

import jax
import numpy as np
import pytest

from eca_jax.nn.detection import MMDET1, TORCHVISION, nms, nms_of_sorted, select
from tests.nn.detection import cases


def greedy(boxes, scores, threshold, inclusive=0.0, valid=None, groups=None):
    """Whether each box is kept."""
    n = len(boxes)
    valid = np.ones(n, bool) if valid is None else valid
    groups = np.zeros(n) if groups is None else groups
    kept = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
            suppressed = False
            for j in kept:
                w, h = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]) + inclusive
                both = max(w, 0) * max(h, 0)
                areas = [np.prod(boxes[k, 2:] - boxes[k, :2] + inclusive) for k in (i, j)]
                suppressed |= groups[i] == groups[j] and both / (sum(areas) - both) > threshold
            if not suppressed:
                kept.append(i)
    return np.isin(np.arange(n), kept)


@pytest.mark.parametrize("convention", [TORCHVISION, MMDET1], ids=["torchvision", "mmdet1"])
def test_what_is_kept(rng, convention):
    """Of boxes with equal scores, without area, with NaN; some are padding, and they are in groups."""
    boxes, scores = cases.boxes(rng, 50, 20), rng.integers(0, 8, (50, 20)).astype(np.float32)
    valid, groups = rng.random((50, 20)) < 0.8, rng.integers(0, 3, (50, 20))
    function = jax.jit(jax.vmap(lambda b, s, v, g: nms(b, s, 0.41, convention, valid=v, groups=g)))
    got = function(boxes, scores, valid, groups)
    want = [
        greedy(b.astype(float), s, 0.41, convention.inclusive, v, g)
        for b, s, v, g in zip(boxes, scores, valid, groups, strict=True)
    ]
    np.testing.assert_array_equal(got, want)
    assert 0 < got.sum() < valid.sum()


def test_a_chain_longer_than_a_block():
    """Every box overlaps the next by more than the threshold, so the last of 300 depends on the first."""
    left = np.arange(300) * 4.0
    boxes = np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1)  # of neighbours the overlap is 6/14
    keep = jax.jit(lambda boxes: nms_of_sorted(boxes, 0.4, TORCHVISION))(boxes)
    np.testing.assert_array_equal(keep, np.arange(300) % 2 == 0)
    np.testing.assert_array_equal(nms(boxes, np.arange(300), 0.4, TORCHVISION), np.arange(300) % 2 == 1)


def test_an_overlap_at_the_threshold_does_not_suppress():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # 0.5
    below = np.nextafter(np.float64(0.5), 0)  # as a float32 it is 0.5
    for threshold, kept in [(0.5, 2), (below, 1), (0.6, 2), (0.4, 1)]:
        assert nms(boxes, np.ones(2), threshold, TORCHVISION).sum() == kept


@pytest.mark.parametrize("n", [0, 1])
def test_few_boxes(n):
    assert nms(np.ones((n, 4)), np.ones(n), 0.5, TORCHVISION).tolist() == [True] * n


@pytest.mark.parametrize("per_class", [True, False])
def test_selection(rng, per_class):
    """The first of what is kept in each class, by score; of some images there are fewer than are asked for."""
    n, c, count = 12, 4, 10
    boxes = cases.boxes(rng, 50, n, *([c] if per_class else []))
    scores = rng.integers(0, 8, (50, n, c)).astype(np.float32)
    valid = rng.random((50, n, c)) < rng.random((50, 1, 1))
    function = jax.jit(jax.vmap(lambda b, s, v: select(b, s, 0.41, count, TORCHVISION, valid=v)))
    rows, labels, found = function(boxes, scores, valid)
    for i in range(50):
        of_class = boxes[i].transpose(1, 0, 2) if per_class else [boxes[i]] * c
        keep = [greedy(of_class[k].astype(float), scores[i, :, k], 0.41, valid=valid[i, :, k]) for k in range(c)]
        order = sorted(zip(*np.nonzero(np.stack(keep, axis=1)), strict=True), key=lambda at: (-scores[i][at], at))
        want = order[:count]
        assert list(zip(rows[i][found[i]], labels[i][found[i]], strict=True)) == want
        assert found[i].tolist() == [k < len(want) for k in range(count)]
    assert 0 < found.all(axis=1).sum() < 50


def test_selection_from_groups(rng):
    """Of boxes with one class each it is the beginning of what `nms` keeps."""
    boxes, scores = cases.boxes(rng, 40), rng.random(40).astype(np.float32)
    groups, scores[3] = rng.integers(0, 5, 40), np.nan
    keep = greedy(boxes.astype(float), scores, 0.3, valid=~np.isnan(scores), groups=groups)
    rows, labels, found = select(boxes, scores[:, None], 0.3, 9, TORCHVISION, groups=groups)
    assert rows.tolist() == sorted(np.flatnonzero(keep), key=lambda i: -scores[i])[:9]
    assert found.all()
    assert not labels.any()
