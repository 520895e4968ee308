"""Initial weights are those of JAX's own initialisers, number for number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax.nn.layers import fan_out_normal, uniform_fan_in


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (3, 3, 1, 24)])  # of a dense and of a depthwise convolution
def test_fan_out_normal(shape):
    expected = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    key = jax.random.key(7)
    # JAX's versions differ in how they round the standard deviation.
    np.testing.assert_allclose(
        fan_out_normal(key, shape), expected(key, shape, jnp.float32), rtol=2 * np.finfo(np.float32).eps
    )


def test_uniform_fan_in():
    key = jax.random.key(7)
    expected = jax.random.uniform(key, (16, 5), jnp.float32, -0.25, 0.25)
    np.testing.assert_array_equal(uniform_fan_in(16)(key, (16, 5)), expected)
