"""MCA against NumPy by hand, in float64, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import MCA
from eca_jax.nn.attention.mca import mca_kernel_size
from tests.nn.attention.checks import check, sigmoid
from tests.nn.attention.test_eca import slid


@pytest.mark.parametrize("shape", [(2, 5, 4, 48), (2, 4, 3, 48), (3, 1, 2, 48)])
@jax.enable_x64(True)
def test_mca(shape):
    def by_hand(arrays, x):
        total = np.zeros_like(x)
        for axis, name in ((1, "h"), (2, "w"), (3, "c")):
            others = tuple({1, 2, 3} - {axis})
            of_mean, of_std = 0.5 + sigmoid(arrays[f"{name}.weight"])
            kernel = arrays[f"{name}.kernel"]
            s = of_mean * x.mean(others) + of_std * x.std(others, ddof=1)
            total += x * np.expand_dims(sigmoid(slid(s, lambda i: kernel, len(kernel))), others)  # noqa: B023
        return total / 3

    module = MCA(48, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert module.c.kernel.shape == (3,)
    check(module, by_hand, shape)


@pytest.mark.parametrize("value", [0.0, 0.7, 0.1, -3.3])
def test_constant_maps_have_finite_gradients(value):
    """sigmoid(conv(1.2 value)) everywhere, and the gradient of the same function with std left out."""
    module = MCA(4, rngs=nnx.Rngs(0))
    x = jnp.full((1, 2, 3, 4), value)

    def without_std(x):
        means = [(gate, x.mean(tuple({1, 2, 3} - {axis})), axis) for axis, gate in enumerate(gates(module), 1)]
        return x * sum(_spread(gate, mean, axis) for gate, mean, axis in means) / 3

    weights = jnp.arange(24.0).reshape(x.shape)

    @jax.jit
    def both(x):
        outputs = [jax.vjp(function, x) for function in (module, without_std)]
        return [(y, *back(weights)) for y, back in outputs]

    (y, dx), (expected, expected_dx) = both(x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-6 * np.abs(expected_dx).max())


def gates(module):
    return module.h, module.w, module.c


def _spread(gate, mean, axis):
    k = len(gate.kernel[...])
    windows = jnp.pad((0.5 + jax.nn.sigmoid(gate.weight[0])) * mean, ((0, 0), (k // 2, k // 2)))
    z = jnp.stack([windows[:, i : i + k] @ gate.kernel[...] for i in range(mean.shape[1])], 1)
    return jnp.expand_dims(jax.nn.sigmoid(z), tuple({1, 2, 3} - {axis}))


@pytest.mark.parametrize(
    ("channels", "k"), [(4, 1), (16, 1), (24, 1), (32, 3), (64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_size(channels, k):
    assert mca_kernel_size(channels) == k


def test_what_cannot_work_is_refused():
    with pytest.raises(EcaJaxError, match=r"mca: its formula has no kernel for 3 channels; expected at least 4"):
        MCA(3, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match=r"mca: expected the activation of images"):
        MCA(8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8)))
    with pytest.raises(EcaJaxError, match=r"mca: a map of 1 x 1 has no variance"):
        MCA(8, rngs=nnx.Rngs(0))(jnp.ones((2, 1, 1, 8)))
