"""What becomes of proposals: classes, boxes and masks (torchvision, models/detection/roi_heads.py, mask_rcnn.py)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.models.detection.conventions import DetectorConvention
from eca_jax.models.detection.detections import Detections
from eca_jax.models.detection.fpn import CHANNELS
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.detection import clip, decode, roi_align, select, sides_at_least
from eca_jax.nn.layers import BiasedConv, DoublingConv, fan_out_normal, linear
from eca_jax.nn.norm import widened
from eca_jax.nn.valid import Valid

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""Of the levels that boxes are read from; the coarsest level is for proposals alone."""
BOX_SIDE, MASK_SIDE = 7, 14
"""Of what is read for a box, in samples."""
HIDDEN = 1024
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Of the coding of boxes relative to proposals."""
SCORE, OVERLAP, DETECTIONS = 0.05, 0.5, 100
"""The least score of a detection; how much it may overlap a better one of its class; how many an image has at most."""


class MapLinear(nnx.Linear):
    """A dense layer of all values of a small map, (..., h, w, c_in) -> (..., c_out).

    It has a class of its own because PyTorch has these values in the order c, h, w.
    """

    def __init__(self, side: int, c_in: int, c_out: int, **options: Any):
        super().__init__(side * side * c_in, c_out, **options)
        self.side = side

    def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
        return super().__call__(inputs.reshape(*inputs.shape[:-3], -1))


class BoxHead(nnx.Module):
    """Two dense layers, (..., 7, 7, 256) -> (..., 1024)."""

    def __init__(self, bricks: Bricks):
        options = {"dtype": bricks.dtype, "param_dtype": bricks.param_dtype, "rngs": bricks.rngs}
        self.fc6 = MapLinear(BOX_SIDE, CHANNELS, HIDDEN, **options)
        self.fc7 = linear(HIDDEN, HIDDEN, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.fc7(nnx.relu(self.fc6(x))))


class BoxPredictor(nnx.Module):
    """Classes and boxes, (..., 1024) -> logits (..., classes) and deltas (..., classes, 4), float32 or wider."""

    def __init__(self, num_classes: int, bricks: Bricks):
        options = {"param_dtype": bricks.param_dtype, "rngs": bricks.rngs}
        self.cls_score = linear(HIDDEN, num_classes, **options)
        self.bbox_pred = linear(HIDDEN, 4 * num_classes, **options)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = widened(x)
        deltas = self.bbox_pred(x)
        return self.cls_score(x), deltas.reshape(*deltas.shape[:-1], -1, 4)


class MaskPredictor(nnx.Module):
    """Masks at twice the resolution: (n, 14, 14, 256) and classes (n,) -> logits (n, 28, 28)."""

    def __init__(self, num_classes: int, bricks: Bricks):
        self.conv5_mask = DoublingConv(
            CHANNELS, CHANNELS, dtype=bricks.dtype, param_dtype=bricks.param_dtype, rngs=bricks.rngs
        )
        self.mask_fcn_logits = bricks.conv(CHANNELS, num_classes, 1, init=fan_out_normal)

    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """Logits (n, 28, 28) of one class each, `labels` (n,), without those of the others."""
        x = nnx.relu(self.conv5_mask(x))
        weights = self.mask_fcn_logits.kernel[0, 0][:, labels].astype(x.dtype)  # (256, n)
        assert isinstance(self.mask_fcn_logits, BiasedConv)
        bias = self.mask_fcn_logits.bias[labels]
        return widened(jnp.einsum("nhwc,cn->nhw", x, weights)) + bias[:, None, None]


class RoIHeads(nnx.Module):
    """The second stage of Faster R-CNN, and with masks of Mask R-CNN."""

    def __init__(self, num_classes: int, convention: DetectorConvention, bricks: Bricks, *, masks: bool):
        self.convention = nnx.static(convention)
        self.box_head = BoxHead(bricks)
        self.box_predictor = BoxPredictor(num_classes, bricks)
        if masks:
            self.mask_head = nnx.List([bricks.conv(CHANNELS, CHANNELS, 3, init=fan_out_normal) for _ in range(4)])
            self.mask_predictor = MaskPredictor(num_classes, bricks)

    def __call__(
        self, levels: Sequence[jax.Array], proposals: jax.Array, there: jax.Array, sizes: jax.Array, valid: Valid
    ) -> Detections:
        """The detections of every image, best first.

        Args:
          levels: of the pyramid, (b, h, w, 256) each.
          proposals, there: (b, n, 4) and (b, n), as `RPN` gives them.
          sizes: (b, 2), height and width of the images.
          valid: what of the levels belongs to them.
        """
        logits, deltas = self.boxes(levels, proposals, valid)
        found = jax.vmap(self._detections)(logits, deltas, proposals, there, sizes)
        if not hasattr(self, "mask_head"):
            return found
        return found.replace(masks=jax.nn.sigmoid(self.masks(levels, found.boxes, found.labels, valid)))

    def boxes(self, levels: Sequence[jax.Array], proposals: jax.Array, valid: Valid) -> tuple[jax.Array, jax.Array]:
        """Proposals (b, n, 4) -> logits (b, n, classes), deltas (b, n, classes, 4)."""
        return self.box_predictor(self.box_head(self._read(levels, proposals, valid, BOX_SIDE)))

    def masks(self, levels: Sequence[jax.Array], boxes: jax.Array, labels: jax.Array, valid: Valid) -> jax.Array:
        """Boxes (b, n, 4) and their classes (b, n) -> logits (b, n, 28, 28) of their masks."""
        b, n = labels.shape
        x = self._read(levels, boxes, valid, MASK_SIDE)
        x = x.reshape(b * n, *x.shape[2:])
        for conv in self.mask_head:
            x = nnx.relu(conv(x))
        x = self.mask_predictor(x, labels.reshape(-1))
        return x.reshape(b, n, *x.shape[1:])

    def _read(self, levels: Sequence[jax.Array], boxes: jax.Array, valid: Valid, side: int) -> jax.Array:
        """RoIAlign, (b, n, side, side, 256)."""
        levels = levels[: len(SCALES)]
        limits = jnp.stack([valid.sides(level.shape) for level in levels], axis=1)  # (b, levels, 2)

        def read(levels: Sequence[jax.Array], boxes: jax.Array, limits: jax.Array) -> jax.Array:
            return roi_align(levels, boxes, side, SCALES, self.convention.boxes, limits=limits)

        return jax.vmap(read)(levels, boxes, limits)

    def _detections(
        self, logits: jax.Array, deltas: jax.Array, proposals: jax.Array, there: jax.Array, size: jax.Array
    ) -> Detections:
        """Of one image."""
        convention = self.convention
        scores = jax.nn.softmax(logits)[:, 1:]  # the first class is the background
        boxes = clip(decode(deltas[:, 1:], proposals[:, None], WEIGHTS, convention.boxes), size, convention.boxes)
        good = there[:, None] & (scores > SCORE)
        good &= sides_at_least(boxes, convention.smallest_detection, convention.boxes)
        rows, classes, found = select(boxes, scores, OVERLAP, DETECTIONS, convention.boxes, valid=good)
        return Detections(boxes[rows, classes], scores[rows, classes], jnp.where(found, classes + 1, 0), found)
