"""Convolutions, each in the form that is fastest on the platform for which it is compiled.

XLA:CPU is fast for convolutions that mix channels over several pixels, but slow for three other kinds. For the
gradients of a 1x1 kernel it copies and transposes whole activations, it treats a depthwise kernel as a dense one, and
where the output has 2x2 pixels or fewer, it takes 3 to 70 times as long as for the same arithmetic elsewhere. So on the
CPU, a 1x1 convolution is written as a matrix product over the pixels, a depthwise one as a sum of shifted products, and
one with a tiny output as the product of a matrix of patches and the kernel.
TPU and GPU compile ordinary convolutions; `jax.lax.platform_dependent` leaves no trace in their programs.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eca_jax.nn.derivatives import Arrays, differentiable

LAYOUT = ("NHWC", "HWIO", "NHWC")
NO_PADDING = ((0, 0), (0, 0))
TINY = 4
"""Pixels of an output for which the product of patches is faster on the CPU."""
Gradients = tuple[jax.Array, jax.Array]
"""The gradients of the activation and of the kernel."""


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel moves: along height and width, and in how many groups of channels.

    `dilation` is the step from one of its places to the next, in pixels.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    dilation: tuple[int, int] = (1, 1)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Any,
    padding: Any,
    *,
    feature_group_count: int,
    rhs_dilation: Any = (1, 1),
    training: bool = True,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of (b, h, w, c_in) with (k, k, c_in / groups, c_out).

    Some kinds have a form of their own on the CPU. With `training`, the gradients of those are written by hand;
    otherwise autodiff makes them.
    """
    (up, down), (left, right) = padding
    dilation = (rhs_dilation[0], rhs_dilation[1])
    window = Window((strides[0], strides[1]), ((up, down), (left, right)), feature_group_count, dilation)
    on_cpu = _form(x, kernel, window)
    if on_cpu is None:
        options |= {"feature_group_count": feature_group_count, "rhs_dilation": rhs_dilation}
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return (_by_hand if training else _by_platform)(x, kernel, window, on_cpu)


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to compute a convolution and its gradients."""

    output: Callable[[jax.Array, jax.Array, Window], jax.Array]
    gradients: Callable[[jax.Array, jax.Array, jax.Array, Window], Gradients]


def _form(x: jax.Array, kernel: jax.Array, window: Window) -> Form | None:
    """What the CPU computes instead of the convolution; None where it is fast for that."""
    height, width, c_in, c_out = kernel.shape
    if height == width == window.groups == 1:
        return POINTWISE
    if c_in == 1 and c_out == window.groups:
        return DEPTHWISE
    return PATCHES if window.groups == 1 and math.prod(_size(x, kernel, window)) <= TINY else None


def _by_platform(x: jax.Array, kernel: jax.Array, window: Window, on_cpu: Form) -> jax.Array:
    """The form `on_cpu` on the CPU, an ordinary convolution elsewhere."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: on_cpu.output(x, kernel, window),
        default=lambda x, kernel: _convolution(x, kernel, window),
    )


def _by_hand(x: jax.Array, kernel: jax.Array, window: Window, on_cpu: Form) -> jax.Array:
    """As `_by_platform`, with the gradients of the form on the CPU, and autodiff's gradients elsewhere."""

    def output(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _by_platform(x, kernel, window, on_cpu)

    def tangent(saved: Arrays, tangents: Arrays) -> Arrays:
        return (jax.jvp(output, tuple(saved), tuple(tangents))[1],)

    def gradients(saved: Arrays, dy: Arrays) -> Gradients:
        return lax.platform_dependent(
            *saved,
            *dy,
            cpu=lambda x, kernel, dy: on_cpu.gradients(x, kernel, dy, window),
            default=lambda x, kernel, dy: _convolution_gradients(x, kernel, dy, window),
        )

    return differentiable(output, lambda y, *saved: saved, tangent, gradients, x, kernel)


def _convolution(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=window.groups,
    )


def _convolution_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> Gradients:
    (dx,) = jax.linear_transpose(lambda x: _convolution(x, kernel, window), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _convolution(x, kernel, window), kernel)(dy)
    return dx, dkernel


def _seen(x: jax.Array, row: int, column: int, strides: tuple[int, int], size: Sequence[int]) -> jax.Array:
    """The `size` pixels of (b, h, w, c) that meet one weight of the kernel; the first is at (row, column)."""
    start = (0, row, column, 0)
    stop = (x.shape[0], row + strides[0] * (size[0] - 1) + 1, column + strides[1] * (size[1] - 1) + 1, x.shape[3])
    return lax.slice(x, start, stop, (1, *strides, 1))


def _product(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    size = [(n - 1) // stride + 1 for n, stride in zip(x.shape[1:3], window.strides, strict=True)]
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


def _places(kernel: jax.Array, window: Window) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Every place (i, j) of the kernel, in reading order, and the pixel of the first window that it meets."""
    down, right = window.dilation
    for i, j in itertools.product(*map(range, kernel.shape[:2])):
        yield (i, j), (i * down, j * right)


def _reach(kernel: jax.Array, window: Window) -> list[int]:
    """Pixels from the first place of the kernel to its last, down and to the right."""
    return [(k - 1) * d for k, d in zip(kernel.shape[:2], window.dilation, strict=True)]


def _size(x: jax.Array, kernel: jax.Array, window: Window) -> list[int]:
    """Height and width of the output."""
    sides = zip(x.shape[1:3], window.padding, _reach(kernel, window), window.strides, strict=True)
    return [(n + sum(pads) - reach - 1) // stride + 1 for n, pads, reach, stride in sides]


def _shifted(x: jax.Array, kernel: jax.Array, window: Window) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Every place (i, j) of the kernel, and the pixels that it meets, (b, rows, columns, c_in)."""
    size = _size(x, kernel, window)
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    for place, pixel in _places(kernel, window):
        yield place, _seen(padded, *pixel, window.strides, size)


def _shifted_products(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return functools.reduce(jnp.add, (seen * kernel[i, j, 0] for (i, j), seen in _shifted(x, kernel, window)))


def _shifted_products_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> Gradients:
    dkernel = [jnp.sum(seen * dy, (0, 1, 2)) for _, seen in _shifted(x, kernel, window)]
    # Every pixel of x meets the flipped kernel over dy, spread out to the pixels that the strides passed over.
    spread = [
        (reach - low, n + low - (m - 1) * stride - 1, stride - 1)
        for reach, n, m, (low, _), stride in zip(
            _reach(kernel, window), x.shape[1:3], dy.shape[1:3], window.padding, window.strides, strict=True
        )
    ]
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    dx = _shifted_products(dy, jnp.flip(kernel, (0, 1)), Window((1, 1), NO_PADDING, window.groups, window.dilation))
    return dx, jnp.stack(dkernel).reshape(kernel.shape)


def _patches_product(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    patches = jnp.concatenate([seen for _, seen in _shifted(x, kernel, window)], axis=3)
    return lax.dot_general(patches, kernel.reshape(-1, kernel.shape[3]), (((3,), (0,)), ((), ())))


def _patches_product_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> Gradients:
    (dx,) = jax.linear_transpose(lambda x: _patches_product(x, kernel, window), x)(dy)
    (dkernel,) = jax.linear_transpose(lambda kernel: _patches_product(x, kernel, window), kernel)(dy)
    return dx, dkernel


POINTWISE = Form(_product, _product_gradients)
DEPTHWISE = Form(_shifted_products, _shifted_products_gradients)
PATCHES = Form(_patches_product, _patches_product_gradients)
