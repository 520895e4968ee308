"""Efficient local attention."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_one_of
from eca_jax.nn.attention.maps import cross_scale, strips
from eca_jax.nn.layers import Conv, uniform_fan_in


@dataclasses.dataclass(frozen=True)
class Size:
    """One of the paper's four sizes."""

    kernel_size: int
    mixed: int
    """Channels in each group of the convolution; 1 is a depthwise one."""
    norm_groups: int


SIZES = {"T": Size(5, 1, 32), "B": Size(7, 1, 16), "S": Size(5, 8, 16), "L": Size(7, 8, 16)}


@dataclasses.dataclass(frozen=True)
class ELAOptions:
    """The options of efficient local attention."""

    size: str = "B"
    """T, B, S or L. T and B convolve every channel alone, S and L eight channels together; kernels are 5, 7, 5, 7."""

    def __post_init__(self):
        expect_one_of("attention.size", self.size, tuple(SIZES))


class ELA(nnx.Module):
    """Efficient local attention: x[h, w] g(row averages)[h] g(column averages)[w], with g = sigmoid(GN(conv1d(.))).

    The averages of all rows, (h, c), and of all columns, (w, c), go through the same convolution along their positions,
    padded with zeros and without bias, and the same group norm.

    No official code is public: this is what third-party implementations have, and the sizes are the paper's. Here it
    stands after the last batch norm of a branch. The kernel starts as PyTorch's default; as two gates near 0.5
    multiply, it starts near 0.25. On ResNet-50, size B has 135,936 parameters. timm's `ela` is another one: a
    convolution and a norm over all channels for each direction, and SiLU before the sigmoid (271,872).

    Source: Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", arXiv:2403.01123, 2024.
    """

    def __init__(self, channels: int, *, size: str = "B", param_dtype=jnp.float32, rngs: nnx.Rngs):
        """Raises an EcaJaxError if the channels cannot be cut into the groups of the norm or the convolution."""
        k, mixed, groups = dataclasses.astuple(SIZES[size])
        if channels % max(mixed, groups):
            raise EcaJaxError(
                f"ela: size {size} has a group norm of {groups} groups, into which {channels} channels cannot be cut; "
                f"expected a multiple of {groups}: another width"
            )
        self.conv = Conv(
            channels,
            channels,
            (k, 1),
            (1, 1),
            padding=((k // 2, k // 2), (0, 0)),
            kernel_dilation=(1, 1),
            feature_group_count=channels // mixed,
            kernel_init=uniform_fan_in(k * mixed),
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = nnx.GroupNorm(
            channels, groups, epsilon=1e-5, use_fast_variance=False, param_dtype=param_dtype, rngs=rngs
        )

    def gate(self, s: jax.Array) -> jax.Array:
        """(b, l, c) averages of rows or columns -> the gates of these."""
        return jax.nn.sigmoid(self.norm(self.conv(s[:, :, None])[:, :, 0]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype, every pixel scaled by the gates of its row and of its column.

        Raises:
          EcaJaxError: x are no images.
        """
        rows, columns = strips("ela", x)
        return cross_scale(x, self.gate(rows), self.gate(columns))
