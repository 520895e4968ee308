"""MobileNetV2 with a slot for channel attention (Sandler et al. 2018; ECANet, models/eca_mobilenetv2.py).

The attention sits after the projection's batch norm in all 17 blocks, with or without a shortcut. Activations are
(b, h, w, c). Where torchvision counts `features.0` to `features.18`, here they are `stem`, `blocks[0..16]` and `last`.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from eca_jax.models.base import Backbone, Feature, Spacing, expect_images, spacings
from eca_jax.nn.attention import Place
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.layers import Dropout
from eca_jax.nn.tail import conv_norm, tail
from eca_jax.nn.valid import Valid


class ConvBN(nnx.Module):
    """Convolution, batch norm, ReLU6."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int,
        stride: int,
        bricks: Bricks,
        *,
        groups: int = 1,
        dilation: int = 1,
    ):
        self.conv = bricks.conv(c_in, c_out, kernel_size, stride, groups=groups, dilation=dilation)
        self.bn = bricks.norm(c_out)

    def __call__(self, x: jax.Array, valid: Valid | None = None) -> jax.Array:
        return nnx.relu6(conv_norm(x, self.conv, self.bn, valid=valid))


class InvertedResidual(nnx.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; attention on the projection, before the addition."""

    def __init__(
        self, c_in: int, c_out: int, spacing: Spacing, expansion: int, place: Place, drop_path: float, bricks: Bricks
    ):
        hidden = c_in * expansion
        self.expand = nnx.data(ConvBN(c_in, hidden, 1, 1, bricks) if expansion != 1 else None)
        self.depthwise = ConvBN(
            hidden, hidden, 3, spacing.stride, bricks, groups=hidden, dilation=spacing.first_dilation
        )
        self.project = bricks.conv(hidden, c_out, 1)
        self.bn = bricks.norm(c_out)
        self.attn = bricks.attn(c_out, place, reduction=8)
        self.drop_path = bricks.drop_path(drop_path)
        self.residual = spacing.stride == 1 and c_in == c_out

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> jax.Array:
        h = x if self.expand is None else self.expand(x)
        return tail(
            self.depthwise(h, valid),
            self.project,
            self.bn,
            self.attn,
            drop_path=self.drop_path,
            rngs=rngs,
            shortcut=x if self.residual else None,
            relu=False,
            valid=valid,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the paper's Table 2: t, c, n, s."""

    expansion: int
    channels: int
    depth: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


def released_kernel_size(channels: int) -> int:
    """The authors' sizes: 1 on fewer than 96 channels, else 3."""
    return 1 if channels < 96 else 3


class MobileNetV2(Backbone):
    """Stem, seven stages of inverted residuals, a last 1x1 convolution, global average, dropout, classifier.

    `width_multiplier` scales every width to int(c * multiplier), the last convolution only above 1. `small_stem` is for
    images of 8 to 64 pixels: the first two strides of 2 become 1. The authors' dropout is 0.25 (torchvision: 0.2).
    `drop_path` is as in ResNet, of the blocks that have a shortcut, and `output_stride` too.
    """

    classifier_name = "classifier"
    head_layers = ("last", "classifier")
    classifier_options: ClassVar = {"layer": nnx.Linear, "kernel_init": nnx.initializers.normal(0.01)}

    def __init__(
        self,
        bricks: Bricks,
        *,
        num_classes: int,
        in_channels: int = 3,
        small_stem: bool = False,
        output_stride: int = 32,
        width_multiplier: float = 1.0,
        dropout: float | None = None,
        drop_path: float = 0.0,
    ):
        channels = [int(stage.channels * width_multiplier) for stage in STAGES]

        c = int(32 * width_multiplier)
        stem_stride = 1 if small_stem else 2
        self.in_channels = in_channels
        self.stem = ConvBN(in_channels, c, 3, stem_stride, bricks)
        self.blocks = nnx.List()
        drop_rates = iter(np.linspace(0, drop_path, sum(stage.depth for stage in STAGES)).tolist())
        feature_info, ends = [], []
        strides = [1 if small_stem and i == 1 else stage.stride for i, stage in enumerate(STAGES)]
        spaces = spacings(strides, stem_stride, output_stride)
        for i, (stage, (total_stride, first, others)) in enumerate(zip(STAGES, spaces, strict=True)):
            side = None if small_stem else 112 // math.prod(strides[: i + 1])
            place = Place(i, len(STAGES), released_kernel_size(channels[i]), side)
            for j in range(stage.depth):
                self.blocks.append(
                    InvertedResidual(
                        c, channels[i], others if j else first, stage.expansion, place, next(drop_rates), bricks
                    )
                )
                c = channels[i]
            feature_info.append(Feature(f"stage{i + 1}", c, total_stride))
            ends.append(len(self.blocks))
        self.feature_info = tuple(feature_info)
        self.ends = tuple(ends)
        width = int(1280 * max(width_multiplier, 1.0))
        self.last = ConvBN(c, width, 1, 1, bricks)
        self.dropout = Dropout(0.25 if dropout is None else dropout)
        self.classifier = bricks.classifier(width, num_classes, **self.classifier_options)

    def features(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None
    ) -> dict[str, jax.Array]:
        expect_images(x, self.in_channels)
        x = self.stem(x, valid)
        outputs = {}
        start = 0
        for info, end in zip(self.feature_info, self.ends, strict=True):
            for block in self.blocks[start:end]:
                x = self.run(block, x, rngs, valid)
            outputs[info.name] = x
            start = end
        return outputs

    def head(self, x: jax.Array, *, pre_logits: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.dropout(self.pool(self.last(x)), rngs=rngs)
        return x if pre_logits else self.classifier(x)
