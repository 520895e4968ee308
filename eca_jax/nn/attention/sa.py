"""Shuffle attention (SA-Net)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least
from eca_jax.nn.norm import moments, widened

EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class SAOptions:
    """The options of shuffle attention."""

    groups: int = 64
    """Into how many groups the channels are cut; half of each has a gate of its average, half a gate of its pixels.
    Another number than 64 is not the authors' setting."""

    def __post_init__(self):
        expect_at_least("attention.groups", self.groups)


class SA(nnx.Module):
    """Shuffle attention: groups of channels, a gate for each channel in one half and for each pixel in the other.

    In every group, x0 is the first half of the channels and x1 the second:
    y0 = x0 sigmoid(cw mean(x0) + cb), y1 = x1 sigmoid(sw GN(x1) + sb), where GN normalises each channel over its pixels
    and has a weight and a bias. All groups share the six vectors of channels / (2 groups) values. Then the channels are
    shuffled, one of the lower half and one of the upper in turn: 0, c / 2, 1, c / 2 + 1, ...

    It stands after the last batch norm of a branch, as the authors' does. cw and sw start at 0, cb and sb at 1, so all
    gates start at sigmoid(1) = 0.731. On ResNet-50 it has 708 parameters, which is what the authors' code has; the
    paper says 300. With 64 groups the channels must be a multiple of 128, which the narrow stages of ResNet-18,
    ResNet-34 and MobileNetV2 are not.

    Source: Zhang and Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021;
    github.com/wofmanaf/SA-Net, models/sa_resnet.py.
    """

    def __init__(self, channels: int, *, groups: int = 64, param_dtype=jnp.float32, rngs: nnx.Rngs | None = None):
        """Nothing in it is random. Raises an EcaJaxError if the channels cannot be cut into 2 * groups parts."""
        if channels % (2 * groups):
            fits = [g for g in range(1, groups) if channels % (2 * g) == 0]
            fewer = f", or attention.groups {fits[-1]} (not the authors' setting)" if fits else ""
            raise EcaJaxError(
                f"sa: {channels} channels cannot be cut into {groups} groups of two halves; expected a multiple of "
                f"{2 * groups}: a wider network{fewer}"
            )
        zeros, ones = (full((channels // (2 * groups),), param_dtype) for full in (jnp.zeros, jnp.ones))
        self.groups = groups
        self.channel_weight, self.channel_bias = nnx.Param(zeros), nnx.Param(ones)
        self.pixel_weight, self.pixel_bias = nnx.Param(zeros), nnx.Param(ones)
        self.norm_weight, self.norm_bias = nnx.Param(ones), nnx.Param(zeros)

    def _affine(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(a, b), (b, c) each: the gates of x (b, ..., c) are sigmoid(a x + b), where a is 0 in every first half."""
        halves = (x.shape[0], self.groups, 2, -1)
        mean, square = (m.reshape(halves) for m in moments(x))
        variance = jnp.maximum(square - jnp.square(mean), 0.0)[:, :, 1]
        a = self.pixel_weight[...] * self.norm_weight[...] * jax.lax.rsqrt(variance + EPSILON)
        b = self.pixel_weight[...] * self.norm_bias[...] + self.pixel_bias[...] - a * mean[:, :, 1]
        first = self.channel_weight[...] * mean[:, :, 0] + self.channel_bias[...]
        flat = (x.shape[0], -1)
        return jnp.stack([jnp.zeros_like(a), a], 2).reshape(flat), jnp.stack([first, b], 2).reshape(flat)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> the same shape and dtype: gated and shuffled."""
        wide = widened(x)
        a, b = (jnp.expand_dims(t, range(1, x.ndim - 1)) for t in self._affine(wide))
        y = (wide * jax.nn.sigmoid(wide * a + b)).astype(x.dtype)
        return jnp.swapaxes(y.reshape(*x.shape[:-1], 2, -1), -1, -2).reshape(x.shape)
