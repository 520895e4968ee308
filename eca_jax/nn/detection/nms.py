"""Greedy non-maximum suppression, exact and in fixed shapes.

In the order of falling scores, a box is kept unless it overlaps a kept one by more than a threshold. This looks as if
it had to be done box by box. But with S_ij = (i comes before j and overlaps it), keep_j = not any_i(keep_i and S_ij)
has one solution only, and iterating it from all-true reaches this solution after at most as many steps as there are
boxes in the longest chain of suppressions: a handful in practice. Nothing limits how many boxes there are or are kept.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from eca_jax.nn.detection.boxes import Convention, iou
from eca_jax.nn.norm import widened

BLOCK = 128
"""Boxes that are decided together: those before them are final. Memory grows with BLOCK * n instead of n * n."""


def nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    convention: Convention,
    *,
    valid: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> jax.Array:
    """Whether each box is kept: (n,) bool, in the order of the boxes.

    The same as `torchvision.ops.nms`, and with `groups` as its `batched_nms` one class at a time. (Up to 1,000 boxes,
    `batched_nms` shifts the boxes of each class instead, and decides some pairs otherwise by the rounding of the sums.)
    Boxes without area and boxes with NaN are kept and suppress nothing. `jax.lax.top_k` of the scores of those kept
    gives the indices in order.

    Args:
      boxes: (n, 4).
      scores: (n,). Of equal ones the first goes first; NaN is the greatest, as in PyTorch.
      threshold: an intersection over union above this suppresses.
      convention: what the numbers of a box mean.
      valid: (n,) bool; others are not kept and suppress nothing. None: all.
      groups: (n,) integers, a class or a level. Only boxes of the same group suppress each other. None: all do.
    """
    order = jnp.argsort(jnp.asarray(scores), stable=True, descending=True)
    valid, groups = (None if x is None else jnp.asarray(x)[order] for x in (valid, groups))
    keep = nms_of_sorted(jnp.asarray(boxes)[order], threshold, convention, valid=valid, groups=groups)
    return jnp.zeros_like(keep).at[order].set(keep, unique_indices=True)


def nms_of_sorted(
    boxes: ArrayLike,
    threshold: float,
    convention: Convention,
    *,
    valid: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> jax.Array:
    """`nms` of boxes (n, 4) that are sorted by falling scores already, as `jax.lax.top_k` gives them: (n,) bool."""
    boxes = widened(jnp.asarray(boxes))
    n = len(boxes)
    size = min(BLOCK, n)
    padding = -n % max(size, 1)
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    valid = jnp.ones(n, bool) if valid is None else jnp.asarray(valid)
    groups = None if groups is None else jnp.pad(jnp.asarray(groups), (0, padding))
    before = jnp.arange(size)[:, None] < jnp.arange(size)

    def decide(k: jax.Array, keep: jax.Array) -> jax.Array:
        """`keep` (n,) is final up to block k: makes the block final, and drops what it suppresses behind it."""
        start = k * size
        block = lax.dynamic_slice_in_dim(boxes, start, size)
        over = _above(iou(block, boxes, convention), threshold)
        if groups is not None:
            over &= lax.dynamic_slice_in_dim(groups, start, size)[:, None] == groups
        inside = lax.dynamic_slice_in_dim(over, start, size, axis=1) & before
        kept = _fixed_point(inside, lax.dynamic_slice_in_dim(keep, start, size))
        later = jnp.arange(n + padding) >= start + size
        keep &= ~(later & (over & kept[:, None]).any(axis=0))
        return lax.dynamic_update_slice_in_dim(keep, kept, start, axis=0)

    return lax.fori_loop(0, (n + padding) // max(size, 1), decide, jnp.pad(valid, (0, padding)))[:n]


def _fixed_point(over: jax.Array, valid: jax.Array) -> jax.Array:
    """The only (n,) bool for which keep = valid & ~any(keep_i & over_ij), over (n, n) strictly upper triangular."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, keep = state
        return keep, valid & ~(over & keep[:, None]).any(axis=0)

    return lax.while_loop(lambda state: (state[0] != state[1]).any(), step, step((valid, valid)))[1]


def select(
    boxes: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    count: int,
    convention: Convention,
    *,
    valid: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `count` best boxes that greedy suppression keeps, without deciding about the rest.

    The best candidate is taken, and those of its class that overlap it are dropped, `count` times. That is the
    beginning of what `nms` keeps, in the same order, at a cost that grows with n * count and not with (n * c)^2.

    Args:
      boxes: (n, c, 4), a box for each class, or (n, 4), the same for all.
      scores: (n, c). Of equal ones the first goes first, in the order of rows.
      threshold: an intersection over union above this suppresses.
      count: how many; static.
      convention: what the numbers of a box mean.
      valid: (n, c) bool, the candidates; None: all. NaN as a score is no candidate.
      groups: (n,) integers; only boxes of the same class and group suppress each other. With c = 1 it makes this a
        selection from n boxes of many classes. None: all of a class do.

    Returns:
      Rows (count,) and classes (count,), int32, and whether there were so many: (count,) bool. Where not, 0 and 0.
    """
    scores = widened(jnp.asarray(scores))
    n, c = scores.shape
    candidates = ~jnp.isnan(scores) if valid is None else jnp.asarray(valid) & ~jnp.isnan(scores)
    boxes = widened(jnp.asarray(boxes))
    # One row a class, so that a step reads one row and not all candidates.
    boxes = jnp.broadcast_to(boxes, (c, n, 4)) if boxes.ndim == 2 else boxes.swapaxes(0, 1)
    alive = jnp.where(candidates, scores, -jnp.inf).T

    def best(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = jnp.argmax(row, axis=-1).astype(jnp.int32)
        return jnp.take_along_axis(row, place[..., None], axis=-1)[..., 0], place

    def take(state, _):
        alive, (highest, place) = state
        rank = jnp.where(highest == highest.max(), place * c + jnp.arange(c), n * c)
        label = jnp.argmin(rank).astype(jnp.int32)
        found, chosen = highest[label] > -jnp.inf, place[label]
        over = _above(iou(boxes[label, chosen][None], boxes[label], convention)[0], threshold)
        over &= True if groups is None else jnp.asarray(groups) == jnp.asarray(groups)[chosen]
        row = jnp.where(over | (jnp.arange(n) == chosen), -jnp.inf, alive[label])
        value, at = best(row)
        state = alive.at[label].set(row), (highest.at[label].set(value), place.at[label].set(at))
        return state, (jnp.where(found, chosen, 0), jnp.where(found, label, 0), found)

    return lax.scan(take, (alive, best(alive)), length=count)[1]


def _above(overlaps: jax.Array, threshold: float) -> jax.Array:
    """overlaps > threshold as for real numbers: PyTorch compares floats with a double. NaN is not above."""
    bound = np.asarray(threshold, overlaps.dtype)
    return overlaps > (bound if float(bound) <= threshold else np.nextafter(bound, bound.dtype.type(-math.inf)))
