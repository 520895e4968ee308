"""The stem's max pool, with a gradient that is fast on every platform.

XLA:CPU computes the gradient of a max pool one element at a time. In a training step of ResNet-50, that took as long as
three of its 3x3 convolutions. So on the CPU, the gradient is written as nine comparisons; TPU and GPU keep XLA's.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from eca_jax.nn.derivatives import Arrays, differentiable

WINDOW: dict[str, Any] = {
    "window_dimensions": (1, 3, 3, 1),
    "window_strides": (1, 2, 2, 1),
    "padding": ((0, 0), (1, 1), (1, 1), (0, 0)),
}
WINDOWS_OVER = {0: ((1, 0),), 1: ((2, 0), (0, 1))}
"""Parity of a row r -> for each window that contains it: the row's place in it, and the window's number - r // 2."""


def max_pool(x: jax.Array, *, training: bool = True) -> jax.Array:
    """3x3 of stride 2, padded by 1 on every side: (b, h, w, c) -> (b, ceil(h / 2), ceil(w / 2), c).

    As in PyTorch, the gradient goes to the first of several equal maxima of a window. With `training` the gradient is
    the faster one; otherwise autodiff makes it, also on the CPU.
    """
    if not training:
        return _max_pool(x)
    # Which pixel is the maximum does not change from here to a point nearby.
    return differentiable(_max_pool, lambda y, x: (lax.stop_gradient(x),), _tangent, _gradients, x)


def _max_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, **WINDOW)


def _tangent(saved: Arrays, tangents: Arrays) -> Arrays:
    return (jax.jvp(_max_pool, tuple(saved), tuple(tangents))[1],)


def _gradients(saved: Arrays, dy: Arrays) -> Arrays:
    return (lax.platform_dependent(*saved, *dy, cpu=_compare, default=_select_and_scatter),)


def _select_and_scatter(x: jax.Array, dy: jax.Array) -> jax.Array:
    # What autodiff makes of `_max_pool`, without computing that once more.
    return primitives.select_and_scatter_add_p.bind(dy, x, select_prim=primitives.ge_p, **WINDOW)


def _compare(x: jax.Array, dy: jax.Array) -> jax.Array:
    (_, h, w, c), (b, rows, columns, _) = x.shape, dy.shape
    y = _max_pool(x)
    padded = jnp.pad(x, ((0, 0), (1, 2 * rows - h), (1, 2 * columns - w), (0, 0)), constant_values=-jnp.inf)
    place = jnp.full(y.shape, 8, jnp.int8)  # of the first maximum in its window, in reading order
    for k in reversed(range(8)):
        i, j = divmod(k, 3)
        place = jnp.where(padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] == y, jnp.int8(k), place)

    # One more window at the end, which no pixel wins, so that every pixel of a parity is in as many.
    border = ((0, 0), (0, 1), (0, 1), (0, 0))
    place, dy = lax.optimization_barrier((jnp.pad(place, border, constant_values=-1), jnp.pad(dy, border)))

    def pixels(row_parity: int, column_parity: int) -> jax.Array:
        """(b, rows, columns, c): the gradient at every second row and column."""
        total = jnp.zeros((), dy.dtype)
        for i, down in WINDOWS_OVER[row_parity]:
            for j, right in WINDOWS_OVER[column_parity]:
                window = (slice(None), slice(down, down + rows), slice(right, right + columns))
                total += jnp.where(place[window] == 3 * i + j, dy[window], 0)
        return total

    dx = jnp.stack([jnp.stack([pixels(i, j) for j in (0, 1)], 3) for i in (0, 1)], 2)
    return dx.reshape(b, 2 * rows, 2 * columns, c)[:, :h, :w]
