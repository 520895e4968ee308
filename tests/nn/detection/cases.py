"""Random boxes, ordinary ones and those at which formulas break."""

import numpy as np

CASES = 10_000
"""How many random cases a function is held against."""


def boxes(rng: np.random.Generator, *shape: int, broken: bool = True, dtype=np.float32) -> np.ndarray:
    """(*shape, 4) in and around an image of 100 x 100: a third of multiples of 16, so that some are equal.

    With `broken`, one in ten has no width, one in ten no height, and one in fifty each is huge or has a NaN.
    """
    corners = rng.uniform(-30, 110, (*shape, 2))
    drawn = np.concatenate([corners, corners + rng.uniform(0.5, 70, corners.shape)], axis=-1)
    kind = rng.random((*shape, 1))
    drawn = np.where(kind < 1 / 3, drawn // 16 * 16 + [0, 0, 16, 16], drawn)
    if broken:
        which = rng.random((*shape, 1))
        drawn[..., 2:] = np.where(which < [0.1, 0], drawn[..., :2], drawn[..., 2:])
        drawn[..., 2:] = np.where((which >= 0.1) & (which < [0, 0.2]), drawn[..., :2], drawn[..., 2:])
        drawn = np.where((which >= 0.2) & (which < 0.22), drawn * 1e7, drawn)
        hole = (which >= 0.22) & (which < 0.24) & (rng.integers(4, size=(*shape, 1)) == np.arange(4))
        drawn = np.where(hole, np.nan, drawn)
    return drawn.astype(dtype)


def deltas(rng: np.random.Generator, *shape: int, dtype=np.float32) -> np.ndarray:
    """(*shape, 4) codings relative to anchors, some beyond what is clamped, some NaN."""
    drawn = rng.normal(size=(*shape, 4)) * rng.choice([0.1, 1, 10], (*shape, 1))
    return np.where(rng.random(drawn.shape) < 0.01, np.nan, drawn).astype(dtype)


def assert_boxes_close(got: np.ndarray, want: np.ndarray, tolerance: float, *also: np.ndarray) -> None:
    """Coordinates (..., 4) differ by `tolerance` of the largest of their box at most, or of that of `also` (..., 4).

    For one coordinate may be the small difference of large numbers. What is not finite is the same.
    """
    assert np.shape(got) == want.shape
    largest = [np.where(np.isfinite(x), abs(x), 0).max(-1, keepdims=True) for x in (want, *also)]
    scale = np.broadcast_to(np.max(np.stack(np.broadcast_arrays(*largest)), axis=0), want.shape)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.where(finite, 0, got), np.where(finite, 0, want))
    np.testing.assert_array_less(abs(got - want)[finite], tolerance * scale[finite] + np.finfo(want.dtype).tiny)


def overlaps(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoUs of m objects with n candidates in `CASES` images, (CASES, m, n); which objects there are; which candidates.

    They are tenths, so that many are equal to each other and to thresholds, and in some images some are NaN. One
    object in seven overlaps nothing, and one image in nine has none.
    """
    drawn = rng.integers(0, 11, (CASES, m, n)) / 10 * (rng.random((CASES, m, 1)) > 1 / 7)
    drawn = np.where(rng.random(drawn.shape) < 0.1 * (rng.random((CASES, 1, 1)) < 0.2), np.nan, drawn)
    valid = (rng.random((CASES, m)) < 0.7) & (rng.random((CASES, 1)) > 1 / 9)
    return drawn.astype(np.float32), valid, rng.random((CASES, n)) < 0.9
