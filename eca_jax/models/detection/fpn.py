"""Feature pyramid networks (Lin et al. 2017, arXiv 1612.03144; torchvision, ops/feature_pyramid_network.py)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.models.base import Backbone
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.valid import Valid, masked

Maps = Sequence[jax.Array]
CHANNELS = 256
"""Of every level of a pyramid."""


fan_in_uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Uniform with the variance 1 / fan_in: PyTorch's kaiming_uniform_ with a = 1."""


class Pooled(nnx.Module):
    """One more level: every second pixel of the last one, for the large anchors of Faster R-CNN."""

    def __call__(self, stages: Maps, levels: Maps, valid: Valid | None) -> list[jax.Array]:
        """The backbone's stages and the levels so far -> the new levels, (b, h / 2, w / 2, c)."""
        return [levels[-1][:, ::2, ::2]]


class Convolved(nnx.Module):
    """Two more levels, P6 and P7, by strided 3x3 convolutions (RetinaNet, arXiv 1708.02002).

    torchvision computes P6 from P5, and P7 from relu(P6). In MMDetection 1.x, P6 is computed from the backbone's last
    stage, and there is no ReLU.
    """

    def __init__(self, c_in: int, bricks: Bricks, *, from_stage: bool, rectified: bool):
        self.from_stage, self.rectified = from_stage, rectified
        self.p6 = bricks.conv(c_in if from_stage else CHANNELS, CHANNELS, 3, 2, init=fan_in_uniform)
        self.p7 = bricks.conv(CHANNELS, CHANNELS, 3, 2, init=fan_in_uniform)

    def __call__(self, stages: Maps, levels: Maps, valid: Valid | None) -> list[jax.Array]:
        """The backbone's stages and the levels so far -> the new ones, a half and a quarter as large as the last."""
        p6 = self.p6(masked(stages[-1] if self.from_stage else levels[-1], valid))
        p7 = self.p7(masked(nnx.relu(p6) if self.rectified else p6, valid))
        return [p6, p7]


class FPN(nnx.Module):
    """Levels of equal channels from the stages of a backbone, each seeing what the coarser ones see.

    A 1x1 convolution of every stage, to which the doubled sum of the coarser stage is added, and a 3x3 convolution of
    each sum.
    """

    def __init__(self, channels: Sequence[int], extra_blocks: Pooled | Convolved, bricks: Bricks):
        """`channels`: of the stages, from fine to coarse."""
        self.inner_blocks = nnx.List([bricks.conv(c, CHANNELS, 1, init=fan_in_uniform) for c in channels])
        self.layer_blocks = nnx.List([bricks.conv(CHANNELS, CHANNELS, 3, init=fan_in_uniform) for _ in channels])
        self.extra_blocks = extra_blocks

    def __call__(self, stages: Sequence[jax.Array], valid: Valid | None = None) -> list[jax.Array]:
        """Activations (b, h, w, c), each half as large as the one before -> levels (b, h, w, 256), and extra ones."""
        inner = [block(stage) for block, stage in zip(self.inner_blocks, stages, strict=True)]
        for i in reversed(range(len(inner) - 1)):
            inner[i] += doubled(inner[i + 1])
        levels = [block(masked(x, valid)) for block, x in zip(self.layer_blocks, inner, strict=True)]
        return levels + self.extra_blocks(stages, levels, valid)


def doubled(x: jax.Array) -> jax.Array:
    """Every pixel four times: (b, h, w, c) -> (b, 2 h, 2 w, c)."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Pyramid(nnx.Module):
    """A backbone without its classifier, and the FPN on its stages."""

    def __init__(self, body: Backbone, stages: Sequence[str], extra_blocks: Any, bricks: Bricks):
        """`stages`: the names of those that the pyramid stands on; `extra_blocks` makes the last levels of it."""
        self.body, self.stages = body, tuple(stages)
        channels = {info.name: info.channels for info in body.feature_info}
        self.fpn = FPN([channels[name] for name in stages], extra_blocks, bricks)

    def __call__(self, images: jax.Array, valid: Valid | None = None) -> list[jax.Array]:
        """Normalised images (b, h, w, 3), of sides that are multiples of 32 -> levels (b, h / s, w / s, 256)."""
        features = self.body.features(images) if valid is None else self.body.features(images, valid=valid)
        return self.fpn([features[name] for name in self.stages], valid)
