"""Initialisers of PyTorch and of the authors, and the layers that use them."""

import jax
import jax.numpy as jnp
from flax import nnx

# Normal with std sqrt(2 / (k * k * c_out)): ECANet, models/eca_resnet.py; PyTorch's kaiming_normal_(mode="fan_out").
fan_out_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nnx.Conv):
    """`nnx.Conv` without bias, (b, h, w, c_in) -> (b, h, w, c_out), that can be called with other weights than its own.

    `kernel` is (k, k, c_in / groups, c_out).
    """

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """What this convolution is with `kernel` in the place of its own."""
        dtype = self.dtype or x.dtype
        return self.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            self.strides,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
        )


def uniform_fan_in(fan_in: int) -> jax.nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in): what PyTorch gives to the weights and biases of Linear and Conv1d by default."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def linear(c_in: int, c_out: int, *, use_bias: bool = True, dtype=None, param_dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with PyTorch's default initialisation."""
    init = uniform_fan_in(c_in)
    return nnx.Linear(
        c_in,
        c_out,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
