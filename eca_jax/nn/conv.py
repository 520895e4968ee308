"""Convolution in the form that is fastest on the platform it is compiled for: the one place that chooses.

A 1x1 convolution is a matrix product over the pixels. XLA:CPU does not see that: it copies a whole activation, transposed,
for every gradient of such a kernel. So on the CPU it gets the product; TPU and GPU get the convolution that they were
always given, and compile the same program (`jax.lax.platform_dependent` leaves no trace in it).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
Gradients = tuple[jax.Array, jax.Array]
"""Of the activation and of the kernel."""


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` of (b, h, w, c_in) with (k, k, c_in / groups, c_out), for `nnx.Conv` to call."""
    if kernel.shape[:2] == (1, 1) and options["feature_group_count"] == 1:
        return pointwise(x, kernel, tuple(strides))
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """(b, h, w, c_in) with a 1x1 kernel (1, 1, c_in, c_out), not padded."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_product, strides=strides),
        default=functools.partial(_convolution, strides=strides),
    )


def _forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> tuple[jax.Array, Gradients]:
    return pointwise(x, kernel, strides), (x, kernel)


def _backward(strides: tuple[int, int], saved: Gradients, dy: jax.Array) -> Gradients:
    return lax.platform_dependent(
        *saved,
        dy,
        cpu=functools.partial(_product_gradients, strides=strides),
        default=functools.partial(_convolution_gradients, strides=strides),
    )


pointwise.defvjp(_forward, _backward)


def _convolution(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=LAYOUT)


def _convolution_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, strides: tuple[int, int]) -> Gradients:
    """What autodiff makes of it, which is linear in either argument."""
    (dx,) = jax.linear_transpose(lambda x: _convolution(x, kernel, strides), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _convolution(x, kernel, strides), kernel)(dy)
    return dx, dkernel


def _pick(x: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """The pixels that a strided 1x1 kernel sees."""
    return lax.slice(x, (0, 0, 0, 0), x.shape, (1, *strides, 1)) if max(strides) > 1 else x


def _product(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return lax.dot_general(_pick(x, strides), kernel[0, 0], (((3,), (0,)), ((), ())))


def _product_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, strides: tuple[int, int]) -> Gradients:
    (dx,) = jax.linear_transpose(lambda x: _product(x, kernel, strides), x)(dy)
    x, dy = (v.reshape(-1, v.shape[-1]) for v in (_pick(x, strides), dy))
    narrow = x.shape[1] <= dy.shape[1]
    if narrow or x.shape[0] < x.shape[1]:
        return dx, (x.T @ dy)[None, None]
    # XLA transposes x on its way into the product. Here dy is narrower, and the result small: a barrier keeps XLA from
    # turning this round again, and another from transposing the result once for each of its readers.
    return dx, lax.optimization_barrier(lax.optimization_barrier(dy.T @ x).T)[None, None]
