"""Shuffle attention against NumPy by hand, in float64, with its gradients; its start and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import SA, AttentionConfig
from tests.nn.attention.checks import check, sigmoid


def by_hand(arrays, x, groups=3):
    n = x.shape[-1] // (2 * groups)
    gated = np.empty_like(x)
    for b in range(len(x)):
        for c in range(x.shape[-1]):
            channel, i = x[b, ..., c], c % n
            if c // n % 2 == 0:
                z = arrays["channel_weight"][i] * channel.mean() + arrays["channel_bias"][i]
            else:
                normed = (channel - channel.mean()) / np.sqrt(channel.var() + 1e-5)
                normed = normed * arrays["norm_weight"][i] + arrays["norm_bias"][i]
                z = arrays["pixel_weight"][i] * normed + arrays["pixel_bias"][i]
            gated[b, ..., c] = channel * sigmoid(z)
    half = x.shape[-1] // 2
    return np.stack([gated[..., half * (j % 2) + j // 2] for j in range(2 * half)], -1)


@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 4, 3, 12), (2, 3, 2, 2, 12)], ids=["sequence", "image", "volume"])
@jax.enable_x64(True)
def test_sa(shape):
    check(SA(12, groups=3, param_dtype=jnp.float64), by_hand, shape)


def test_every_gate_starts_at_the_sigmoid_of_1(rng):
    x = rng.normal(size=(2, 4, 3, 128)).astype(np.float32)
    shuffled = x.reshape(2, 4, 3, 2, 64).transpose(0, 1, 2, 4, 3).reshape(x.shape)
    np.testing.assert_allclose(SA(128)(jnp.asarray(x)), shuffled * sigmoid(np.ones(1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (64, r"64 channels cannot be cut into 64 groups .*a multiple of 128.*attention\.groups 32 \(not the authors'"),
        (96, r"96 channels .*attention\.groups 48"),
        (7, r"7 channels .*a multiple of 128: a wider network$"),
    ],
)
def test_where_it_cannot_stand(channels, message):
    with pytest.raises(EcaJaxError, match=message):
        SA(channels)


def test_a_wrong_option():
    with pytest.raises(EcaJaxError, match=r"attention\.groups: expected 1 or more, got 0"):
        AttentionConfig("sa", groups=0)


def test_a_channel_whose_pixels_are_all_the_same_has_finite_gradients():
    gradient = jax.grad(lambda x: SA(4, groups=1)(x).sum())(jnp.full((1, 3, 3, 4), 3.0))
    assert jnp.isfinite(gradient).all()
