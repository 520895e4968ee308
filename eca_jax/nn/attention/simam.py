"""SimAM: a gate for every value of the activation, without parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import expect_positive
from eca_jax.nn.attention.maps import expect_pixels, mean_and_variance
from eca_jax.nn.norm import widened


@dataclasses.dataclass(frozen=True)
class SimAMOptions:
    """The options of SimAM."""

    lam: float = 1e-4
    """Is added to the variance. 1e-4 is the default of the authors' module; their commands for ImageNet have 0.1."""

    def __post_init__(self):
        expect_positive("attention.lam", self.lam)


class SimAM(nnx.Module):
    """x sigmoid((x - mean)^2 / (4 (variance + lam)) + 0.5): what differs from its channel's mean gets a larger gate.

    Mean and (unbiased) variance are those of the channel over the pixels. Any number of pixel axes; maps of a single
    pixel are refused (the authors' code gives NaN).

    Place: here after the branch's last batch norm, before the addition, where all attentions stand. The authors have it
    elsewhere: after the second convolution of a block and before its batch norm. The gates are 0.622 where x is its
    channel's mean, larger elsewhere, from the first step on. No parameters.

    Source: Yang et al., SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks, ICML 2021;
    github.com/ZjjConan/SimAM, networks/attentions/simam_module.py.

    Example:
      >>> import jax.numpy as jnp
      >>> from eca_jax.nn.attention import SimAM
      >>> from flax import nnx
      >>> SimAM(64, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 64)))[0, 0, 0, 0]
      Array(0.62..., dtype=float32)
    """

    def __init__(self, channels: int, *, lam: float = 1e-4, rngs: nnx.Rngs):
        SimAMOptions(lam)  # refuses what cannot work
        self.lam = lam

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> the same shape and dtype.

        Raises:
          EcaJaxError: the maps have a single pixel.
        """
        expect_pixels("simam", x)
        axes = tuple(range(1, x.ndim - 1))
        mean, variance = (jnp.expand_dims(t, axes) for t in mean_and_variance(x, axes))
        energy = jnp.square(widened(x) - mean) / (4 * (variance + self.lam)) + 0.5
        return x * jax.nn.sigmoid(energy).astype(x.dtype)
