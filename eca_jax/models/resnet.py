"""ResNet v1.5 with a slot for channel attention (He et al. 2015; ECA-Net, section 4; ECANet, models/eca_resnet.py).

Attribute names are torchvision's; the slot is `attn`. Activations are (b, h, w, c).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.models.base import Backbone, Feature
from eca_jax.nn.attention import kernel_sizes
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.layers import linear


class Downsample(nnx.Module):
    """The shortcut where the shape changes: 1x1 convolution and batch norm."""

    def __init__(self, c_in: int, c_out: int, stride: int, bricks: Bricks):
        self.conv = bricks.conv(c_in, c_out, 1, stride)
        self.bn = bricks.norm(c_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


def shortcut(c_in: int, c_out: int, stride: int, bricks: Bricks) -> Downsample | None:
    """None is the identity."""
    return nnx.data(None if stride == 1 and c_in == c_out else Downsample(c_in, c_out, stride, bricks))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; attention after the last batch norm, before the addition."""

    expansion = 1

    def __init__(self, c_in: int, planes: int, stride: int, kernel_size: int, bricks: Bricks):
        self.conv1 = bricks.conv(c_in, planes, 3, stride)
        self.bn1 = bricks.norm(planes)
        self.conv2 = bricks.conv(planes, planes, 3)
        self.bn2 = bricks.norm(planes)
        self.attn = bricks.attn(planes, kernel_size)
        self.downsample = shortcut(c_in, planes, stride, bricks)

    def __call__(self, x: jax.Array) -> jax.Array:
        residual = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.attn(self.bn2(self.conv2(x)))
        return nnx.relu(x + residual)


class Bottleneck(nnx.Module):
    """1x1 down, 3x3 (with the stride: v1.5), 1x1 up; attention after the last batch norm, before the addition."""

    expansion = 4

    def __init__(self, c_in: int, planes: int, stride: int, kernel_size: int, bricks: Bricks):
        c_out = planes * self.expansion
        self.conv1 = bricks.conv(c_in, planes, 1)
        self.bn1 = bricks.norm(planes)
        self.conv2 = bricks.conv(planes, planes, 3, stride)
        self.bn2 = bricks.norm(planes)
        self.conv3 = bricks.conv(planes, c_out, 1)
        self.bn3 = bricks.norm(c_out)
        self.attn = bricks.attn(c_out, kernel_size)
        self.downsample = shortcut(c_in, c_out, stride, bricks)

    def __call__(self, x: jax.Array) -> jax.Array:
        residual = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        x = self.attn(self.bn3(self.conv3(x)))
        return nnx.relu(x + residual)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table: blocks a stage, and the kernel sizes that the authors released."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    released: tuple[int, int, int, int]


VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2), released=(3, 5, 7, 7)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3), released=(3, 3, 5, 7)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3), released=(3, 5, 5, 7)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3), released=(3, 3, 5, 7)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3), released=(3, 3, 5, 7)),
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNet(Backbone):
    """Stem, four stages, global average, classifier.

    `small_stem` is for images of 8 to 64 pixels: a 3x3 convolution of stride 1 and no pooling in place of the 7x7 of
    stride 2 and the max pool. `width_multiplier` scales every stage.
    """

    def __init__(
        self,
        variant: Variant,
        bricks: Bricks,
        *,
        num_classes: int,
        small_stem: bool = False,
        width_multiplier: float = 1.0,
        dropout: float | None = None,
    ):
        planes = [int(p * width_multiplier) for p in (64, 128, 256, 512)]
        channels = [p * variant.block.expansion for p in planes]
        sizes = kernel_sizes(bricks.attention.kernel_sizes, channels, variant.released)

        c = planes[0]
        self.small_stem = small_stem
        self.conv1 = bricks.conv(3, c, 3, 1) if small_stem else bricks.conv(3, c, 7, 2)
        self.bn1 = bricks.norm(c)
        total_stride = 1 if small_stem else 4
        feature_info = []
        for stage, (name, depth) in enumerate(zip(STAGES, variant.depths, strict=True)):
            stride = 1 if stage == 0 else 2
            blocks = nnx.List()
            for i in range(depth):
                blocks.append(variant.block(c, planes[stage], stride if i == 0 else 1, sizes[stage], bricks))
                c = channels[stage]
            setattr(self, name, blocks)
            total_stride *= stride
            feature_info.append(Feature(name, c, total_stride))
        self.feature_info = tuple(feature_info)
        self.dropout = nnx.Dropout(dropout or 0.0)
        self.fc = linear(c, num_classes, param_dtype=bricks.param_dtype, rngs=bricks.rngs)

    def features(self, x: jax.Array) -> dict[str, jax.Array]:
        x = nnx.relu(self.bn1(self.conv1(x)))
        if not self.small_stem:
            x = max_pool(x)
        outputs = {}
        for name in STAGES:
            for block in getattr(self, name):
                x = block(x)
            outputs[name] = x
        return outputs

    def head(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.fc(self.dropout(self.pool(x), rngs=rngs))


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 of stride 2, padded by 1 on every side."""
    window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
