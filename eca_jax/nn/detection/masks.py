"""Masks of objects: from the network's small ones to the image, on the host, and from the image's to small targets."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from eca_jax.nn.detection.boxes import rounded
from eca_jax.nn.norm import widened

CHUNK = 16
"""Boxes whose masks are in memory at once in float32, each of them as large as the image."""


class Patch(NamedTuple):
    """A mask where it is not zero: `image[rows, columns] = values` pastes it, float32 of the size of the slices.

    The slices are empty where a box is outside of the image.
    """

    rows: slice
    columns: slice
    values: np.ndarray


def paste(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, padding: int = 1) -> np.ndarray:
    """The masks in their image: (n, height, width) float32, zero outside of the boxes. In NumPy, on the host.

    `> 0.5` makes masks of the probabilities. The result takes 4 bytes a pixel and object; `patches` gives one object
    after the other.

    Args:
      masks: (n, m, m), probabilities.
      boxes: (n, 4) in pixels of the image.
      size: (height, width) of the image.
      padding: zeros round a mask, by which its box grows too; 1 in torchvision, 0 in MMDetection 1.x.
    """
    pasted = np.zeros((len(masks), *size), np.float32)
    for image, (rows, columns, values) in zip(pasted, patches(masks, boxes, size, padding=padding), strict=True):
        image[rows, columns] = values
    return pasted


def patches(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, padding: int = 1) -> Iterator[Patch]:
    """What `paste` writes into the image of each of (n, m, m) masks; its arguments are the same."""
    masks = np.pad(np.asarray(masks, np.float32), ((0, 0), (padding, padding), (padding, padding)))
    m = masks.shape[1]
    corners = _grown(np.asarray(boxes, np.float32), m / (m - 2 * padding)).astype(np.int64)
    # The last pixel belongs to a box. One of negative size has a pixel of weight, but no place in the image.
    sides = np.maximum(corners[:, 2:] - corners[:, :2] + 1, 1)
    first = np.clip(corners[:, :2], 0, size[::-1])
    last = np.clip(corners[:, 2:] + 1, first, size[::-1])
    for mask, corner, side, start, stop in zip(masks, corners, sides, first, last, strict=True):
        across = _stretched(mask.T, side[0], start[0] - corner[0], stop[0] - corner[0])
        down = _stretched(across.T, side[1], start[1] - corner[1], stop[1] - corner[1])
        yield Patch(slice(start[1], stop[1]), slice(start[0], stop[0]), down)


def _grown(boxes: np.ndarray, factor: float) -> np.ndarray:
    """Boxes (n, 4) `factor` times as wide and high about their centres, rounded as torchvision's."""
    if factor == 1:  # nothing is to be rounded
        return boxes
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32(factor)
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    return np.concatenate([centre - half, centre + half], axis=1)


def _stretched(mask: np.ndarray, side: int, start: int, stop: int) -> np.ndarray:
    """Rows start to stop of a mask (m, n) that is stretched to `side` rows, bilinear: (stop - start, n) float32.

    By rows that are read whole, and not as a product with a matrix of weights: for one so small, BLAS may wait longer
    for its threads than it computes.
    """
    m = len(mask)
    at = (np.arange(start, stop, dtype=np.float32) + np.float32(0.5)) * np.float32(m / side) - np.float32(0.5)
    at = np.clip(at, 0, m - 1)
    first = at.astype(np.int64)
    part = (at - first)[:, None]
    mask = np.ascontiguousarray(mask)
    rows = mask[first]
    rows *= 1 - part
    rows += mask[np.minimum(first + 1, m - 1)] * part
    return rows


def mask_targets(masks: ArrayLike, boxes: ArrayLike, index: ArrayLike, size: int) -> jax.Array:
    """What the mask of the object of each box has inside the box, resampled to size x size: (n, size, size) float32.

    `roi_align` of a mask with as many samples in a bin as it has pixels, rounded up, as torchvision makes the targets
    of the mask head (there `sampling_ratio=-1`). A box's rows and columns are weighted independently, so it is the
    product of two matrices of weights with the mask, of shapes that do not depend on the boxes.

    Args:
      masks: (g, height, width) of the objects, bool or numbers.
      boxes: (n, 4) in pixels of the masks, of any size; with NaN, the result is 0.
      index: (n,) integers, the object of each box.
      size: bins along height and width.
    """
    masks, boxes = jnp.asarray(masks), lax.stop_gradient(widened(jnp.asarray(boxes)))
    height, width = masks.shape[1:]

    def target(box_and_index: tuple[jax.Array, jax.Array]) -> jax.Array:
        box, index = box_and_index
        down = _bins(box[1], box[3], height, size)
        across = _bins(box[0], box[2], width, size)
        rows = jnp.matmul(down, masks[index].astype(boxes.dtype), precision=lax.Precision.HIGHEST)
        return jnp.matmul(rows, across.T, precision=lax.Precision.HIGHEST)

    return lax.map(target, (boxes, jnp.asarray(index)), batch_size=CHUNK)


def _bins(start: jax.Array, end: jax.Array, limit: int, size: int) -> jax.Array:
    """Weights (size, limit) of the pixels of one axis in each bin from `start` to `end`, two scalars.

    A bin has ceil(its side) points, evenly spaced. They are half a pixel apart or more where there are several, so
    that of each bin not more than four lie less than a pixel from the pixel at hand: these alone are computed.
    """
    side = jnp.maximum(end - start, 1)
    side = side / jnp.where(jnp.isnan(side), 1, size)  # by a constant, XLA would multiply by 1 / size instead
    count = jnp.maximum(jnp.ceil(side), 1)
    pixels = jnp.arange(limit, dtype=start.dtype)[:, None]
    bin_start = start + rounded(jnp.arange(size, dtype=start.dtype) * side)[:, None, None]
    # Of a bin with one point that is number 0; else six, since rounding may move the first by one.
    first = jnp.where(count > 1, jnp.floor((pixels - 1 - bin_start) * count / side - 0.5), 0)
    point = first + jnp.arange(6, dtype=start.dtype)
    at = bin_start + rounded((point + 0.5) * side / count)
    there = (point >= 0) & (point < count) & (at >= -1) & (at <= limit)
    weight = jnp.maximum(1 - abs(jnp.clip(at, 0, limit - 1) - pixels), 0)
    return jnp.where(there, weight / count, 0).sum(axis=-1)
