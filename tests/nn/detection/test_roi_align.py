"""RoIAlign against its definition in NumPy, point by point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax.nn.detection import MMDET1, TORCHVISION, pyramid_level, roi_align
from tests.nn.detection import cases

SHAPES, SCALES = [(16, 20), (8, 10)], [1 / 8, 1 / 16]
CONVENTIONS = pytest.mark.parametrize("convention", [TORCHVISION, MMDET1], ids=["torchvision", "mmdet1"])


def point(level, y, x, limit):
    """(c,): the map between the centres of four cells."""
    if not (-1 <= y <= limit[0] and -1 <= x <= limit[1]):
        return np.zeros(level.shape[-1])
    (y, down), (x, right) = (
        (first, v - first)
        for v, first in ((v, int(v)) for v in (np.clip(v, 0, n - 1) for v, n in zip((y, x), limit, strict=True)))
    )
    below, beside = min(y + 1, limit[0] - 1), min(x + 1, limit[1] - 1)
    upper = level[y, x] * (1 - right) + level[y, beside] * right
    lower = level[below, x] * (1 - right) + level[below, beside] * right
    return upper * (1 - down) + lower * down


def by_hand(level, box, scale, size, samples, limit, convention):
    """(size, size, c), in float64."""
    start = box[:2] * scale
    sides = np.maximum((box[2:] + convention.inclusive) * scale - start, convention.smallest_region) / size
    pooled = np.zeros((size, size, level.shape[-1]))
    for i, j in np.ndindex(size, size):
        at = [
            point(level, *(start + (np.array([j, i]) + (np.array([b, a]) + 0.5) / samples) * sides)[::-1], limit)
            for a, b in np.ndindex(samples, samples)
        ]
        pooled[i, j] = np.mean(at, axis=0)
    return pooled


def pyramid_of(rng, *batch, channels=2):
    return [rng.normal(size=(*batch, *shape, channels)).astype(np.float32) for shape in SHAPES]


@CONVENTIONS
def test_what_a_box_contains(rng, convention):
    """Boxes in, across and beyond the valid part of maps whose padding is NaN, so that nothing of it is read."""
    boxes = np.concatenate([cases.boxes(rng, 40, broken=False) * 1.6, [[30, 40, 30, 40], [-500, 0, 900, 90]]])
    boxes = boxes.astype(np.float32)
    pyramid, limits = pyramid_of(rng), np.array([[14, 17], [7, 9]])
    for level, (h, w) in zip(pyramid, limits, strict=True):
        level[h:], level[:, w:] = np.nan, np.nan
    function = jax.jit(lambda p, b, limits: roi_align(p, b, 3, SCALES, convention, limits=limits, samples=3))
    got, levels = function(pyramid, boxes, limits), np.asarray(pyramid_level(boxes, 2, convention))
    for i, level in enumerate(levels):
        want = by_hand(pyramid[level], boxes[i].astype(float), SCALES[level], 3, 3, limits[level], convention)
        np.testing.assert_allclose(got[i], want, atol=2e-5)
    assert 0 < levels.sum() < len(levels)


def test_levels():
    """A square of 112 x 112 is the first that reads P3; MMDetection counts its last column."""
    sides = np.array([1, 111, 112, 223, 224, 447, 448, 5000])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert pyramid_level(boxes, 4, TORCHVISION).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pyramid_level(boxes - [0, 0, 1, 1], 4, MMDET1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    almost = boxes - [0, 0, 0, 5e-5]  # half of it relative to 112 is below 1e-6
    assert pyramid_level(almost, 4, TORCHVISION)[2] == 1
    broken = [[np.nan, 0, 1, 1], [0, 0, 0, 0], [0, 0, 9, -9], [0, 0, np.inf, np.inf]]
    assert pyramid_level(np.array(broken), 4, TORCHVISION).tolist() == [0, 0, 0, 3]


def test_boxes_with_nan_and_without_end(rng):
    boxes = np.array([[np.nan, 0, 9, 9], [0, 0, 1e30, 1e30], [1e9, 1e9, 2e9, 2e9]], np.float32)
    pooled = jax.jit(lambda p, b: roi_align(p, b, 2, SCALES, TORCHVISION))(pyramid_of(rng), boxes)
    assert not pooled.any()


def test_derivatives(rng):
    """The map is linear: the transpose has the same weights, as has forward mode. Padding gets none."""
    boxes = np.concatenate([cases.boxes(rng, 8, broken=False), [[10, 0, 150, 125]]])  # the last reads the second level
    pyramid = pyramid_of(rng)
    limits, direction = np.array([[14, 17], [7, 9]]), pyramid_of(rng)

    def pooled(pyramid):
        return roi_align(pyramid, boxes, 2, SCALES, TORCHVISION, limits=limits)

    cotangent = rng.normal(size=(9, 2, 2, 2)).astype(np.float32)

    @jax.jit
    def both(pyramid, direction):
        _, moved = jax.jvp(pooled, (pyramid,), (direction,))
        _, back = jax.vjp(pooled, pyramid)
        return moved, pooled(direction), back(cotangent)[0]

    moved, expected, gradients = both(pyramid, direction)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    product = sum(np.vdot(g, d) for g, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(product, np.vdot(cotangent, moved), rtol=1e-4)
    for gradient, (h, w) in zip(gradients, limits, strict=True):
        assert not gradient[h:].any()
        assert not gradient[:, w:].any()
        assert gradient.any()


def test_images_of_a_batch_in_bfloat16(rng):
    """Mapped, each image has its own maps and boxes; sums are wider than the maps."""
    pyramid = [jnp.asarray(level, jnp.bfloat16) for level in pyramid_of(rng, 3)]
    boxes = cases.boxes(rng, 3, 7, broken=False)
    mapped = jax.jit(jax.vmap(lambda p, b: roi_align(p, b, 2, SCALES, TORCHVISION)))
    got, want = mapped(pyramid, boxes), mapped([level.astype(jnp.float32) for level in pyramid], boxes)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
    alone = jax.jit(lambda p, b: roi_align(p, b, 2, SCALES, TORCHVISION))([level[1] for level in pyramid], boxes[1])
    np.testing.assert_array_equal(got[1], alone)
