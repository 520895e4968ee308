"""Efficient multi-scale attention against NumPy by hand, in float64, with its gradients; its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import EMA, AttentionConfig
from tests.nn.attention.checks import check, sigmoid


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def of_group(arrays, x):
    """The gate of every pixel of one group of one image: (h, w, n) -> (h, w)."""
    h, w, _ = x.shape
    rows, columns = (sigmoid(x.mean(axis) @ arrays["fc.kernel"] + arrays["fc.bias"]) for axis in (1, 0))
    x1 = x * rows[:, None] * columns[None]
    x1 = (x1 - x1.mean((0, 1))) / np.sqrt(x1.var((0, 1)) + 1e-5) * arrays["norm_weight"] + arrays["norm_bias"]
    x2 = np.zeros_like(x) + arrays["bias"]
    for i in range(h):
        for j in range(w):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < h and 0 <= j + dj < w:
                        x2[i, j] += x[i + di, j + dj] @ arrays["kernel"][di + 1, dj + 1]
    return sigmoid(x2 @ softmax(x1.mean((0, 1))) + x1 @ softmax(x2.mean((0, 1))))


@pytest.mark.parametrize(("size", "train"), [((5, 4), False), ((5, 4), True), ((3, 3), True), ((1, 1), False)])
@jax.enable_x64(True)
def test_ema(size, train):
    def by_hand(arrays, x):
        y = np.empty_like(x)
        for b in range(len(x)):
            for first in range(0, 6, 3):
                group = x[b, :, :, first : first + 3]
                y[b, :, :, first : first + 3] = group * of_group(arrays, group)[..., None]
        return y

    # The norm of a map of one pixel is its bias, so what comes before has no effect.
    idle = ("fc.kernel", "fc.bias", "norm_weight") if size == (1, 1) else ()
    check(EMA(6, factor=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, (2, *size, 6), train=train, idle=idle)


def test_errors():
    with pytest.raises(EcaJaxError, match=r"ema: 48 channels .* 32 groups; .*multiple of 32.*attention\.factor 24 "):
        EMA(48, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match=r"ema: expected the activation of images, .*\(1, 9, 32\)"):
        EMA(32, rngs=nnx.Rngs(0))(jnp.ones((1, 9, 32)))
    with pytest.raises(EcaJaxError, match=r"attention\.factor: expected 1 or more, got 0"):
        AttentionConfig("ema", factor=0)
