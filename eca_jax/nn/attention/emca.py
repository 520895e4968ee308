"""EMCA: channel attention that also looks at the ends of the earlier stages."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.attention.base import SUM_OF_PRODUCTS, Informed
from eca_jax.nn.attention.eca import adaptive_kernel_size, slide
from eca_jax.nn.layers import uniform_fan_in


class EMCA(nnx.Module):
    """Efficient multi-scale channel attention, in its form with ECA. Let s be the averages of the last batch norm.

    The local gate is l = sigmoid(conv_k(s)), a kernel of k weights over the channels as in ECA. In the first block of
    a stage the output is x * (1 + l). In the others there is a memory: the averages of the stem's output, after its
    pooling, and those s of the last block of every earlier stage. Each of them is repeated along the channels up to as
    many as s has. With weights w, v of all channels:

        m = relu(w_1 memory_1 + ... + w_S memory_S + w_{S+1} s)        g = sigmoid(conv_k(m))
        r = sigmoid(v_1 l + v_2 g)                                      output x * (1 + r)

    k is the adaptive size, no layer has a bias, and initial weights are PyTorch's: gates start around 1.5. (Bakr et al.
    2022, "EMCA: Efficient Multi-Scale Channel Attention Module"; eslambakr/EMCA, Code/eca_resnet_multi_scale.py.)

    A block with a memory has 2k + S + 1 + 2 weights, the first of a stage k: 217 on ResNet-50. The authors' code counts
    261: its first blocks also make the weights of the others (44) and never use them.
    """

    def __init__(self, channels: int, remembered: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        """`remembered`: the length S of the memory, 0 in the first block of a stage."""
        k = adaptive_kernel_size(channels)

        def kernel(size: int) -> nnx.Param:
            return nnx.Param(uniform_fan_in(size)(rngs.params(), (size,), param_dtype))

        self.remembered = remembered
        self.local = kernel(k)
        if remembered:
            self.gather = kernel(remembered + 1)
            self.shared = kernel(k)
            self.fuse = kernel(2)

    def gate(self, s: jax.Array, memory: Sequence[jax.Array]) -> jax.Array:
        """Averages (b, c), and those of earlier stages (b, c_i) each -> gates (b, c) between 1 and 2."""
        local = jax.nn.sigmoid(slide(s, self.local[...]))
        if not self.remembered:
            return 1 + local
        seen = [*(repeated(m, s.shape[1]) for m in memory), s]
        shared = jax.nn.sigmoid(slide(jax.nn.relu(weighted(self.gather[...], seen)), self.shared[...]))
        return 1 + jax.nn.sigmoid(weighted(self.fuse[...], [local, shared]))

    def after(self, memory: Sequence[jax.Array]) -> Informed:
        """The gate at the block's end; its `averages` are what the next stages may remember."""
        return Informed(lambda s: self.gate(s, memory))


@jax.named_scope(SUM_OF_PRODUCTS)
def weighted(weights: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of n arrays, each times one of the n weights."""
    return functools.reduce(jnp.add, (w * a for w, a in zip(weights, arrays, strict=True)))


def repeated(s: jax.Array, channels: int) -> jax.Array:
    """(b, c) -> (b, channels): the channels over and over, the last time as many as there is room for."""
    return jnp.concatenate([s] * math.ceil(channels / s.shape[1]), axis=1)[:, :channels]
