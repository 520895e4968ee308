"""SimAM against NumPy by hand, in float64, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import AttentionConfig, SimAM
from tests.nn.attention.checks import check, sigmoid


@pytest.mark.parametrize(
    ("shape", "lam"), [((2, 5, 6), 1e-4), ((2, 4, 3, 6), 0.1), ((2, 3, 3, 6), 1e-4), ((2, 3, 2, 2, 6), 1e-4)]
)
@jax.enable_x64(True)
def test_simam(shape, lam):
    def by_hand(arrays, x):
        y = np.empty_like(x)
        for b in range(len(x)):
            for c in range(x.shape[-1]):
                square = (x[b, ..., c] - x[b, ..., c].mean()) ** 2
                variance = square.sum() / (square.size - 1)
                y[b, ..., c] = x[b, ..., c] * sigmoid(square / (4 * (variance + lam)) + 0.5)
        return y

    check(SimAM(6, lam=lam, rngs=nnx.Rngs(0)), by_hand, shape)


def test_a_large_mean_does_not_drown_the_deviations(rng):
    x = 1000 + rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    square = (x - x.mean((1, 2), keepdims=True, dtype=np.float64)) ** 2
    expected = x * sigmoid(square / (4 * (square.sum((1, 2), keepdims=True) / 63 + 1e-4)) + 0.5)
    np.testing.assert_allclose(SimAM(3, rngs=nnx.Rngs(0))(jnp.asarray(x)), expected, rtol=1e-4)


def test_what_cannot_work_is_refused():
    with pytest.raises(EcaJaxError, match=r"attention.lam: expected a positive number, got 0"):
        AttentionConfig("simam", lam=0.0)
    with pytest.raises(EcaJaxError, match=r"simam: a map of 1 has no variance; expected at least 2 pixels"):
        SimAM(6, rngs=nnx.Rngs(0))(jnp.ones((3, 1, 6)))
