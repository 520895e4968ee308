"""What several attentions need of an activation's maps: checks of their shape, statistics, averages of strips."""

import math

import jax
import jax.numpy as jnp

from eca_jax.errors import EcaJaxError
from eca_jax.nn.derivatives import differentiable
from eca_jax.nn.norm import widened


def expect_map(name: str, x: jax.Array) -> tuple[int, int]:
    """(height, width) of (b, h, w, c); `name` is the kind of the attention.

    Raises:
      EcaJaxError: there is another number of pixel axes.
    """
    if x.ndim != 4:
        raise EcaJaxError(
            f"{name}: expected the activation of images, (b, h, w, c), got the shape {x.shape}; "
            "use an attention that takes any number of pixel axes, such as eca or srm"
        )
    return x.shape[1], x.shape[2]


def expect_pixels(name: str, x: jax.Array) -> None:
    """Refuses maps of a single pixel, which have no variance; `name` is the kind of the attention."""
    if math.prod(x.shape[1:-1]) < 2:
        raise EcaJaxError(
            f"{name}: a map of {' x '.join(map(str, x.shape[1:-1]))} has no variance; expected at least 2 pixels: "
            "use larger images (a small stem leaves an eighth of their side in the last stage, other stems a 32nd), or "
            "another attention"
        )


def maximum(x: jax.Array, axis: int) -> jax.Array:
    """The maximum over an axis; the first place that has it gets the gradient, as in PyTorch's pooling.

    The backward pass knows the place. JAX's own looks for values that equal the maximum; but when XLA computes x a
    second time there, as the end of a batch norm, and rounds otherwise, none does, and the gradient is 0 / 0.
    """

    def here(index: jax.Array) -> jax.Array:
        places = jnp.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return places == jnp.expand_dims(index, axis)

    def tangent(saved, tangents):
        (index,), (dx,) = saved, tangents
        return (jnp.where(here(index), dx, 0).sum(axis),)

    def gradients(saved, gradients):
        (index,), (gradient,) = saved, gradients
        return (jnp.where(here(index), jnp.expand_dims(gradient, axis), 0),)

    return differentiable(lambda x: x.max(axis), lambda y, x: (jnp.argmax(x, axis),), tangent, gradients, x)


def mean_and_variance(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The mean and the unbiased variance over `axes`, without these axes, in float32 or wider.

    The variance takes a second pass over x. The difference of two averages, of x^2 and of x, needs one, but rounds away
    deviations that are small beside the mean.
    """
    x = widened(x)
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).sum(axes) / (math.prod(x.shape[axis] for axis in axes) - 1)
    return jnp.squeeze(mean, axes), variance


def strips(name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(b, h, w, c) -> the averages of every row and of every column, (b, h, c) and (b, w, c), float32 or wider.

    Raises:
      EcaJaxError: the attention `name` was given no images.
    """
    expect_map(name, x)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, axis=2, dtype=wide), jnp.mean(x, axis=1, dtype=wide)


def cross_scale(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """x (b, h, w, c) times gates of its rows (b, h, c) and of its columns (b, w, c), in the dtype of x."""
    return x * (rows[:, :, None] * columns[:, None]).astype(x.dtype)
