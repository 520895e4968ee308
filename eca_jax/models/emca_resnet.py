"""ResNets with EMCA, in which the blocks of a stage see how earlier stages ended (`eca_jax/nn/attention/emca.py`)."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from eca_jax.models.resnet import STAGES, BasicBlock, Bottleneck, ResNet, Variant
from eca_jax.nn.attention import EMCA, squeeze
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.tail import conv_norm, in_turn, tail
from eca_jax.nn.valid import Valid

Memory = tuple[jax.Array, ...]
"""The averages (b, c) of the stem's output, and of the branch of the last block of every earlier stage."""


class EMCABasicBlock(BasicBlock):
    """`BasicBlock` that maps (activation, memory) to (activation, the averages that a later stage may remember).

    Its attention is an `EMCA`, which the network gives it.
    """

    attn: EMCA

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]: `features` calls it
        self, inputs: tuple[jax.Array, Memory], *, rngs: nnx.Rngs | None = None, valid: Valid | None = None
    ) -> tuple[jax.Array, jax.Array]:
        x, memory = inputs
        gate = self.attn.after(memory)
        residual = x if self.downsample is None else in_turn(x, *self.downsample.layers, valid=valid)
        x = conv_norm(x, self.conv1, self.bn1, relu=True, valid=valid)
        x = tail(x, self.conv2, self.bn2, gate, drop_path=self.drop_path, rngs=rngs, shortcut=residual, valid=valid)
        return x, gate.averages


class EMCABottleneck(Bottleneck):
    """`Bottleneck` that maps (activation, memory) to (activation, the averages that a later stage may remember).

    Its attention is an `EMCA`, which the network gives it.
    """

    attn: EMCA

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]: `features` calls it
        self, inputs: tuple[jax.Array, Memory], *, rngs: nnx.Rngs | None = None, valid: Valid | None = None
    ) -> tuple[jax.Array, jax.Array]:
        x, memory = inputs
        gate = self.attn.after(memory)
        residual = x if self.downsample is None else in_turn(x, *self.downsample.layers, valid=valid)
        x = conv_norm(x, self.conv1, self.bn1, relu=True, valid=valid)
        x = conv_norm(x, self.conv2, self.bn2, relu=True, valid=valid)
        x = tail(x, self.conv3, self.bn3, gate, drop_path=self.drop_path, rngs=rngs, shortcut=residual, valid=valid)
        return x, gate.averages


class EMCAResNet(ResNet):
    """`ResNet` that carries the memory of the earlier stages through its blocks."""

    def __init__(self, variant: Variant, bricks: Bricks, **options: Any):
        super().__init__(variant, bricks, **options)
        for stage, info in enumerate(self.feature_info):
            for i, block in enumerate(getattr(self, info.name)):
                remembered = stage + 1 if i else 0
                block.attn = EMCA(info.channels, remembered, param_dtype=bricks.param_dtype, rngs=bricks.rngs)

    def features(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None
    ) -> dict[str, jax.Array]:
        x, outputs = self._stem(x, valid), {}
        memory, averages = (), squeeze(x, valid)
        for name in STAGES:
            memory += (averages,)
            for block in getattr(self, name):
                x, averages = self.run(block, (x, memory), rngs, valid)
            outputs[name] = x
        return outputs


def with_memory(variant: Variant) -> Variant:
    """The same network of blocks with EMCA."""
    blocks = {BasicBlock: EMCABasicBlock, Bottleneck: EMCABottleneck}
    return dataclasses.replace(variant, block=blocks[variant.block])
