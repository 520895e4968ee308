"""The gated channel transformation, which stands before convolutions instead of at the end of a branch."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.attention.base import scale
from eca_jax.nn.layers import Conv
from eca_jax.nn.norm import widened

EPSILON = 1e-5


class GCT(nnx.Module):
    """Gated channel transformation: x * (1 + tanh(gamma * e / sqrt(mean(e^2) + 1e-5) + beta)).

    The embedding of a channel is e = alpha * sqrt(sum(x^2) + 1e-5), with the sum over its pixels and the mean over the
    channels. Initially alpha is 1, gamma and beta are 0, so the gate is exactly 1 and the module the identity. It has
    three weights a channel. (Yang et al., CVPR 2020; z-x-yang/GCT, PyTorch/GCT.py, mode 'l2'.) It is not the Gaussian
    context transformer, which has the same three letters.

    It works on any number of pixel axes: (b, ..., c) -> the same shape and dtype.
    """

    def __init__(self, channels: int, *, param_dtype=jnp.float32):
        self.alpha = nnx.Param(jnp.ones(channels, param_dtype))
        self.gamma = nnx.Param(jnp.zeros(channels, param_dtype))
        self.beta = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.square(widened(x)).sum(tuple(range(1, x.ndim - 1))) + EPSILON)
        e = self.alpha[...] * norm  # (b, c)
        shared = jnp.sqrt(jnp.square(e).mean(-1, keepdims=True) + EPSILON)
        return scale(x, 1 + jnp.tanh(self.gamma[...] * e / shared + self.beta[...]))


class GCTConv(Conv):
    """`Conv` with a `GCT` on its input, as in the networks of GCT's authors: before every convolution.

    Maps (b, h, w, c) to (b, h, w, features). On ResNet-50 these are 53, the stem's (on the image) and the shortcuts'
    among them, with 3 * 22,531 = 67,593 weights. The authors' PyTorch network has the stride in the first 1x1
    convolution of a bottleneck, ours in the 3x3. Their paper leaves beta out of the weight decay
    (`optim.decay_vectors=False` leaves out alpha, gamma and batch norms as well); with it, as by default here, the
    authors' ResNet-50 later came out better (77.7% against 77.3%).
    """

    def __init__(self, in_features: int, *args: Any, **options: Any):
        super().__init__(in_features, *args, **options)
        self.gct = GCT(in_features, param_dtype=self.param_dtype)

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return super().convolve(self.gct(x), kernel)
