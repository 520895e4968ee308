"""A part of what Pillow's resize makes of a long thin image that it enlarges, to the bit, without the rest of it.

Pillow has no way to ask for it: `resize(box=...)` rounds the bounds of the box to single precision. So its arithmetic
(Resample.c) is repeated here for one axis: weights in fixed point with 22 bits after the point, sums rounded to 8 bits.
The other axis is left to Pillow.
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
"""Reach in pixels, and weight at a distance."""


class Taps(NamedTuple):
    """Which pixels of a line some pixels of the enlarged line are made of."""

    start: int
    stop: int
    """All of them are in start to stop."""
    at: np.ndarray
    """int (n, taps): counted from `start`, for each of the n new pixels."""
    weight: np.ndarray
    """int32 (n, taps), in units of 2^-22."""


def taps(length: int, new_length: int, first: int, n: int, resample: Image.Resampling) -> Taps:
    """Of the new pixels `first` to `first + n`, where a line of `length` pixels becomes one of `new_length`, longer."""
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
