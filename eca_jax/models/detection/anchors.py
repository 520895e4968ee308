"""The anchors of a pyramid's levels, for images of any size."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eca_jax.nn.detection import Convention, anchor_strides, cell_anchors, clip, decode, grid_anchors
from eca_jax.nn.valid import Valid

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
"""Of the coding of boxes relative to anchors."""
RATIOS = (0.5, 1.0, 2.0)
"""Height / width."""


class Level(NamedTuple):
    """What a network says of the n = h * w * a anchors of one level, (b, n, ...); of one image under `jax.vmap`."""

    logits: jax.Array
    """(n,), or (n, classes)."""
    deltas: jax.Array
    """(n, 4): the boxes relative to the anchors."""
    anchors: jax.Array
    """(n, 4)."""
    inside: jax.Array
    """(n,): whether they are in the image, and not in its padding."""

    def boxes(self, chosen: jax.Array, size: jax.Array, convention: Convention) -> jax.Array:
        """The boxes (k, 4) of the anchors `chosen` (k,), clipped to an image of this size (2,)."""
        return clip(decode(self.deltas[chosen], self.anchors[chosen], WEIGHTS, convention), size, convention)


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

    def levels(
        self, maps: Sequence[jax.Array], outputs: Sequence[tuple[jax.Array, jax.Array]], valid: Valid
    ) -> list[Level]:
        """The logits and deltas of every level with its anchors.

        Args:
          maps: (b, h, w, c) each; their shapes alone are looked at.
          outputs: logits (b, h * w * a, ...) and deltas (b, h * w * a, 4) of each.
          valid: the sizes of the images, each as it is padded by itself.
        """
        return [
            Level(*output, self._of_level(stride, sizes, x, valid), self._inside(x, valid))
            for stride, sizes, x, output in zip(self.strides, self.sizes, maps, outputs, strict=True)
        ]

    def _inside(self, level: jax.Array, valid: Valid) -> jax.Array:
        return jnp.repeat(valid.inside(level.shape).reshape(len(level), -1), self.in_a_cell, axis=1)

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
