"""Region proposal networks (Ren et al. 2015, arXiv 1506.01497; torchvision, models/detection/rpn.py)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.models.detection.anchors import Anchors, Level
from eca_jax.models.detection.conventions import DetectorConvention
from eca_jax.models.detection.fpn import CHANNELS
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.detection import nms, sides_at_least
from eca_jax.nn.norm import widened
from eca_jax.nn.valid import Valid, masked

CANDIDATES, PROPOSALS = 1000, 1000
"""Before the suppression, of every level; and after it, of an image."""
OVERLAP = 0.7
"""A proposal that overlaps a better one of its level by more than this is suppressed."""


class RPNHead(nnx.Module):
    """For every anchor of a level, whether an object is there, and where its box is; the same weights on all levels."""

    def __init__(self, anchors: int, bricks: Bricks):
        """`anchors`: in one place."""
        normal = nnx.initializers.normal(0.01)
        self.conv = bricks.conv(CHANNELS, CHANNELS, 3, init=normal)
        self.cls_logits = bricks.conv(CHANNELS, anchors, 1, init=normal)
        self.bbox_pred = bricks.conv(CHANNELS, 4 * anchors, 1, init=normal)

    def __call__(self, level: jax.Array, valid: Valid | None) -> tuple[jax.Array, jax.Array]:
        """A level (b, h, w, 256) -> logits (b, n) and deltas (b, n, 4) of n = h * w * a anchors, float32 or wider."""
        x = nnx.relu(self.conv(masked(level, valid)))
        b = len(x)
        return widened(self.cls_logits(x)).reshape(b, -1), widened(self.bbox_pred(x)).reshape(b, -1, 4)


class RPN(nnx.Module):
    """The head, and what is proposed by it."""

    def __init__(self, convention: DetectorConvention, anchors: Anchors, bricks: Bricks):
        self.convention, self.anchors = nnx.static(convention), nnx.static(anchors)
        self.head = RPNHead(anchors.in_a_cell, bricks)

    def __call__(self, levels: Sequence[jax.Array], sizes: jax.Array, valid: Valid) -> tuple[jax.Array, jax.Array]:
        """The proposals for every image, best first.

        Args:
          levels: (b, h, w, 256) each, from fine to coarse.
          sizes: (b, 2), height and width of the images, to which boxes are clipped.
          valid: what of the levels belongs to them.

        Returns:
          Boxes (b, 1000, 4), and which of them there are, (b, 1000).
        """
        outputs = [self.head(level, valid) for level in levels]
        propose = functools.partial(_propose, convention=self.convention)
        return jax.vmap(propose)(self.anchors.levels(levels, outputs, valid), sizes)


def _propose(levels: Sequence[Level], size: jax.Array, convention: DetectorConvention) -> tuple[jax.Array, jax.Array]:
    """The proposals for one image: (1000, 4) and (1000,)."""
    candidates = [_candidates(level, size, convention) for level in levels]
    boxes, scores, there = (jnp.stack(part) for part in zip(*candidates, strict=True))

    def keep(boxes: jax.Array, scores: jax.Array, there: jax.Array) -> jax.Array:
        return nms(boxes, scores, OVERLAP, convention.boxes, valid=there)

    kept = jax.vmap(keep)(boxes, scores, there)
    scores = jnp.where(kept, scores, -jnp.inf).reshape(-1)
    scores, best = jax.lax.top_k(scores, min(PROPOSALS, len(scores)))
    return boxes.reshape(-1, 4)[best], scores > -jnp.inf


def _candidates(
    level: Level, size: jax.Array, convention: DetectorConvention
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best of one level: boxes (1000, 4), scores (1000,), and which of them there are."""
    logits = jnp.where(level.inside, level.logits, -jnp.inf)
    logits, best = jax.lax.top_k(logits, min(CANDIDATES, len(logits)))
    boxes = level.boxes(best, size, convention.boxes)
    there = (logits > -jnp.inf) & sides_at_least(boxes, convention.smallest_proposal, convention.boxes)
    rest = CANDIDATES - len(logits)
    boxes = jnp.pad(boxes, ((0, rest), (0, 0)))
    return boxes, jnp.pad(jax.nn.sigmoid(logits), (0, rest)), jnp.pad(there, (0, rest))
