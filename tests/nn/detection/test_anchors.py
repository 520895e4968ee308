"""Anchors of both libraries: the numbers that they print, and where they put them."""

import jax
import numpy as np
import pytest

from eca_jax.nn.detection import (
    MMDET1,
    TORCHVISION,
    anchor_strides,
    cell_anchors,
    cells,
    grid_anchors,
    inside,
)

RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("convention", "sizes", "stride", "first"),
    [
        (TORCHVISION, [32], 4, [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]),
        (TORCHVISION, [512], 64, [[-362, -181, 362, 181]]),
        (MMDET1, [32], 4, [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]]),
        (MMDET1, [512], 64, [[-330, -149, 393, 212]]),
        (
            MMDET1,
            [8 * 4 * 2 ** (i / 3) for i in range(3)],
            8,
            [[-19, -7, 26, 14], [-25, -10, 32, 17], [-32, -14, 39, 21], [-12, -12, 19, 19]],
        ),
    ],
)
def test_anchors_of_a_cell(convention, sizes, stride, first):
    """What torchvision 0.29 and MMDetection 1.0 have for these sizes."""
    found = cell_anchors(sizes, RATIOS, stride, convention)
    assert found.shape == (3 * len(sizes), 4)
    assert found.dtype == np.float32
    assert found[: len(first)].tolist() == first


def test_halves_are_rounded_to_even():
    assert cell_anchors([5, 7], [1.0], 8, TORCHVISION).tolist() == [[-2, -2, 2, 2], [-4, -4, 4, 4]]


def test_strides():
    """Of the sixth level, 800 rows have 13 cells and 800 // 13 = 61; of the seventh 7, and 800 // 7 = 114."""
    size = np.array([800, 1344])
    assert [cells(size, stride).tolist() for stride in (32, 64, 128)] == [[25, 42], [13, 21], [7, 11]]
    assert [anchor_strides(size, s, TORCHVISION).tolist() for s in (32, 64, 128)] == [[32, 32], [61, 64], [114, 122]]
    assert [anchor_strides(size, s, MMDET1).tolist() for s in (32, 64, 128)] == [[32, 32], [64, 64], [128, 128]]


@pytest.mark.parametrize("convention", [TORCHVISION, MMDET1], ids=["torchvision", "mmdet1"])
def test_anchors_of_a_level(convention):
    """Of images of two sizes in one array, whose sizes are traced: row by row, all of a cell together."""
    base, grid, sizes = cell_anchors([32, 64], RATIOS, 16, convention), (4, 3), np.array([[64, 48], [40, 33]])

    def level(size):
        return grid_anchors(base, grid, anchor_strides(size, 16, convention))

    anchors = jax.jit(jax.vmap(level))(sizes)
    assert anchors.shape == (2, 4 * 3 * 6, 4)
    for image, (size, own_cells) in enumerate(zip(sizes, [(4, 3), (3, 3)], strict=True)):
        steps = (16, 16) if convention is MMDET1 else (size[0] // own_cells[0], size[1] // own_cells[1])
        want = [
            [anchor[0] + j * steps[1], anchor[1] + i * steps[0], anchor[2] + j * steps[1], anchor[3] + i * steps[0]]
            for i in range(4)
            for j in range(3)
            for anchor in base
        ]
        np.testing.assert_array_equal(anchors[image], want)


def test_the_border():
    """MMDetection trains anchors with 0 <= x1 and x2 < width, or as many pixels more on both sides."""
    anchors = np.array([[0, 0, 99, 49], [0, 0, 100, 49], [0, 0, 99, 50], [-1, 0, 9, 9], [0, -3, 9, 9], [0, 0, 103, 9]])
    inside_by = jax.jit(inside, static_argnums=2)
    assert inside_by(anchors, (50, 100), 0).tolist() == [True, False, False, False, False, False]
    assert inside_by(anchors, (50, 100), 3).tolist() == [True, True, True, True, True, False]
    assert inside_by(anchors, (50, 100), -1).all()
