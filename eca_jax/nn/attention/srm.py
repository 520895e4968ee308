"""SRM: the style of a channel, its mean and its deviation, decides its gate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.attention.base import scale
from eca_jax.nn.attention.maps import expect_pixels, mean_and_variance
from eca_jax.nn.norm import BatchNorm


class SRM(nnx.Module):
    """Style-based recalibration: sigmoid(BN(w1 mean + w2 std)), two weights for every channel.

    std is the root of the unbiased variance over the pixels + 1e-5; the batch norm takes its statistics over the
    examples. In training, a batch (or a statistics group) of one example has no variance: its gates are sigmoid(bias),
    whatever the image. Any number of pixel axes; maps of a single pixel are refused (the authors' code gives NaN).

    Place: after the branch's last batch norm, before the addition. The weights start at 0, so every gate starts at
    exactly 0.5. Parameters: 2 c, and 2 c of the batch norm, 60,416 in ResNet-50. The authors train them without weight
    decay; here they have that of all other parameters.

    Source: Lee et al., SRM: A Style-based Recalibration Module for Convolutional Neural Networks, ICCV 2019;
    github.com/hyunjaelee410/style-based-recalibration-module, models/recalibration_modules.py.
    """

    def __init__(
        self, channels: int, *, norm: Callable[..., BatchNorm] = BatchNorm, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.cfc = nnx.Param(jnp.zeros((2, channels), param_dtype))
        self.bn = norm(channels, dtype=param_dtype, param_dtype=param_dtype)

    def gates(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> (b, c), float32 or wider.

        Raises:
          EcaJaxError: the maps have a single pixel.
        """
        expect_pixels("srm", x)
        mean, variance = mean_and_variance(x, tuple(range(1, x.ndim - 1)))
        of_mean, of_std = self.cfc[...]
        return jax.nn.sigmoid(self.bn(mean * of_mean + jnp.sqrt(variance + 1e-5) * of_std))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> the same shape and dtype, every channel scaled by its gate; as `gates`."""
        return scale(x, self.gates(x))
