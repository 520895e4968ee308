"""Frequency channel attention against NumPy by hand, in float64, with its gradients; its errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import FCA, AttentionConfig
from tests.nn.attention.checks import check, randomise, sigmoid

# The first eight of the authors' frequencies as they are published: along the height, and along the width.
HEIGHTS, WIDTHS = (0, 0, 6, 0, 0, 1, 1, 4), (0, 1, 0, 5, 2, 0, 2, 0)


def cosine(u: int, i: int, n: int) -> float:
    return math.cos(math.pi * u * (i + 0.5) / n) / math.sqrt(n) * (math.sqrt(2) if u else 1)


def averaged(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PyTorch's adaptive_avg_pool2d of (b, h, w, c)."""
    y = np.zeros((len(x), *size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            rows, columns = (
                slice(math.floor(k * n / m), math.ceil((k + 1) * n / m))
                for k, n, m in ((i, x.shape[1], size[0]), (j, x.shape[2], size[1]))
            )
            y[:, i, j] = x[:, rows, columns].mean((1, 2))
    return y


@pytest.mark.parametrize(
    ("size", "grid"),
    [((7, 7), (7, 7)), ((14, 14), (14, 14)), ((9, 15), (9, 15)), ((10, 16), (7, 7)), ((5, 3), (7, 7))],
    ids=["7", "14", "no grid", "averaged", "stretched"],
)
@jax.enable_x64(True)
def test_fca(size, grid):
    def by_hand(arrays, x):
        x, pooled, s = np.asarray(x), averaged(x, grid), np.zeros((2, 16))
        for c in range(16):
            u, v = HEIGHTS[c // 2] * (grid[0] // 7), WIDTHS[c // 2] * (grid[1] // 7)
            for i in range(grid[0]):
                for j in range(grid[1]):
                    s[:, c] += pooled[:, i, j, c] * cosine(u, i, grid[0]) * cosine(v, j, grid[1])
        hidden = np.maximum(s @ arrays["fc1.kernel"], 0)
        return x * sigmoid(hidden @ arrays["fc2.kernel"])[:, None, None]

    side = grid[0] if grid[0] == grid[1] else None
    module = FCA(16, side=side, frequencies=8, reduction=4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    check(module, by_hand, (2, *size, 16))


def test_the_lowest_frequency_is_the_average_times_the_root_of_the_pixels(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 10, 32)), jnp.float32)
    s = FCA(32, rngs=nnx.Rngs(0)).spectrum(x)
    np.testing.assert_allclose(s[:, :2], math.sqrt(80) * x.mean((1, 2))[:, :2], rtol=1e-5, atol=1e-6)


@jax.enable_x64(True)
def test_the_frequencies_are_orthonormal(rng):
    """The 16 coefficients of one image are those of an orthonormal basis: a pattern gives one of them, its length."""
    module = FCA(16, rngs=nnx.Rngs(0))
    patterns = jax.jacobian(lambda image: module.spectrum(jnp.repeat(image, 16, -1))[0])(jnp.zeros((1, 14, 14, 1)))
    patterns = patterns.reshape(16, -1)
    np.testing.assert_allclose(patterns @ patterns.T, np.eye(16), atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 24}, "24 channels cannot be cut into 16 frequencies; .*attention.frequencies 8"),
        ({"channels": 16, "side": 6}, "6 x 6 pixels has no frequency but the mean; expected at least 7.*grid 7"),
    ],
)
def test_where_it_cannot_stand(arguments, message):
    with pytest.raises(EcaJaxError, match=message):
        FCA(**arguments, rngs=nnx.Rngs(0))


def test_what_it_cannot_take():
    module = FCA(16, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match="fca: a map of 8 x 6 pixels"):
        module(jnp.ones((1, 8, 6, 16)))
    with pytest.raises(
        EcaJaxError, match=r"fca: expected the activation of images, \(b, h, w, c\), got .*\(1, 9, 16\)"
    ):
        module(jnp.ones((1, 9, 16)))
    assert FCA(16, grid=7, rngs=nnx.Rngs(0))(jnp.ones((1, 1, 1, 16))).shape == (1, 1, 1, 16)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("frequencies", 3, "expected 1, 2, 4, 8, 16 or 32, got 3"),
        ("reduction", 0, "expected 1 or more, got 0"),
        ("grid", 6, "expected 7 or more, got 6"),
    ],
)
def test_wrong_options(option, value, message):
    with pytest.raises(EcaJaxError, match=rf"attention\.{option}: {message}"):
        AttentionConfig("fca", **{option: value})


def test_the_average_of_bfloat16_is_taken_in_float32():
    module = FCA(16, rngs=nnx.Rngs(0))
    randomise(module, np.random.default_rng(0))
    x = jnp.full((1, 64, 64, 16), 1 + 2**-7, jnp.bfloat16)
    assert module(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(module.spectrum(x)[0, 0], 64 * (1 + 2**-7), rtol=1e-6)
