"""ResNet v1.5 with a slot for channel attention (He et al. 2015; ECA-Net, section 4; ECANet, models/eca_resnet.py), and
timm's variants of it.

Attribute names are torchvision's; the slot is `attn`. Activations are (b, h, w, c).
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from eca_jax.models.base import Backbone, Feature, Spacing, expect_images, spacings
from eca_jax.nn.attention import Identity, Place
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.layers import Dropout
from eca_jax.nn.pool import max_pool
from eca_jax.nn.tail import conv_norm, in_turn, tail
from eca_jax.nn.valid import Valid, masked


def shortcut(c_in: int, c_out: int, spacing: Spacing, average: bool, bricks: Bricks) -> nnx.Sequential | None:
    """What the input goes through where the shape changes; None is the identity.

    A strided 1x1 convolution and batch norm; with `average` the stride is a 2x2 average before it (ResNet-D, He et al.
    2018, section 4.1), nothing where there neither is a stride nor a dilation in its place. Indices of the layers are
    torchvision's and timm's.
    """
    if spacing.stride == 1 and c_in == c_out:
        return nnx.data(None)
    if not average:
        return nnx.Sequential(bricks.conv(c_in, c_out, 1, spacing.stride), bricks.norm(c_out))
    pool = average_pool if spacing.stride == 2 else smooth if spacing.dilation > 1 else Identity()
    return nnx.Sequential(pool, bricks.conv(c_in, c_out, 1), bricks.norm(c_out))


def smooth(x: jax.Array) -> jax.Array:
    """2x2 averages of every pixel and those after it, (b, h, w, c) -> (b, h, w, c): beyond the border there are zeros.

    What timm makes of `average_pool` where its stride has become a dilation.
    """
    pad: Any = ((0, 1), (0, 1))
    return nnx.avg_pool(x, (2, 2), padding=pad)


def average_pool(x: jax.Array) -> jax.Array:
    """2x2 averages, (b, h, w, c) -> (b, ceil(h / 2), ceil(w / 2), c); at an odd border of the pixels that are there."""
    pad: Any = tuple((0, side % 2) for side in x.shape[1:3])
    return nnx.avg_pool(x, (2, 2), strides=(2, 2), padding=pad, count_include_pad=False)


def deep_stem(c_in: int, widths: tuple[int, int], c_out: int, bricks: Bricks) -> nnx.Sequential:
    """Three 3x3 convolutions in place of the 7x7 (ResNet-C); the caller's batch norm and ReLU follow the last."""
    first, second = widths
    return nnx.Sequential(
        bricks.conv(c_in, first, 3, 2),
        bricks.norm(first),
        nnx.relu,
        bricks.conv(first, second, 3),
        bricks.norm(second),
        nnx.relu,
        bricks.conv(second, c_out, 3),
    )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; attention after the last batch norm, before the addition."""

    expansion = 1

    def __init__(
        self, c_in: int, planes: int, spacing: Spacing, place: Place, average: bool, drop_path: float, bricks: Bricks
    ):
        self.conv1 = bricks.conv(c_in, planes, 3, spacing.stride, dilation=spacing.first_dilation)
        self.bn1 = bricks.norm(planes)
        self.conv2 = bricks.conv(planes, planes, 3, dilation=spacing.dilation)
        self.bn2 = bricks.norm(planes)
        self.attn = bricks.attn(planes, place)
        self.drop_path = bricks.drop_path(drop_path)
        self.downsample = shortcut(c_in, planes, spacing, average, bricks)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> jax.Array:
        residual = x if self.downsample is None else in_turn(x, *self.downsample.layers, valid=valid)
        x = conv_norm(x, self.conv1, self.bn1, relu=True, valid=valid)
        return tail(
            x, self.conv2, self.bn2, self.attn, drop_path=self.drop_path, rngs=rngs, shortcut=residual, valid=valid
        )


class Bottleneck(nnx.Module):
    """1x1 down, 3x3 (with the stride: v1.5), 1x1 up; attention after the last batch norm, before the addition."""

    expansion = 4

    def __init__(
        self, c_in: int, planes: int, spacing: Spacing, place: Place, average: bool, drop_path: float, bricks: Bricks
    ):
        c_out = planes * self.expansion
        self.conv1 = bricks.conv(c_in, planes, 1)
        self.bn1 = bricks.norm(planes)
        self.conv2 = bricks.conv(planes, planes, 3, spacing.stride, dilation=spacing.first_dilation)
        self.bn2 = bricks.norm(planes)
        self.conv3 = bricks.conv(planes, c_out, 1)
        self.bn3 = bricks.norm(c_out)
        self.attn = bricks.attn(c_out, place)
        self.drop_path = bricks.drop_path(drop_path)
        self.downsample = shortcut(c_in, c_out, spacing, average, bricks)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> jax.Array:
        residual = x if self.downsample is None else in_turn(x, *self.downsample.layers, valid=valid)
        x = conv_norm(x, self.conv1, self.bn1, relu=True, valid=valid)
        x = conv_norm(x, self.conv2, self.bn2, relu=True, valid=valid)
        return tail(
            x, self.conv3, self.bn3, self.attn, drop_path=self.drop_path, rngs=rngs, shortcut=residual, valid=valid
        )


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    """Blocks a stage."""
    released: tuple[int, int, int, int] = (5, 5, 5, 7)
    """Kernel sizes of the published ECA checkpoints: the authors' own, and the formula's in timm's (on bottlenecks)."""
    stem: tuple[int, int] | None = None
    """Widths of the first two of three 3x3 convolutions; None is one 7x7."""
    average_shortcut: bool = False


DEEP, TIERED = (32, 32), (24, 32)
VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2), released=(3, 5, 7, 7)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3), released=(3, 3, 5, 7)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3), released=(3, 5, 5, 7)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3), released=(3, 3, 5, 7)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3), released=(3, 3, 5, 7)),
    # timm, models/resnet.py: D has the deep stem and averaged shortcuts, T a tiered one, light averaged shortcuts only.
    "resnet26t": Variant(Bottleneck, (2, 2, 2, 2), stem=TIERED, average_shortcut=True),
    "resnet50t": Variant(Bottleneck, (3, 4, 6, 3), stem=TIERED, average_shortcut=True),
    "resnet50d": Variant(Bottleneck, (3, 4, 6, 3), stem=DEEP, average_shortcut=True),
    "resnet101d": Variant(Bottleneck, (3, 4, 23, 3), stem=DEEP, average_shortcut=True),
    "resnet152d": Variant(Bottleneck, (3, 8, 36, 3), stem=DEEP, average_shortcut=True),
    "resnet200d": Variant(Bottleneck, (3, 24, 36, 3), stem=DEEP, average_shortcut=True),
    "resnet269d": Variant(Bottleneck, (3, 30, 48, 8), stem=DEEP, average_shortcut=True),
    "resnetlight": Variant(Bottleneck, (1, 1, 11, 3), average_shortcut=True),
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNet(Backbone):
    """Stem, four stages, global average, classifier.

    `small_stem` is for images of 8 to 64 pixels: a 3x3 convolution of stride 1 and no pooling in place of the 7x7 of
    stride 2 and the max pool. `width_multiplier` scales every stage. `drop_path` is the probability that the last
    block's branch is left out of an example (stochastic depth, Huang et al. 2016); it grows linearly from 0. With an
    `output_stride` of 16 or 8 the last stage or two are dilated instead of strided.
    """

    def __init__(
        self,
        variant: Variant,
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
        planes = [int(p * width_multiplier) for p in (64, 128, 256, 512)]
        channels = [p * variant.block.expansion for p in planes]

        c = planes[0]
        self.in_channels, self.small_stem = in_channels, small_stem
        if small_stem:
            self.conv1 = bricks.conv(in_channels, c, 3, 1)
        elif variant.stem:
            first, second = (int(width * width_multiplier) for width in variant.stem)
            self.conv1 = deep_stem(in_channels, (first, second), c, bricks)
        else:
            self.conv1 = bricks.conv(in_channels, c, 7, 2)
        self.bn1 = bricks.norm(c)
        drop_rates = iter(np.linspace(0, drop_path, sum(variant.depths)).tolist())
        feature_info = []
        spaces = spacings((1, 2, 2, 2), 1 if small_stem else 4, output_stride)
        for stage, (name, depth, (total_stride, first, others)) in enumerate(
            zip(STAGES, variant.depths, spaces, strict=True)
        ):
            place = Place(stage, len(STAGES), variant.released[stage], None if small_stem else 224 // (4 << stage))
            blocks = nnx.List()
            for i in range(depth):
                blocks.append(
                    variant.block(
                        c,
                        planes[stage],
                        others if i else first,
                        place,
                        variant.average_shortcut,
                        next(drop_rates),
                        bricks,
                    )
                )
                c = channels[stage]
            setattr(self, name, blocks)
            feature_info.append(Feature(name, c, total_stride))
        self.feature_info = tuple(feature_info)
        self.dropout = Dropout(dropout or 0.0)
        self.fc = bricks.classifier(c, num_classes)

    def _stem(self, x: jax.Array, valid: Valid | None = None) -> jax.Array:
        """Images (b, h, w, in_channels) -> what the first block gets."""
        expect_images(x, self.in_channels)
        stem = self.conv1.layers if isinstance(self.conv1, nnx.Sequential) else (self.conv1,)
        x = nnx.relu(in_turn(x, *stem, self.bn1, valid=valid))
        return x if self.small_stem else max_pool(masked(x, valid), training=not self.bn1.use_running_average)

    def features(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None
    ) -> dict[str, jax.Array]:
        x, outputs = self._stem(x, valid), {}
        for name in STAGES:
            for block in getattr(self, name):
                x = self.run(block, x, rngs, valid)
            outputs[name] = x
        return outputs

    def head(self, x: jax.Array, *, pre_logits: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.dropout(self.pool(x), rngs=rngs)
        return x if pre_logits else self.fc(x)
