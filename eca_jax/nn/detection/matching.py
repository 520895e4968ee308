"""Matching: which true object each anchor, or each proposed region, is to find.

The rules of torchvision and of MMDetection 1.x differ in what becomes of an object that no anchor overlaps much.
Neither looks at a class.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

BELOW = -1
"""Matched to the background: it overlaps no object enough."""
BETWEEN = -2
"""Matched to nothing, and not trained: neither one nor the other."""


def match_torchvision(
    overlaps: ArrayLike, valid: ArrayLike, candidates: ArrayLike, *, high: float, low: float, low_quality: bool
) -> jax.Array:
    """torchvision's `Matcher`: (n,) int32, the index of an object, `BELOW` or `BETWEEN`.

    A candidate is matched to the object that it overlaps most, the first of several, if by `high` or more. It is
    `BELOW` if by less than `low`. With `low_quality`, every candidate that no other exceeds in its overlap with some
    object is matched to the object that it overlaps most itself, which may be another. So an object that overlaps no
    candidate, as no other exceeds 0 there, makes all of them match. A NaN counts as the largest overlap of its
    candidate; its object has no best candidate.

    Args:
      overlaps: (m, n), with m >= 1, the IoU of every object with every candidate.
      valid: (m,) bool, which objects there are. Without any, all candidates are `BELOW`.
      candidates: (n,) bool, which candidates there are. The others are `BETWEEN`.
      high, low: thresholds, `low` <= `high`.
      low_quality: its `allow_low_quality_matches`.
    """
    overlaps, best, nearest, reached = _compare(overlaps, valid, candidates)
    matches = jnp.where(best < high, BETWEEN, nearest)
    matches = jnp.where(best < low, BELOW, matches)
    if low_quality:
        matches = jnp.where(reached.any(axis=0), nearest, matches)
    return jnp.where(candidates, matches, BETWEEN)


def match_mmdet1(
    overlaps: ArrayLike, valid: ArrayLike, candidates: ArrayLike, *, high: float, low: float, smallest: float
) -> jax.Array:
    """MMDetection 1.x's `MaxIoUAssigner`: (n,) int32, the index of an object, `BELOW` or `BETWEEN`.

    A candidate is matched to the object that it overlaps most, the first of several, if by `high` or more. It is
    `BELOW` if by less than `low`, and `BETWEEN` where the largest overlap is NaN. Then every object takes the
    candidates that no other exceeds in their overlap with it, if that is `smallest` or more, also those of other
    objects; of two objects that want the same one, the last gets it.

    Args:
      overlaps, valid, candidates, high, low: those of `match_torchvision`.
      smallest: its `min_pos_iou`.
    """
    overlaps, best, nearest, reached = _compare(overlaps, valid, candidates)
    matches = jnp.where(best >= high, nearest, BETWEEN)
    below = (best >= 0) & (best < low)
    matches = jnp.where(below | ~jnp.any(valid), BELOW, matches)
    objects = jnp.arange(len(overlaps), dtype=jnp.int32)[:, None]
    last = jnp.where(reached & (overlaps >= smallest), objects, -1).max(axis=0)
    matches = jnp.where(last >= 0, last, matches)
    return jnp.where(candidates, matches, BETWEEN)


def labels_of(matches: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The label (n,) int32 of what is matched: that of its object, 0 for the background, and -1 for `BETWEEN`.

    Args:
      matches: (n,), what `match_torchvision` or `match_mmdet1` returns.
      labels: (m,), the labels of the objects, from 1 on.
    """
    matches = jnp.asarray(matches)
    others = jnp.where(matches == BELOW, 0, -1)
    return jnp.where(matches >= 0, jnp.asarray(labels, jnp.int32)[jnp.maximum(matches, 0)], others)


def _compare(
    overlaps: ArrayLike, valid: ArrayLike, candidates: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Overlaps (m, n), -inf where there is no object or no candidate; then the largest of every candidate, (n,), and
    the object (n,) of that; and whether no other candidate exceeds this one in its overlap with an object, (m, n)."""
    there = jnp.asarray(valid)[:, None] & jnp.asarray(candidates)
    # Computed once: if the compiler fuses the IoU into each of its readers, the largest may differ from itself in its
    # last bit, and is then found nowhere.
    among = jax.lax.optimization_barrier(jnp.where(there, jnp.asarray(overlaps), -jnp.inf))
    nearest = jax.lax.argmax(among, 0, jnp.int32)
    best = jnp.take_along_axis(among, nearest[None], axis=0)[0]
    # `max` alone drops some NaN when XLA compiles it for a CPU; an infinity is equal to no overlap either.
    largest = jnp.where(jnp.isnan(among), jnp.inf, among).max(axis=1, keepdims=True)
    return among, best, nearest, there & (among == largest)
