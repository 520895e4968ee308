"""Computes a part of a long thin image that Pillow's resize enlarges, with the same bits, without the other parts.

Pillow cannot do this: `resize(box=...)` rounds the bounds of the box to single precision. So its arithmetic
(Resample.c) is repeated here for one axis: weights in fixed point with 22 fractional bits, sums rounded to 8 bits.
Pillow does the other axis.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

BITS = 22


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, 1 - x, 0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a = -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {Image.Resampling.BILINEAR: (1.0, _triangle), Image.Resampling.BICUBIC: (2.0, _bicubic)}
"""Filter -> (its reach in pixels, its weight as a function of the distance)."""


class Taps(NamedTuple):
    """The old pixels, with weights, from which some new pixels of an enlarged line are computed."""

    start: int
    stop: int
    """All the old pixels are from `start` to `stop`, without that one."""
    at: np.ndarray
    """int (n, taps): for each of the n new pixels, the old ones, counted from `start`."""
    weight: np.ndarray
    """int32 (n, taps), in units of 2^-22."""


def taps(length: int, new_length: int, first: int, n: int, resample: Image.Resampling) -> Taps:
    """The taps of the new pixels `first` to `first + n` when a line of `length` pixels is enlarged to `new_length`."""
    reach, kernel = KERNELS[resample]
    center = (np.arange(first, first + n) + 0.5) * (length / new_length)
    low = np.maximum((center - reach + 0.5).astype(int), 0)
    high = np.minimum((center + reach + 0.5).astype(int), length)
    at = low[:, None] + np.arange(np.max(high - low))
    weight = np.where(at < high[:, None], kernel(np.abs(at - center[:, None] + 0.5)), 0)
    weight /= np.add.accumulate(weight, axis=1)[:, -1:]  # from the left, as Pillow adds them
    fixed = (weight * 2**BITS + np.copysign(0.5, weight)).astype(np.int32)
    start, stop = int(low[0]), int(high[-1])
    return Taps(start, stop, np.minimum(at, stop - 1) - start, fixed)


def resize_lines(pixels: np.ndarray, taps: Taps) -> np.ndarray:
    """uint8 (lines, stop - start, channels) -> uint8 (lines, n, channels)."""
    sums = np.full((len(pixels), len(taps.at), pixels.shape[2]), 1 << (BITS - 1), np.int32)
    for at, weight in zip(taps.at.T, taps.weight.T, strict=True):
        sums += pixels[:, at] * weight[:, None]
    return np.clip(sums >> BITS, 0, 255).astype(np.uint8)
