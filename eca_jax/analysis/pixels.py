"""What a network was given, as pixels to look at."""

import jax
import numpy as np

from eca_jax.data.preprocess import PreprocessConfig


def denormalise(images: jax.Array, config: PreprocessConfig) -> np.ndarray:
    """Normalised images (b, h, w, 3) -> the pixels of which `normalise` makes them, uint8, to look at.

    What no pixel could be, such as an image that was changed, becomes the nearest one.

    Example:
      >>> import jax.numpy as jnp
      >>> from eca_jax.analysis import denormalise
      >>> from eca_jax.data.preprocess import PreprocessConfig
      >>> denormalise(jnp.zeros((1, 1, 1, 3)), PreprocessConfig())  # ImageNet's mean colour
      array([[[[124, 116, 104]]]], dtype=uint8)
    """
    pixels = 255 * (np.asarray(images, np.float64) * config.std + config.mean)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
