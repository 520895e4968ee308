"""Efficient multi-scale attention."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least
from eca_jax.nn.attention.maps import expect_map, strips
from eca_jax.nn.conv import LAYOUT, convolve
from eca_jax.nn.layers import linear, uniform_fan_in
from eca_jax.nn.norm import moments, widened

EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class EMAOptions:
    """The options of efficient multi-scale attention."""

    factor: int = 32
    """Into how many groups the channels are cut; the authors have 32."""

    def __post_init__(self):
        expect_at_least("attention.factor", self.factor)


class EMA(nnx.Module):
    """Efficient multi-scale attention: two views of every group of channels, each weighted by the other's channels.

    Within each of the groups, of n = channels / factor channels, which share all parameters:
    x1 = GN(x sigmoid(W r[h]) sigmoid(W s[w])), where r and s are the averages of rows and columns, W is n x n with a
    bias, and GN normalises each channel over its pixels; x2 = conv3x3(x), with a bias;
    y = x sigmoid(softmax(mean x1) . x2 + softmax(mean x2) . x1): a gate for each pixel and group.

    In the authors' MobileNetV2 it stands before the projection, in blocks with more than 144 channels there; their
    ResNet is not public. Here it stands after the last batch norm of a branch, as the other attentions do. All layers
    start as PyTorch's default; the gates start near 0.5. On ResNet-50 it has 198,368 parameters.

    Source: Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP 2023;
    github.com/YOLOonMe/EMA-attention-module, EMA_attention_module.
    """

    def __init__(self, channels: int, *, factor: int = 32, param_dtype=jnp.float32, rngs: nnx.Rngs):
        """Raises an EcaJaxError if the channels cannot be cut into `factor` groups."""
        if channels % factor:
            fits = max(f for f in range(1, factor) if channels % f == 0)
            raise EcaJaxError(
                f"ema: {channels} channels cannot be cut into {factor} groups; expected a multiple of {factor}: "
                f"another width, or attention.factor {fits} (not the authors' setting)"
            )
        n = channels // factor
        init = uniform_fan_in(9 * n)
        self.factor = factor
        self.fc = linear(n, n, param_dtype=param_dtype, rngs=rngs)
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, n, n), param_dtype))
        self.bias = nnx.Param(init(rngs.params(), (n,), param_dtype))
        self.norm_weight = nnx.Param(jnp.ones(n, param_dtype))
        self.norm_bias = nnx.Param(jnp.zeros(n, param_dtype))
        self.deterministic = False  # set by nnx.Module.train() and .eval()

    def _grouped(self, s: jax.Array) -> jax.Array:
        """(..., c) -> (..., groups, n)."""
        return s.reshape(*s.shape[:-1], self.factor, -1)

    def _crossed(self, x: jax.Array) -> jax.Array:
        """x1 before GN: (b, h, w, c), float32 or wider."""
        rows, columns = (jax.nn.sigmoid(self.fc(self._grouped(s))).reshape(s.shape) for s in strips("ema", x))
        return widened(x) * rows[:, :, None] * columns[:, None]

    def _normalised(self, x: jax.Array) -> jax.Array:
        """GN of (b, h, w, c)."""
        mean, square = map(self._grouped, moments(x))
        a = self.norm_weight[...] * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + EPSILON)
        b = self.norm_bias[...] - a * mean
        return x * a.reshape(x.shape[0], 1, 1, -1) + b.reshape(x.shape[0], 1, 1, -1)

    def _average(self, x: jax.Array) -> jax.Array:
        """The average of x2, (b, groups, n), from the sums of the pixels that each place of the kernel meets."""
        h, w = x.shape[1:3]
        x = widened(x)
        rows = jnp.sum(x, 2)
        rows = jnp.stack([rows - x[:, :, -1], rows, rows - x[:, :, 0]], 1)  # (b, 3, h, c)
        sums = jnp.sum(rows, 2)
        sums = jnp.stack([sums - rows[:, :, -1], sums, sums - rows[:, :, 0]], 1)  # (b, 3, 3, c)
        kernel, bias = self.kernel[...], self.bias[...]
        return jnp.einsum("bijgn,ijnm->bgm", self._grouped(sums), kernel, precision="highest") / (h * w) + bias

    def _gates(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h, w, groups), float32 or wider.

        Convolution and product with the weights are linear, so x2 itself is not made. The weights that it meets are the
        same for all images, as the average of x1 is GN's bias: multiplied into the kernel, they leave a depthwise one.
        """
        weights = jax.nn.softmax(self.norm_bias[...])
        kernel = jnp.tile(self.kernel[...] @ weights, self.factor)[:, :, None]  # (3, 3, 1, c)
        y = convolve(
            x,
            kernel.astype(x.dtype),
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=LAYOUT,
            feature_group_count=x.shape[-1],
            training=not self.deterministic,
        )
        others = jax.nn.softmax(self._average(x)).reshape(x.shape[0], 1, 1, -1)
        y = widened(y) + others * self._normalised(self._crossed(x))
        return jax.nn.sigmoid(jnp.sum(self._grouped(y), -1) + jnp.dot(weights, self.bias[...]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype, every pixel of every group scaled by its gate.

        Raises:
          EcaJaxError: x are no images.
        """
        expect_map("ema", x)
        return (self._grouped(x) * self._gates(x)[..., None].astype(x.dtype)).reshape(x.shape)
