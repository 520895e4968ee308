"""Convolution in the form that is fastest on the platform it is compiled for: the one place that chooses.

XLA:CPU has a fast kernel for convolutions that mix channels over several pixels, and takes it for the others too: for
the gradients of a 1x1 kernel it copies whole activations, transposed, and a depthwise kernel it treats as a dense one.
So on the CPU a 1x1 convolution is a matrix product over the pixels, and a depthwise one a sum of shifted products. TPU
and GPU compile the convolutions that they were always given (`jax.lax.platform_dependent` leaves nothing of the choice).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
Gradients = tuple[jax.Array, jax.Array]
"""Of the activation and of the kernel."""


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel moves: along height and width, and in how many groups of channels."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, *, feature_group_count: int, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of (b, h, w, c_in) with (k, k, c_in / groups, c_out), for `nnx.Conv` to call."""
    height, width, c_in, c_out = kernel.shape
    pointwise = height == width == feature_group_count == 1
    depthwise = c_in == 1 and c_out == feature_group_count
    if not (pointwise or depthwise):
        return lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=feature_group_count, **options)
    (up, down), (left, right) = padding
    window = Window((strides[0], strides[1]), ((up, down), (left, right)), feature_group_count)
    return (_pointwise if pointwise else _depthwise)(x, kernel, window)


def _by_platform(
    cpu: Callable[[jax.Array, jax.Array, Window], jax.Array],
    cpu_gradients: Callable[[jax.Array, jax.Array, jax.Array, Window], Gradients],
) -> Callable[[jax.Array, jax.Array, Window], jax.Array]:
    """These functions on the CPU, a convolution and what autodiff makes of it elsewhere."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def function(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
        return lax.platform_dependent(
            x,
            kernel,
            cpu=functools.partial(cpu, window=window),
            default=functools.partial(_convolution, window=window),
        )

    def forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, Gradients]:
        return function(x, kernel, window), (x, kernel)

    def backward(window: Window, saved: Gradients, dy: jax.Array) -> Gradients:
        return lax.platform_dependent(
            *saved,
            dy,
            cpu=functools.partial(cpu_gradients, window=window),
            default=functools.partial(_convolution_gradients, window=window),
        )

    function.defvjp(forward, backward)
    return function


def _convolution(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, dimension_numbers=LAYOUT, feature_group_count=window.groups
    )


def _convolution_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> Gradients:
    (dx,) = jax.linear_transpose(lambda x: _convolution(x, kernel, window), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _convolution(x, kernel, window), kernel)(dy)
    return dx, dkernel


def _seen(x: jax.Array, row: int, column: int, strides: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """The `size` pixels of (b, h, w, c) that one place of the kernel meets, the first at (row, column)."""
    start = (0, row, column, 0)
    stop = (x.shape[0], row + strides[0] * (size[0] - 1) + 1, column + strides[1] * (size[1] - 1) + 1, x.shape[3])
    return lax.slice(x, start, stop, (1, *strides, 1))


def _product(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    size = tuple((n - 1) // stride + 1 for n, stride in zip(x.shape[1:3], window.strides, strict=True))
    return lax.dot_general(_seen(x, 0, 0, window.strides, size), kernel[0, 0], (((3,), (0,)), ((), ())))


def _product_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> Gradients:
    (dx,) = jax.linear_transpose(lambda x: _product(x, kernel, window), x)(dy)
    x = _seen(x, 0, 0, window.strides, dy.shape[1:3])
    x, dy = (v.reshape(-1, v.shape[-1]) for v in (x, dy))  # (pixels, c)
    if x.shape[1] <= dy.shape[1] or x.shape[0] < x.shape[1]:
        return dx, (x.T @ dy)[None, None]
    # XLA transposes x on its way into the product. Here dy is narrower, and the result small: a barrier keeps XLA from
    # turning this round again, and another from transposing the result once for each of its readers.
    return dx, lax.optimization_barrier(lax.optimization_barrier(dy.T @ x).T)[None, None]


def _shifted_products(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    size = ((x.shape[1] - height) // window.strides[0] + 1, (x.shape[2] - width) // window.strides[1] + 1)
    places = ((i, j) for i in range(height) for j in range(width))
    return functools.reduce(jnp.add, (_seen(x, i, j, window.strides, size) * kernel[i, j, 0] for i, j in places))


def _shifted_products_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> Gradients:
    height, width = kernel.shape[:2]
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    dkernel = [
        jnp.sum(_seen(padded, i, j, window.strides, dy.shape[1:3]) * dy, (0, 1, 2))
        for i in range(height)
        for j in range(width)
    ]
    # Every pixel of x meets the flipped kernel over dy, spread out to the pixels that the strides passed over.
    spread = [
        (k - 1 - low, n + low - (m - 1) * stride - 1, stride - 1)
        for k, n, m, (low, _), stride in zip(
            (height, width), x.shape[1:3], dy.shape[1:3], window.padding, window.strides, strict=True
        )
    ]
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    dx = _shifted_products(dy, jnp.flip(kernel, (0, 1)), Window((1, 1), ((0, 0), (0, 0)), window.groups))
    return dx, jnp.stack(dkernel).reshape(kernel.shape)


_pointwise = _by_platform(_product, _product_gradients)
_depthwise = _by_platform(_shifted_products, _shifted_products_gradients)
