"""What several attentions need of a map: checks of its shape, and its statistics."""

import math

import jax
import jax.numpy as jnp

from eca_jax.errors import EcaJaxError
from eca_jax.nn.norm import widened


def expect_images(name: str, x: jax.Array) -> None:
    """Refuses an activation without exactly two pixel axes; `name` is the kind of the attention."""
    if x.ndim != 4:
        raise EcaJaxError(
            f"{name}: expected the activation of images, (b, h, w, c), got the shape {x.shape}; "
            "use an attention that takes any number of pixel axes, such as eca or srm"
        )


def expect_pixels(name: str, x: jax.Array) -> None:
    """Refuses maps of a single pixel, which have no variance; `name` is the kind of the attention."""
    if math.prod(x.shape[1:-1]) < 2:
        raise EcaJaxError(
            f"{name}: a map of {' x '.join(map(str, x.shape[1:-1]))} has no variance; expected at least 2 pixels: "
            "use larger images, a smaller model.output_stride or another attention"
        )


def mean_and_variance(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The mean and the unbiased variance over `axes`, without these axes: float32 or wider, from one pass over x.

    The values are taken relative to the first one. That changes nothing but the rounding: the variance of a constant is
    exactly 0, and a mean much larger than the deviations does not drown them.
    """
    x = widened(x)
    n = math.prod(x.shape[axis] for axis in axes)
    first = x[tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))]
    first = jax.lax.stop_gradient(first)  # neither result depends on it
    d = x - first
    mean, square = d.mean(axes), jnp.square(d).mean(axes)
    return jnp.squeeze(first, axes) + mean, jnp.maximum(square - jnp.square(mean), 0) * (n / (n - 1))
