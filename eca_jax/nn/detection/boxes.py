"""Boxes: areas, overlaps, coding relative to anchors, and clipping.

A box is (..., 4): x1, y1, x2, y2 in pixels. torchvision and MMDetection 1.x read these numbers in two ways, which
`Convention` has as data, so that every function here has one formula. Everything is computed in float32, or in the
inputs' own type if that is wider.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eca_jax.nn.norm import widened

Weights = tuple[float, float, float, float]
"""What the offsets (x, y) and the logarithms of the sizes (width, height) of coded boxes are multiplied by."""
LARGEST_LOG_SIZE = math.log(1000 / 16)
"""No decoded box is more than 62.5 times as wide or high as its anchor, so that `exp` does not overflow."""


@dataclasses.dataclass(frozen=True)
class Convention:
    """What a library means by the numbers of a box, and how it makes and uses them: `TORCHVISION` or `MMDET1`.

    Args:
      inclusive: x2 - x1 + inclusive is the width of a box. 0 if x2 is the coordinate of its right edge, and 1 if it is
        the index of its last column; the same for y2. An image of width w then ends at w - inclusive.
      log_sizes: the smallest and the largest logarithm of (width of a decoded box) / (width of its anchor).
      anchor_centre: where in its cell of the feature map an anchor has its centre: 0 at the first pixel, 0.5 in the
        middle.
      fixed_strides: whether cells are as many pixels apart as the network's stride says; otherwise what the image's
        size divided by the number of cells is, rounded down.
      smallest_region: the least height and width, in cells, that `roi_align` divides into bins.
      level_epsilon: what is added to a box's side, divided by 224 pixels, and to the logarithm of that, so that
        rounding moves no box of just the side at which a level begins to the one below (`pyramid_level`).
    """

    inclusive: float
    log_sizes: tuple[float, float]
    anchor_centre: float
    fixed_strides: bool
    smallest_region: float
    level_epsilon: tuple[float, float]


TORCHVISION = Convention(
    inclusive=0.0,
    log_sizes=(-math.inf, LARGEST_LOG_SIZE),
    anchor_centre=0.0,
    fixed_strides=False,
    smallest_region=1.0,
    level_epsilon=(0.0, 1e-6),
)
MMDET1 = Convention(
    inclusive=1.0,
    log_sizes=(-LARGEST_LOG_SIZE, LARGEST_LOG_SIZE),
    anchor_centre=0.5,
    fixed_strides=True,
    smallest_region=0.0,
    level_epsilon=(1e-6 / 4, 0.0),  # 1e-6 relative to 56 pixels,
)


def sides(boxes: ArrayLike, convention: Convention) -> jax.Array:
    """Width and height, (..., 2), of boxes (..., 4); negative where the corners are in the wrong order."""
    boxes = widened(jnp.asarray(boxes))
    return boxes[..., 2:] - boxes[..., :2] + convention.inclusive


def area(boxes: ArrayLike, convention: Convention) -> jax.Array:
    """The areas (...,) of boxes (..., 4), in square pixels; not clamped, as in both libraries."""
    return jnp.prod(sides(boxes, convention), axis=-1)


def iou(a: ArrayLike, b: ArrayLike, convention: Convention) -> jax.Array:
    """Intersection over union of every box of a (n, 4) with every box of b (m, 4): (n, m).

    As in both libraries, it is NaN for two boxes without area and for boxes that contain NaN.
    """
    # By coordinate, which is vectorised on CPUs, and rounded as in the libraries: some pairs are just at a threshold.
    a, b = widened(jnp.asarray(a)).T[..., None], widened(jnp.asarray(b)).T[:, None]
    width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0]) + convention.inclusive
    height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1]) + convention.inclusive
    both = jnp.where((width > 0) & (height > 0), width * height, 0)
    areas = [rounded(area(boxes.T, convention).T) for boxes in (a, b)]
    return both / (areas[0] + areas[1] - both)


def rounded(product: jax.Array) -> jax.Array:
    """A product (...) as it is, kept from being fused with the sum that it goes into, which would round but once.

    XLA drops an `optimization_barrier` before it fuses, but does not look through a selection.
    """
    return jnp.where(jnp.isnan(product), jnp.nan, product)


def encode(boxes: ArrayLike, anchors: ArrayLike, weights: Weights, convention: Convention) -> jax.Array:
    """Boxes relative to anchors, which `decode` turns back: (..., 4).

    With a box's centre (x, y) and sides (w, h), and an anchor's (xa, ya) and (wa, ha), it is `weights` times
    ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)).

    Args:
      boxes, anchors: (..., 4) each, of shapes that broadcast. Without sides, or with negative ones, the result is not
        finite; such entries are to be masked.
      weights: torchvision's; MMDetection's standard deviations are 1 / weights.
      convention: what the numbers of both mean.
    """
    (centre, size), (origin, scale) = _centre_and_sides(boxes, convention), _centre_and_sides(anchors, convention)
    deltas = jnp.concatenate([(centre - origin) / scale, jnp.log(size / scale)], axis=-1)
    return deltas * jnp.asarray(weights, deltas.dtype)


def decode(deltas: ArrayLike, anchors: ArrayLike, weights: Weights, convention: Convention) -> jax.Array:
    """The boxes (..., 4) whose coding relative to anchors is `deltas`, the inverse of `encode`.

    The logarithms of the sizes are first clamped to `convention.log_sizes`.

    Args:
      deltas, anchors: (..., 4) each, of shapes that broadcast: (n, classes, 4) and (n, 1, 4) for boxes of every class.
      weights, convention: those of `encode`.
    """
    deltas = widened(jnp.asarray(deltas))
    origin, scale = _centre_and_sides(anchors, convention)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    centre = deltas[..., :2] * scale + origin
    size = jnp.exp(jnp.clip(deltas[..., 2:], *convention.log_sizes)) * scale
    half = (size - convention.inclusive) / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: ArrayLike, size: ArrayLike, convention: Convention) -> jax.Array:
    """Boxes (..., 4) whose corners are moved into an image of `size`, (height, width), which may be traced."""
    boxes = widened(jnp.asarray(boxes))
    height, width = jnp.asarray(size)
    end = jnp.stack([width, height, width, height]).astype(boxes.dtype) - convention.inclusive
    return jnp.clip(boxes, 0, end)


def sides_at_least(boxes: ArrayLike, smallest: float, convention: Convention) -> jax.Array:
    """Whether both sides of each box (..., 4) are `smallest` pixels or longer: (...,) bool, False with NaN."""
    return (sides(boxes, convention) >= smallest).all(axis=-1)


def _centre_and_sides(boxes: ArrayLike, convention: Convention) -> tuple[jax.Array, jax.Array]:
    """(..., 2) each, (x, y) and (width, height)."""
    boxes = widened(jnp.asarray(boxes))
    return boxes[..., :2] + (boxes[..., 2:] - boxes[..., :2]) / 2, sides(boxes, convention)
