"""Pasted masks and the targets of masks against their definitions in NumPy, pixel by pixel."""

import jax
import numpy as np
import pytest

from eca_jax.nn.detection import mask_targets, paste, patches
from tests.nn.detection import cases
from tests.nn.detection.test_roi_align import point

SIZE = (40, 50)


def pasted_by_hand(mask, box, padding):
    """In float64; a pixel of the box has its centre somewhere in the padded mask, between four centres."""
    mask = np.pad(mask.astype(float), padding)[..., None]
    m, image = len(mask), np.zeros(SIZE)
    half, centre = (box[2:] - box[:2]) / 2 * m / (m - 2 * padding), (box[2:] + box[:2]) / 2
    first, last = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
    sides = np.maximum(last - first + 1, 1)
    for y in range(max(first[1], 0), min(last[1] + 1, SIZE[0])):
        for x in range(max(first[0], 0), min(last[0] + 1, SIZE[1])):
            u, v = (np.array([x, y]) - first + 0.5) * m / sides - 0.5
            image[y, x] = point(mask, np.clip(v, 0, m - 1), np.clip(u, 0, m - 1), (m, m))[0]
    return image


@pytest.mark.parametrize("padding", [0, 1])
def test_pasted(rng, padding):
    """Boxes inside, across the edges, and beyond them; one without area."""
    boxes = np.concatenate([cases.boxes(rng, 12, broken=False) * 0.5, [[60, 5, 70, 9], [-9, -9, -4, -4], [7, 8, 7, 8]]])
    boxes, masks = boxes.astype(np.float32), rng.random((15, 6, 6)).astype(np.float32)
    got = paste(masks, boxes, SIZE, padding=padding)
    want = [pasted_by_hand(*pair, padding) for pair in zip(masks, boxes.astype(float), strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got.dtype == np.float32
    assert not got[12:14].any()
    assert got[14].any()


def test_patches_are_no_larger_than_the_image(rng):
    """Of a box of a billion pixels too."""
    boxes = np.array([[-3e4, -3e4, 3e4, 3e4], [10, 10, 20, 30]], np.float32)
    all_of_it, inner = patches(rng.random((2, 4, 4)), boxes, SIZE, padding=0)
    assert all_of_it.values.shape == SIZE
    assert inner.values.shape == (21, 11)
    assert (inner.rows, inner.columns) == (slice(10, 31), slice(10, 21))


def test_no_masks():
    assert paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), SIZE).shape == (0, *SIZE)
    targets = jax.jit(lambda m, b, i: mask_targets(m, b, i, 7))
    assert targets(np.ones((1, 9, 9)), np.zeros((0, 4)), np.zeros(0, int)).shape == (0, 7, 7)


def test_targets(rng):
    """Boxes smaller than a bin, larger than the image, beyond it and with NaN."""
    masks, index = rng.random((3, *SIZE)) < 0.5, rng.integers(0, 3, 20)
    boxes = np.concatenate(
        [
            cases.boxes(rng, 16, broken=False) * 0.6,
            [[3, 4, 3.5, 4.5], [-99, 9, 99, 30], [80, 80, 90, 90], [np.nan, 1, 9, 9]],
        ]
    ).astype(np.float32)
    got = jax.jit(lambda m, b, i: mask_targets(m, b, i, 5))(masks, boxes, index)
    for i, box in enumerate(boxes[:-1].astype(float)):
        sides = np.maximum(box[2:] - box[:2], 1) / 5
        counts = np.maximum(np.ceil(sides), 1).astype(int)
        want = np.zeros((5, 5))
        for row, column in np.ndindex(5, 5):
            steps = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in counts]), axis=-1).reshape(-1, 2)
            at = box[:2] + (np.array([column, row]) + steps) * sides
            want[row, column] = np.mean([point(masks[index[i]][..., None], y, x, SIZE)[0] for x, y in at])
        np.testing.assert_allclose(got[i], want, atol=2e-5)
    assert not got[-2:].any()
