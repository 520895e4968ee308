"""Coordinate attention."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import expect_at_least
from eca_jax.nn.attention.maps import cross_scale, strips
from eca_jax.nn.layers import linear
from eca_jax.nn.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class CoordinateOptions:
    """The options of coordinate attention. timm's CoordAttn is reduction 24, rounded, without biases."""

    reduction: int = 32
    """The hidden layer has channels / reduction channels, at least 8."""
    rounded: bool = False
    """The hidden layer has the nearest multiple of 8 instead of the next whole number below."""
    bias: bool = True
    """Biases in the three layers."""

    def __post_init__(self):
        expect_at_least("attention.reduction", self.reduction)


def hidden_channels(channels: int, reduction: int, *, rounded: bool) -> int:
    """max(8, channels / reduction), rounded down, or to the nearest multiple of 8 (as timm's make_divisible)."""
    return max(8, (channels + 4 * reduction) // (8 * reduction) * 8 if rounded else channels // reduction)


class CoordinateAttention(nnx.Module):
    """Coordinate attention: x[h, w] sigmoid(Wh z[h]) sigmoid(Ww z[w]), with z = hswish(BN(W1 s)).

    s are the averages of all rows and of all columns, h + w vectors of c values, so that the gates know where along
    the height and along the width something is. They share W1, which reduces the channels, and the batch norm.

    The authors have it in MobileNetV2 on the expanded channels, after the depthwise convolution, and no ResNet. Here it
    stands after the last batch norm of a branch, as the other attentions do. All layers have biases and PyTorch's
    default initialisation; as two gates multiply, it starts near 0.25. On ResNet-50 it has 1,917,832 parameters, and
    2,526,432 with timm's settings (reduction 24, rounded, no biases).

    Source: Hou et al., "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021;
    github.com/houqb/CoordAttention, coordatt.py; timm, layers/coord_attn.py.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        rounded: bool = False,
        bias: bool = True,
        norm: Callable[..., BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_channels(channels, reduction, rounded=rounded)
        layer = functools.partial(linear, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.fc1, self.norm = layer(channels, hidden), norm(hidden)
        self.fc_h, self.fc_w = layer(hidden, channels), layer(hidden, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype, every pixel scaled by the gates of its row and of its column.

        Raises:
          EcaJaxError: x are no images.
        """
        s = jnp.concatenate(strips("coordinate", x), axis=1)  # (b, h + w, c)
        z = jax.nn.hard_swish(self.norm(self.fc1(s)))
        rows, columns = jnp.split(z, [x.shape[1]], axis=1)
        return cross_scale(x, jax.nn.sigmoid(self.fc_h(rows)), jax.nn.sigmoid(self.fc_w(columns)))
