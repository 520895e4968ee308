"""SRM against NumPy by hand, in float64, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import SRM
from tests.nn.attention.checks import check, normed, sigmoid


@pytest.mark.parametrize(
    ("shape", "train"),
    [((4, 5, 6), False), ((5, 4, 3, 6), True), ((2, 3, 3, 6), False), ((2, 3, 2, 2, 6), False)],
)
@jax.enable_x64(True)
def test_srm(shape, train):
    def by_hand(arrays, x):
        values = x.reshape(len(x), -1, x.shape[-1])
        styles = np.stack([values.mean(1), np.sqrt(values.var(1, ddof=1) + 1e-5)])
        gates = sigmoid(normed(arrays, "bn", np.einsum("tbc,tc->bc", styles, arrays["cfc"]), train=train))
        return (values * gates[:, None]).reshape(x.shape)

    check(SRM(6, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, shape, train=train)


def test_at_first_every_gate_is_a_half(rng):
    x = jnp.asarray(rng.normal(size=(3, 4, 5, 6)), jnp.float32)
    np.testing.assert_array_equal(SRM(6, rngs=nnx.Rngs(0))(x), x / 2)


def test_a_single_pixel_is_refused():
    with pytest.raises(EcaJaxError, match=r"srm: a map of 1 x 1 has no variance; expected at least 2 pixels"):
        SRM(6, rngs=nnx.Rngs(0))(jnp.ones((3, 1, 1, 6)))
