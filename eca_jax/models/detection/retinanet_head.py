"""RetinaNet's head (Lin et al. 2017, arXiv 1708.02002; torchvision, models/detection/retinanet.py)."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.models.detection.anchors import Anchors, Level
from eca_jax.models.detection.conventions import DetectorConvention
from eca_jax.models.detection.detections import Detections
from eca_jax.models.detection.fpn import CHANNELS
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.detection import nms
from eca_jax.nn.layers import BiasedConv
from eca_jax.nn.norm import widened
from eca_jax.nn.valid import Valid, masked

SCORE, OVERLAP, CANDIDATES = 0.05, 0.5, 1000
"""The least score of a detection; how much it may overlap a better one of its class; candidates from one level."""
PRIOR = 0.01
"""The probability of every class before the first step."""


class Tower(nnx.Module):
    """Four 3x3 convolutions and a last one, the same on all levels."""

    def __init__(self, bricks: Bricks):
        normal = nnx.initializers.normal(0.01)
        self.conv = nnx.List([bricks.conv(CHANNELS, CHANNELS, 3, init=normal) for _ in range(4)])

    def hidden(self, x: jax.Array, valid: Valid | None) -> jax.Array:
        """(b, h, w, 256) -> the same shape."""
        for conv in self.conv:
            x = nnx.relu(conv(masked(x, valid)))
        return masked(x, valid)


class ClassificationHead(Tower):
    """For every anchor a logit for each class."""

    def __init__(self, anchors: int, num_classes: int, bricks: Bricks):
        super().__init__(bricks)
        self.cls_logits = bricks.conv(CHANNELS, anchors * num_classes, 3, init=nnx.initializers.normal(0.01))
        assert isinstance(self.cls_logits, BiasedConv)
        self.cls_logits.bias[...] = jnp.full_like(self.cls_logits.bias[...], -math.log((1 - PRIOR) / PRIOR))
        self.num_classes = num_classes

    def __call__(self, level: jax.Array, valid: Valid | None) -> jax.Array:
        """(b, h, w, 256) -> (b, h * w * anchors, classes), float32 or wider."""
        x = self.hidden(level, valid)
        return widened(self.cls_logits(x)).reshape(len(x), -1, self.num_classes)


class RegressionHead(Tower):
    """For every anchor where its box is."""

    def __init__(self, anchors: int, bricks: Bricks):
        super().__init__(bricks)
        self.bbox_reg = bricks.conv(CHANNELS, anchors * 4, 3, init=nnx.initializers.normal(0.01))

    def __call__(self, level: jax.Array, valid: Valid | None) -> jax.Array:
        """(b, h, w, 256) -> (b, h * w * anchors, 4), float32 or wider."""
        x = self.hidden(level, valid)
        return widened(self.bbox_reg(x)).reshape(len(x), -1, 4)


class RetinaNetHead(nnx.Module):
    """Both heads, and what is detected by them."""

    def __init__(self, num_classes: int, convention: DetectorConvention, anchors: Anchors, bricks: Bricks):
        self.convention, self.anchors = nnx.static(convention), nnx.static(anchors)
        self.classification_head = ClassificationHead(anchors.in_a_cell, num_classes, bricks)
        self.regression_head = RegressionHead(anchors.in_a_cell, bricks)

    def __call__(self, levels: Sequence[jax.Array], sizes: jax.Array, valid: Valid) -> Detections:
        """Levels (b, h, w, 256), and the sizes (b, 2) of the images -> their detections, best first."""
        outputs = [(self.classification_head(level, valid), self.regression_head(level, valid)) for level in levels]
        detections = functools.partial(_detections, convention=self.convention)
        return jax.vmap(detections)(self.anchors.levels(levels, outputs, valid), sizes)


def _detections(levels: Sequence[Level], size: jax.Array, convention: DetectorConvention) -> Detections:
    """Of one image."""
    found = [_candidates(level, size, convention) for level in levels]
    boxes, scores, labels = (jnp.concatenate(part) for part in zip(*found, strict=True))
    kept = nms(boxes, scores, OVERLAP, convention.boxes, groups=labels, valid=scores > SCORE)
    scores, best = jax.lax.top_k(jnp.where(kept, scores, -jnp.inf), min(convention.detections_of_cells, len(scores)))
    return Detections(boxes[best], scores, labels[best], scores > -jnp.inf)


def _candidates(
    level: Level, size: jax.Array, convention: DetectorConvention
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best pairs of an anchor and a class in one level: boxes (n, 4), scores (n,), classes (n,).

    They are among the pairs of the best anchors, by their best class: so millions of pairs need not be sorted.
    """
    best_class = jnp.where(level.inside, level.logits.max(1), -jnp.inf)
    best_class, best = jax.lax.top_k(best_class, min(CANDIDATES, len(best_class)))
    pairs = jnp.where((best_class > -jnp.inf)[:, None], level.logits[best], -jnp.inf)
    logits, pair = jax.lax.top_k(pairs.reshape(-1), min(CANDIDATES, pairs.size))
    of, labels = best[pair // pairs.shape[1]], pair % pairs.shape[1]
    return level.boxes(of, size, convention.boxes), jax.nn.sigmoid(logits), labels
