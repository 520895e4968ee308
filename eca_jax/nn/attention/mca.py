"""MCA: a gate for every channel, every row and every column."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.eca import slide
from eca_jax.nn.attention.maps import expect_map, expect_pixels, mean_and_variance
from eca_jax.nn.layers import uniform_fan_in


def mca_kernel_size(channels: int) -> int:
    """|(log2(channels) - 1) / 1.5| rounded, minus 1 if it is even: 5 for 256, 512 and 1024 channels, 7 for 2048.

    Raises:
      EcaJaxError: nothing is left of the kernel, on 2 or 3 channels.
    """
    size = round(abs((math.log2(channels) - 1) / 1.5))
    size -= size % 2 == 0
    if size < 1:
        raise EcaJaxError(f"mca: its formula has no kernel for {channels} channels; expected at least 4")
    return size


class AxisGate(nnx.Module):
    """sigmoid(conv1d_k(s)) along one axis, s = (0.5 + sigmoid(w1)) mean + (0.5 + sigmoid(w2)) std over the others.

    w starts uniform in (0, 1); the kernel has no bias and PyTorch's default initialisation.
    """

    def __init__(self, kernel_size: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), (2,), param_dtype))
        self.kernel = nnx.Param(uniform_fan_in(kernel_size)(rngs.params(), (kernel_size,), param_dtype))

    def __call__(self, x: jax.Array, axis: int) -> jax.Array:
        """(b, h, w, c) -> gates, 1 in all axes but the first and `axis`, in float32 or wider."""
        others = tuple(i for i in (1, 2, 3) if i != axis)
        mean, variance = mean_and_variance(x, others)
        of_mean, of_std = 0.5 + jax.nn.sigmoid(self.weight[...])
        s = of_mean * mean + of_std * _root(variance, mean)
        return jnp.expand_dims(jax.nn.sigmoid(slide(s, self.kernel[...])), others)


def _root(variance: jax.Array, mean: jax.Array) -> jax.Array:
    """The square root, whose gradient is 0 at 0 instead of infinite (and, times that of the variance, NaN).

    What the rounding of the mean leaves of the variance of a constant counts as 0.
    """
    positive = variance > jnp.square(8 * jnp.finfo(mean.dtype).eps * mean)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


class MCA(nnx.Module):
    """Multidimensional collaborative attention: x (g_h + g_w + g_c) / 3, a gate for every row, column and channel.

    Each is an `AxisGate`: with a kernel of 3 along height and width, and of `mca_kernel_size` along the channels. std
    is the root of the unbiased variance, without an epsilon. In the authors' code, its gradient is therefore NaN where
    a whole channel, row or column is constant, as after a batch norm whose weight is 0. Here the gradient of std is 0
    there: std grows in every direction alike. Everything else is as in the authors' code, where an epsilon would change
    every gate. It takes images, (b, h, w, c), alone; maps of a single pixel are refused (the authors' code gives NaN).

    Place: after the branch's last batch norm, before the addition. The initial gates depend on the random kernels.
    Parameters: 12 + the kernel along the channels, 278 in ResNet-50.

    Source: Yu et al., MCA: Multidimensional collaborative attention in deep convolutional neural networks for image
    recognition, Engineering Applications of Artificial Intelligence, 2023; the public repository, ndsclark/MCANet
    (ImageNet/mca_module.py), is GPL: this is written from the formula.
    """

    def __init__(self, channels: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.h, self.w = (AxisGate(3, param_dtype=param_dtype, rngs=rngs) for _ in range(2))
        self.c = AxisGate(mca_kernel_size(channels), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype.

        Raises:
          EcaJaxError: the activation is not one of images, or its maps have a single pixel.
        """
        expect_map("mca", x)
        expect_pixels("mca", x)
        gates = (self.h(x, 1) + self.w(x, 2) + self.c(x, 3)) / 3
        return x * gates.astype(x.dtype)
