"""Triplet attention against NumPy by hand, in float64, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import AttentionConfig, TripletAttention
from tests.nn.attention.checks import check
from tests.nn.attention.test_cbam import plane_gate


@pytest.mark.parametrize(
    ("kernel_size", "shape", "train"), [(7, (2, 5, 4, 6), False), (7, (2, 4, 3, 5), True), (3, (2, 3, 3, 6), False)]
)
@jax.enable_x64(True)
def test_triplet(kernel_size, shape, train):
    def by_hand(arrays, x):
        return sum(x * plane_gate(arrays, name, x, i, train=train) for i, name in enumerate(("cw", "hc", "hw"), 1)) / 3

    module = TripletAttention(shape[-1], kernel_size=kernel_size, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    check(module, by_hand, shape, train=train)


def test_the_first_gates(rng):
    module = TripletAttention(6, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 6)), jnp.float32)
    np.testing.assert_array_equal(module.hw(x, 3), np.full((2, 5, 4, 1), 0.5))
    gates = [np.asarray(gate(x, axis)) for axis, gate in ((1, module.cw), (2, module.hc))]
    assert [g.shape for g in gates] == [(2, 1, 4, 6), (2, 5, 1, 6)]
    assert all(g.std() > 0.1 for g in gates)  # their norms' weights are 1
    assert module.cw.bn.momentum == 0.01


def test_what_cannot_work_is_refused():
    with pytest.raises(EcaJaxError, match=r"attention.kernel_size: expected an odd size of at most 255, got 6"):
        AttentionConfig("triplet", kernel_size=6)
    with pytest.raises(EcaJaxError, match=r"triplet: expected the activation of images.* \(2, 5, 8\)"):
        TripletAttention(8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8)))
