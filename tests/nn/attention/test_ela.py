"""Efficient local attention against NumPy by hand, in float64, with its gradients; its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import ELA, AttentionConfig
from tests.nn.attention.checks import check, sigmoid


def gates(arrays, s, k, mixed, groups):
    """Of s (b, l, c): convolved along l, with `mixed` channels together; normalised in `groups`; a sigmoid."""
    kernel = arrays["conv.kernel"][:, 0]  # (k, mixed, c)
    y = np.zeros_like(s)
    for i in range(s.shape[1]):
        for c in range(s.shape[2]):
            first = c // mixed * mixed
            for j in range(k):
                if 0 <= i + j - k // 2 < s.shape[1]:
                    y[:, i, c] += s[:, i + j - k // 2, first : first + mixed] @ kernel[j, :, c]
    for part in np.split(y, groups, axis=2):  # a view of y
        mean, variance = part.mean((1, 2), keepdims=True), part.var((1, 2), keepdims=True)
        part[:] = (part - mean) / np.sqrt(variance + 1e-5)
    return sigmoid(y * arrays["norm.scale"] + arrays["norm.bias"])


@pytest.mark.parametrize(
    ("size", "k", "mixed", "groups", "shape"),
    [
        ("B", 7, 1, 16, (2, 5, 4, 32)),
        ("B", 7, 1, 16, (1, 9, 8, 32)),
        ("T", 5, 1, 32, (2, 5, 3, 64)),
        ("S", 5, 8, 16, (2, 3, 4, 32)),
        ("L", 7, 8, 16, (1, 4, 5, 32)),
    ],
)
@jax.enable_x64(True)
def test_ela(size, k, mixed, groups, shape):
    def by_hand(arrays, x):
        rows, columns = (gates(arrays, x.mean(axis), k, mixed, groups) for axis in (2, 1))
        return np.einsum("bhwc,bhc,bwc->bhwc", x, rows, columns)

    check(ELA(shape[-1], size=size, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, shape)


def test_errors():
    with pytest.raises(EcaJaxError, match=r"ela: size B has a group norm of 16 groups, .* 24 channels .*of 16: "):
        ELA(24, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match=r"ela: expected the activation of images, .*\(1, 9, 16\)"):
        ELA(16, rngs=nnx.Rngs(0))(jnp.ones((1, 9, 16)))
    with pytest.raises(EcaJaxError, match=r"attention\.size: expected one of T, B, S, L, got 'M'"):
        AttentionConfig("ela", size="M")
