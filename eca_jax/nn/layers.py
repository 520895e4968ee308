"""Initialisers of PyTorch and of the authors, and the layers that use them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError
from eca_jax.nn.conv import convolve


def fan_out_normal(key, shape, dtype=jnp.float32, out_sharding=None):
    """Normal with std sqrt(2 / (k * k * c_out)): ECANet, models/eca_resnet.py; PyTorch's kaiming_normal_ for fan_out.

    The numbers are those of `jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")`, to a rounding.
    """
    *kernel, _, c_out = shape
    std = jnp.sqrt(jnp.array(2.0 / (math.prod(kernel) * c_out), dtype))
    return row(jax.random.normal, key, shape, dtype, out_sharding) * std


def rectified(x: jax.Array) -> jax.Array:
    """max(x, 0).

    On the CPU it is written as a clamp, whose bounds are two plain numbers. There, the zero of `max` would become an
    array as large as the activation, and every matrix product that ends with ReLU would read it from memory.
    """
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), jnp.inf, x.dtype)),
        default=jax.nn.relu,
    )


class Conv(nnx.Conv):
    """`nnx.Conv` without bias, (b, h, w, c_in) -> (b, h, w, c_out), that can also be called with another kernel.

    `kernel` is (k, k, c_in / groups, c_out).
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options, use_bias=False)
        self.deterministic = False  # set by nnx.Module.train() and .eval()

    def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
        return self.convolve(inputs, self.kernel[...])

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """This convolution with `kernel` in place of its own kernel."""
        dtype = self.dtype or x.dtype
        return convolve(
            x.astype(dtype),
            kernel.astype(dtype),
            self.strides,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
            rhs_dilation=self.kernel_dilation,
            training=not self.deterministic,
        )


class BiasedConv(Conv):
    """`Conv` with a bias, which starts at zero: (b, h, w, c_in) -> (b, h, w, c_out)."""

    def __init__(self, in_features: int, out_features: int, *args: Any, **options: Any):
        super().__init__(in_features, out_features, *args, **options)
        self.bias: nnx.Param = nnx.Param(jnp.zeros(out_features, self.param_dtype))  # pyright: ignore[reportIncompatibleVariableOverride]

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = super().convolve(x, kernel)
        return y + self.bias[...].astype(y.dtype)


class DoublingConv(nnx.Module):
    """A transposed 2x2 convolution of stride 2 with a bias: (b, h, w, c_in) -> (b, 2 h, 2 w, c_out).

    Its windows do not overlap, so every pixel becomes four by one matrix product. `kernel` is (2, 2, c_in, c_out).
    """

    def __init__(self, c_in: int, c_out: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_out_normal(rngs.params(), (2, 2, c_in, c_out), param_dtype))
        self.bias = nnx.Param(jnp.zeros(c_out, param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = (weights[...].astype(self.dtype) for weights in (self.kernel, self.bias))
        y = jnp.einsum("bhwi,klio->bhkwlo", x.astype(self.dtype), kernel) + bias
        b, h, _, w, _, c = y.shape
        return y.reshape(b, 2 * h, 2 * w, c)


class Dropout(nnx.Dropout):
    """`nnx.Dropout` whose error says in one line what is missing."""

    def __call__(self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: Any = None) -> jax.Array:
        off = self.deterministic if deterministic is None else deterministic
        if self.rate > 0 and not off and rngs is None and self.rngs is None:
            raise EcaJaxError(
                f"model: dropout or stochastic depth of {self.rate:g} needs random numbers in training: "
                "call model(x, rngs=nnx.Rngs(dropout=0)), or model.eval() first"
            )
        return super().__call__(inputs, deterministic=deterministic, rngs=rngs)


def uniform_fan_in(fan_in: int) -> jax.nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for the weights and biases of Linear and Conv1d."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return row(functools.partial(jax.random.uniform, minval=-bound, maxval=bound), key, shape, dtype, out_sharding)

    return init


def row(draw: Callable, key, shape, dtype, out_sharding) -> jax.Array:
    """The numbers of `draw(key, shape, dtype)`, drawn as one row and then reshaped.

    For each shape with several dimensions, XLA:CPU compiles the generator for up to a second; for a row it needs a
    sixth of that.
    """
    return draw(key, (math.prod(shape),), dtype).reshape(shape, out_sharding=out_sharding)


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
