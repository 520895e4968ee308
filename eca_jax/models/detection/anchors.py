"""The anchors of a pyramid's levels, for images of any size."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from eca_jax.nn.detection import Convention, anchor_strides, cell_anchors, grid_anchors
from eca_jax.nn.valid import Valid

RATIOS = (0.5, 1.0, 2.0)
"""Height / width."""


@dataclasses.dataclass(frozen=True)
class Anchors:
    """The anchors in one place of every level, and how far the places are apart."""

    convention: Convention
    strides: tuple[int, ...]
    """Of every level, in pixels of the image."""
    sizes: tuple[tuple[float, ...], ...]
    """Of every level: the sides of squares with the areas of its anchors."""

    @property
    def in_a_cell(self) -> int:
        """The number of anchors in one place."""
        return len(self.sizes[0]) * len(RATIOS)

    def of_levels(self, levels: Sequence[jax.Array], valid: Valid) -> tuple[list[jax.Array], list[jax.Array]]:
        """The anchors of every level, (b, h * w * a, 4) each, and whether they are in the image, (b, h * w * a) each.

        Args:
          levels: (b, h, w, c) each; their shapes alone are looked at.
          valid: the sizes of the images, each as it is padded by itself.
        """
        anchors = [self._of_level(*level, valid) for level in zip(self.strides, self.sizes, levels, strict=True)]
        return anchors, [jnp.repeat(valid.inside(x.shape).reshape(len(x), -1), self.in_a_cell, axis=1) for x in levels]

    def _of_level(self, stride: int, sizes: tuple[float, ...], level: jax.Array, valid: Valid) -> jax.Array:
        of_cell = cell_anchors(sizes, RATIOS, stride, self.convention)

        def of_image(size: jax.Array) -> jax.Array:
            return grid_anchors(
                of_cell, (level.shape[1], level.shape[2]), anchor_strides(size, stride, self.convention)
            )

        return jax.vmap(of_image)(valid.sizes)


def of_proposals(convention: Convention) -> Anchors:
    """Those of Faster R-CNN's proposals: one size on each of five levels."""
    strides = (4, 8, 16, 32, 64)
    return Anchors(convention, strides, tuple((8.0 * stride,) for stride in strides))


def of_cells(convention: Convention, *, whole: bool) -> Anchors:
    """RetinaNet's: three sizes on each of five levels, a third of an octave apart; as `whole` numbers or not."""
    strides = (8, 16, 32, 64, 128)
    sizes = [[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in strides]
    return Anchors(convention, strides, tuple(tuple(map(math.floor, level) if whole else level) for level in sizes))
