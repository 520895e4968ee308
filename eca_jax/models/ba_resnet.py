"""ResNets with bridge attention: the gates of a block see all of its activations (`eca_jax/nn/attention/ba.py`)."""

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx

from eca_jax.models.base import Spacing
from eca_jax.models.resnet import BasicBlock, Bottleneck, Variant
from eca_jax.nn.attention import BA, Place
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.tail import conv_norm, in_turn, tail
from eca_jax.nn.valid import Valid


def bridge(inner: Sequence[int], channels: int, bricks: Bricks) -> BA:
    """The attention of one block, with the network's settings."""
    return BA(inner, channels, norm=bricks.gate_norm, param_dtype=bricks.param_dtype, rngs=bricks.rngs)


class BABasicBlock(BasicBlock):
    """`BasicBlock` whose gates look at both of its activations."""

    def __init__(
        self, c_in: int, planes: int, spacing: Spacing, place: Place, average: bool, drop_path: float, bricks: Bricks
    ):
        super().__init__(c_in, planes, spacing, place, average, drop_path, bricks)
        self.attn = bridge((planes,), planes, bricks)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> jax.Array:
        residual = x if self.downsample is None else in_turn(x, *self.downsample.layers, valid=valid)
        x = conv_norm(x, self.conv1, self.bn1, relu=True, valid=valid)
        gate = self.attn.after(x, valid=valid)
        return tail(x, self.conv2, self.bn2, gate, drop_path=self.drop_path, rngs=rngs, shortcut=residual, valid=valid)


class BABottleneck(Bottleneck):
    """`Bottleneck` whose gates look at its three activations."""

    def __init__(
        self, c_in: int, planes: int, spacing: Spacing, place: Place, average: bool, drop_path: float, bricks: Bricks
    ):
        super().__init__(c_in, planes, spacing, place, average, drop_path, bricks)
        self.attn = bridge((planes, planes), planes * self.expansion, bricks)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> jax.Array:
        residual = x if self.downsample is None else in_turn(x, *self.downsample.layers, valid=valid)
        first = conv_norm(x, self.conv1, self.bn1, relu=True, valid=valid)
        second = conv_norm(first, self.conv2, self.bn2, relu=True, valid=valid)
        gate = self.attn.after(first, second, valid=valid)
        return tail(
            second, self.conv3, self.bn3, gate, drop_path=self.drop_path, rngs=rngs, shortcut=residual, valid=valid
        )


def with_bridges(variant: Variant) -> Variant:
    """The same network of blocks with bridge attention."""
    blocks = {BasicBlock: BABasicBlock, Bottleneck: BABottleneck}
    return dataclasses.replace(variant, block=blocks[variant.block])
