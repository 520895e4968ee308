import numpy as np

from eca_jax.analysis import denormalise
from eca_jax.data.preprocess import PreprocessConfig


def test_normalised_images_become_pixels_again():
    config = PreprocessConfig(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)  # every level
    normalised = (pixels / 255 - config.mean) / config.std
    np.testing.assert_array_equal(denormalise(np.float32(normalised), config), pixels)
    beyond = denormalise(np.array([[[[-9.0, 0.0, 9.0]]]]), config)
    assert beyond.tolist() == [[[[0, 128, 255]]]]  # 0.5 * 255 = 127.5, of which NumPy makes the even number
