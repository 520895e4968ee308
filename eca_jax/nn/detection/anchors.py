"""Anchors: the boxes of fixed sizes around every cell of a feature map, from which a network moves its boxes.

torchvision and MMDetection 1.x round them differently and put them elsewhere, which their `Convention`s say.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eca_jax.nn.detection.boxes import Convention
from eca_jax.nn.norm import widened


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], stride: int, convention: Convention) -> np.ndarray:
    """The anchors of the first cell of a level, (a, 4) float32 of whole numbers, computed on the host.

    Args:
      sizes: the side in pixels of the square of an anchor's area. MMDetection's scales are size / stride.
      ratios: height / width. There are a = len(ratios) * len(sizes) anchors: all sizes of the first ratio come first.
      stride: pixels of the image for each cell of the level.
      convention: where in the cell the centre is, and how wide a box is. Halves are rounded to even.
    """
    root = np.sqrt(np.asarray(ratios, np.float32))
    size = np.asarray(sizes, np.float32)
    width, height = (np.multiply.outer(factor, size).ravel() for factor in (1 / root, root))
    half = (np.stack([width, height], axis=-1) - np.float32(convention.inclusive)) / 2
    centre = np.float32(convention.anchor_centre * (stride - convention.inclusive))
    return np.round(np.concatenate([centre - half, centre + half], axis=-1))


def cells(size: ArrayLike, stride: int) -> jax.Array:
    """Rows and columns (2,) of a feature map of this stride, for an image of `size` (2,): as many as it touches."""
    return -(-jnp.asarray(size) // stride)


def anchor_strides(size: ArrayLike, stride: int, convention: Convention) -> jax.Array:
    """How many pixels lie between the anchors of two cells, (2,): in y and in x.

    torchvision divides the image's size by the number of cells. An image of 800 rows has 13 of stride 64, which it puts
    61 pixels apart.

    Args:
      size: height and width (2,) of the image, each rounded up to a multiple of 32 as both libraries do; they may be
        traced. Not the size of the batch's arrays, so that anchors do not depend on the other images.
      stride: pixels of the image for each cell of the level, a power of two.
      convention: whether strides are fixed.
    """
    size = jnp.asarray(size)
    return jnp.full_like(size, stride) if convention.fixed_strides else size // cells(size, stride)


def grid_anchors(anchors: ArrayLike, grid: tuple[int, int], strides: ArrayLike) -> jax.Array:
    """The anchors of all cells of a level, (h * w * a, 4): row by row, and all of one cell together.

    Args:
      anchors: those of the first cell, (a, 4).
      grid: the rows and columns (h, w) of the feature map.
      strides: (2,), what `anchor_strides` returns.
    """
    (h, w), (down, right) = grid, jnp.asarray(strides)
    y, x = jnp.meshgrid(jnp.arange(h) * down, jnp.arange(w) * right, indexing="ij")
    corner = jnp.stack([x, y, x, y], axis=-1)
    return (corner[:, :, None] + widened(jnp.asarray(anchors))).reshape(-1, 4)


def inside(anchors: ArrayLike, size: ArrayLike, border: float) -> jax.Array:
    """Which anchors (n, 4) are trained in MMDetection, (n,) bool: those that leave an image by `border` at most.

    Args:
      anchors: in pixels.
      size: (2,), height and width of the image before it is padded.
      border: MMDetection's `allowed_border`, in pixels; a negative one allows every anchor.
    """
    anchors = jnp.asarray(anchors)
    if border < 0:
        return jnp.ones(anchors.shape[:-1], bool)
    end = jnp.asarray(size)[::-1] + border
    return ((anchors[..., :2] >= -border) & (anchors[..., 2:] < end)).all(axis=-1)
