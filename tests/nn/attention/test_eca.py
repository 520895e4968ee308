"""ECA and ECA-NS against NumPy by hand, in float64, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.nn.attention import ECA, ECA_NS
from tests.nn.attention.checks import check, sigmoid


def slid(s: np.ndarray, kernel_of, k: int, *, circular: bool = False) -> np.ndarray:
    """s (b, c) with a kernel slid over it: `kernel_of(i)` is that of the channel i."""
    c, z = s.shape[1], np.zeros_like(s)
    for i in range(c):
        for j in range(k):
            source = i + j - (k - 1) // 2
            if circular or 0 <= source < c:
                z[:, i] += kernel_of(i)[j] * s[:, source % c]
    return z


@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 4, 3, 9), (2, 3, 2, 2, 9)], ids=["sequence", "image", "volume"])
@pytest.mark.parametrize("circular", [False, True])
@jax.enable_x64(True)
def test_eca(circular, shape):
    def by_hand(arrays, x):
        gates = sigmoid(slid(x.mean(tuple(range(1, x.ndim - 1))), lambda i: arrays["kernel"], 5, circular=circular))
        return x * gates.reshape(len(x), *[1] * (x.ndim - 2), -1)

    check(ECA(9, 5, circular=circular, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, shape)


@jax.enable_x64(True)
def test_eca_ns():
    def by_hand(arrays, x):
        return x * sigmoid(slid(x.mean((1, 2)), lambda i: arrays["kernel"][:, i], 3))[:, None, None]

    check(ECA_NS(6, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, (2, 4, 3, 6))
