"""RoIAlign from a feature pyramid: each box reads the level of its size, and no other.

The boxes are many, and the levels large. So the maps of all levels lie behind one another in one array of cells, and a
bin of a box is a weighted sum of a few rows of it (16 where a bin has 2 x 2 samples): XLA makes one loop of it, which
keeps nothing but its result. To pool every box from every level, or by products with matrices of weights, would cost as
much arithmetic as the network itself.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from eca_jax.nn.derivatives import Arrays, linear_map
from eca_jax.nn.detection.boxes import Convention, area, rounded
from eca_jax.nn.norm import widened

CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4
"""The side, in pixels, of a square that reads P4, the map of stride 16 (arXiv:1612.03144, equation 1)."""
FINEST_LEVEL = 2
"""The pyramid begins with P2, the map of stride 4."""


def pyramid_level(boxes: ArrayLike, levels: int, convention: Convention) -> jax.Array:
    """The level from which each box (..., 4) is pooled, 0 for the finest to levels - 1: (...,) int32.

    One level up for every doubling of the side of a square with the box's area; 0 where the area is negative or NaN.
    By comparisons, which all devices do alike: their logarithms differ.
    """
    of_side, of_level = convention.level_epsilon
    powers = 2.0 ** (np.arange(1, levels) + FINEST_LEVEL - CANONICAL_LEVEL - of_level)
    areas = area(boxes, convention)
    return (areas[..., None] >= jnp.asarray((CANONICAL_SIDE * (powers - of_side)) ** 2, areas.dtype)).sum(
        -1, dtype=jnp.int32
    )


def roi_align(
    pyramid: Sequence[jax.Array],
    boxes: ArrayLike,
    size: int,
    scales: Sequence[float],
    convention: Convention,
    *,
    limits: ArrayLike | None = None,
    samples: int = 2,
) -> jax.Array:
    """What the boxes contain, each resampled to size x size bins: (n, size, size, c), in the maps' type.

    A bin is the mean of samples x samples points, evenly spaced inside of it, between the centres of cells (there is no
    shift by half a pixel: `aligned=False` in torchvision). A point more than one cell outside of the map is 0, others
    are moved to its edge. Boxes with NaN give 0. The sums are float32 or wider. The derivative is by the pyramid;
    the boxes are constants.

    Args:
      pyramid: of each level the map (h_l, w_l, c), the finest first.
      boxes: (n, 4) in pixels of the image.
      size: bins along height and width.
      scales: of each level the cells by pixel: 1/4, 1/8, ...
      convention: what the numbers of a box mean; it decides about levels too (`pyramid_level`).
      limits: (levels, 2), of each level the valid height and width in cells, which may be traced: what is beyond is
        padding, and is not read. None: the whole maps.
      samples: along height and width.
    """
    boxes = lax.stop_gradient(widened(jnp.asarray(boxes)))
    shapes = np.array([level.shape[:2] for level in pyramid])
    starts = np.cumsum([0, *np.prod(shapes, axis=1)])[:-1]
    flat = jnp.concatenate([level.reshape(-1, level.shape[-1]) for level in pyramid])

    level = pyramid_level(boxes, len(pyramid), convention)
    scaled = boxes + jnp.asarray([0, 0, convention.inclusive, convention.inclusive], boxes.dtype)
    scaled *= jnp.asarray(scales, boxes.dtype)[level, None]
    limit = jnp.asarray(shapes if limits is None else limits)[level].astype(jnp.int32)
    x, y = (
        _axis(scaled[:, axis], scaled[:, axis + 2], limit[:, 1 - axis], size, samples, convention) for axis in (0, 1)
    )
    rows = jnp.asarray(starts)[level, None, None] + y[0] * jnp.asarray(shapes[:, 1])[level, None, None]
    cells = rows[:, :, None, :, None] + x[0][:, None, :, None, :]
    weights = y[1][:, :, None, :, None] * x[1][:, None, :, None, :]
    taps = (2 * samples) ** 2
    pooled = _weighted_rows(flat, cells.reshape(-1, taps), weights.reshape(-1, taps))
    return pooled.reshape(len(boxes), size, size, -1)


def _axis(
    start: jax.Array, end: jax.Array, limit: jax.Array, size: int, samples: int, convention: Convention
) -> tuple[jax.Array, jax.Array]:
    """The cells (n, size, 2 * samples) that bins read along one axis, int32, and the weights of these.

    Args:
      start, end: (n,) of the boxes, in cells.
      limit: (n,), how many cells there are.
      size, samples, convention: those of `roi_align`.
    """
    bins, points = jnp.arange(size)[:, None], (jnp.arange(samples) + 0.5).astype(start.dtype)
    start, end, limit = (v[:, None, None] for v in (start, end, limit))
    side = jnp.maximum(end - start, convention.smallest_region)
    side = side / jnp.where(jnp.isnan(side), 1, size)  # by a constant, XLA would multiply by 1 / size instead
    at = start + rounded(bins * side) + rounded(points * side / samples)
    inside = (at >= -1) & (at <= limit)
    at = jnp.maximum(at, 0)
    first = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, limit - 1)
    second = jnp.minimum(first + 1, limit - 1)
    part = jnp.where(second > first, at - first, 0)
    weights = jnp.where(inside[..., None], jnp.stack([1 - part, part], axis=-1), 0) / samples
    joined = (*weights.shape[:2], 2 * samples)
    return jnp.stack([first, second], axis=-1).reshape(joined), weights.reshape(joined)


def _weighted_rows(table: jax.Array, index: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_k weights[m, k] * table[index[m, k]]: (rows, c), (m, k), (m, k) -> (m, c), in the table's type.

    Term by term, so that XLA fuses gathers and sums; as one gather it would keep k times the result. The gradient is
    added row by row into one array; autodiff would make one of the table's size for each term.
    """
    dtype = jnp.promote_types(table.dtype, weights.dtype)
    rows, taps = len(table), index.shape[1]

    def there(saved: Arrays, vectors: Arrays) -> Arrays:
        (index, weights), (table,) = saved, vectors
        terms = [table.at[index[:, k]].get(mode="promise_in_bounds") * weights[:, k, None] for k in range(taps)]
        return (functools.reduce(jnp.add, terms).astype(table.dtype),)

    def back(saved: Arrays, gradients: Arrays) -> Arrays:
        (index, weights), (gradient,) = saved, gradients
        total = jnp.zeros((rows, gradient.shape[1]), dtype)
        for k in range(taps):
            total = total.at[index[:, k]].add(gradient * weights[:, k, None], mode="promise_in_bounds")
        return (total.astype(gradient.dtype),)

    return linear_map(there, back, (index, weights), (table,))[0]
