"""Triplet attention: three planes of the activation, a gate for every place of each."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.attention.cbam import PlaneGate, expect_odd
from eca_jax.nn.attention.maps import expect_map
from eca_jax.nn.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class TripletOptions:
    """The options of triplet attention."""

    kernel_size: int = 7
    """Of the three convolutions, odd. The authors published networks with 7 and with 3."""

    def __post_init__(self):
        expect_odd("attention.kernel_size", self.kernel_size)


class TripletAttention(nnx.Module):
    """x (g_cw + g_hc + g_hw) / 3: each gate is sigmoid(BN(conv7x7([max; mean]))) over the axis that it does not name.

    `cw`, `hc` and `hw` are their `PlaneGate`s. The kernel of `cw` lies along width and channels, in this order, which
    is the transpose of the authors'. It takes images, (b, h, w, c), alone.

    Place: after the branch's last batch norm, before the addition; in MobileNetV2 after the projection's. As in the
    authors' ResNet, the convolutions start at `fan_out_normal`, and the weight of the batch norm is 0 in `hw`, whose
    gates so start at exactly 0.5, and 1 in the two others. (It is 1 in all three in their MobileNetV2.) Running
    statistics move by 0.01 a step. Parameters: 3 (2 k^2 + 2) = 300, for any number of channels, 4,800 in ResNet-50.

    Source: Misra et al., Rotate to Attend: Convolutional Triplet Attention Module, WACV 2021;
    github.com/landskape-ai/triplet-attention, triplet_attention.py and MODELS/resnet.py.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        norm: Callable[..., BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        TripletOptions(kernel_size)  # refuses what cannot work

        def gate(initial_scale: float) -> PlaneGate:
            return PlaneGate(kernel_size, initial_scale=initial_scale, norm=norm, param_dtype=param_dtype, rngs=rngs)

        self.cw, self.hc, self.hw = gate(1.0), gate(1.0), gate(0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype.

        Raises:
          EcaJaxError: the activation is not one of images.
        """
        expect_map("triplet", x)
        gates = (self.cw(x, 1) + self.hc(x, 2) + self.hw(x, 3)) / 3
        return x * gates.astype(x.dtype)
