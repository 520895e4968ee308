"""Random erasing on the device (Zhong et al. 2020, arXiv:1708.04896), as timm's `RandomErasing` draws it.

A pure function of a batch and a key. What is erased of an example does not depend on the other examples, so nothing is
communicated, and the result does not depend on how many devices there are.
"""

import math

import jax
import jax.numpy as jnp

from eca_jax.data.preprocess import PreprocessConfig

AREA = (0.02, 1 / 3)
"""The smallest and the largest share of the image; of several rectangles: that they have together."""
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
"""Of height over width."""
ATTEMPTS = 10
"""A rectangle that is as high or as wide as the image is drawn again, so often in all; then there is none."""
STREAM = 0x65726173
"""Of the key of a step, beside the streams 0, 1, ... from which dropout and mixing draw."""


def erase(image: jax.Array, key: jax.Array, config: PreprocessConfig) -> jax.Array:
    """Normalised images (b, h, w, c), floating -> the same, rectangles of them erased as the configuration says.

    `key` is that of the step, which a task's `loss` is given.
    """
    if not config.random_erasing:
        return image
    b, h, w, c = image.shape
    where_key, *keys = jax.random.split(jax.random.fold_in(key, STREAM), 1 + config.random_erasing_count)
    shape = {"const": None, "rand": (b, 1, 1, c), "pixel": image.shape}[config.random_erasing_mode]
    erased = rectangles(where_key, (b, h, w), config.random_erasing, len(keys))
    for i, noise_key in enumerate(keys):
        noise = 0.0 if shape is None else jax.random.normal(noise_key, shape).astype(image.dtype)
        image = jnp.where(erased[:, i, :, :, None], noise, image)
    return image


def rectangles(key: jax.Array, shape: tuple[int, int, int], probability: float, most: int) -> jax.Array:
    """True inside the rectangles of each image: (b, most, h, w), where `shape` is (b, h, w).

    Of an image that is erased one to `most` are used, each number as often; the others are empty. Of all the attempts
    at a rectangle, which are made at once, the first that fits is taken.
    """
    b, h, w = shape
    keys = jax.random.split(key, 4)
    number = jax.random.randint(keys[0], (b, 1, 1), 1, most + 1)
    used = (jax.random.uniform(keys[1], (b, 1, 1)) < probability) & (jnp.arange(most)[:, None] < number)
    draws = (b, most, ATTEMPTS)
    aspect = jnp.exp(jax.random.uniform(keys[2], draws, minval=LOG_ASPECT[0], maxval=LOG_ASPECT[1]))
    share, top, left = jnp.moveaxis(jax.random.uniform(keys[3], (*draws, 3)), -1, 0)
    area = h * w * (AREA[0] + (AREA[1] - AREA[0]) * share) / number
    height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (height < h) & (width < w)
    used &= fits & (jnp.cumsum(fits, axis=-1) == 1)

    def inside(side: int, length: jax.Array, place: jax.Array) -> jax.Array:
        """-> (b, most, side): of the one attempt that is used, or of none."""
        first = jnp.floor(place * (side - length + 1))[..., None]
        position = jnp.arange(side)
        return (used[..., None] & (position >= first) & (position < first + length[..., None])).any(-2)

    return inside(h, height, top)[..., :, None] & inside(w, width, left)[..., None, :]
