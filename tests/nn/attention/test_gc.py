"""The global context block against NumPy by hand, in float64, with its gradients; its start, its stages, its errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import GC, AttentionConfig, Identity, Place, Slot, build_attention
from tests.nn.attention.checks import check


def by_hand(arrays, x):
    y = np.empty_like(x)
    for n, image in enumerate(x):
        pixels = list(itertools.product(*map(range, image.shape[:-1])))
        weights = np.exp([image[p] @ arrays["mask.kernel"][:, 0] + arrays["mask.bias"][0] for p in pixels])
        context = sum(w * image[p] for w, p in zip(weights / weights.sum(), pixels, strict=True))
        hidden = context @ arrays["fc1.kernel"] + arrays["fc1.bias"]
        deviation = hidden - hidden.mean()
        normed = deviation / np.sqrt((deviation**2).mean() + 1e-5) * arrays["norm.scale"] + arrays["norm.bias"]
        y[n] = image + np.maximum(normed, 0) @ arrays["fc2.kernel"] + arrays["fc2.bias"]
    return y


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 4, 3, 8), (2, 3, 2, 2, 8)], ids=["sequence", "image", "volume"])
@jax.enable_x64(True)
def test_gc(shape):
    module = GC(8, reduction=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    check(module, by_hand, shape, idle=("mask.bias",))


def test_it_starts_as_the_identity(rng):
    x = jnp.asarray(rng.normal(size=(2, 4, 3, 64)), jnp.float32)
    np.testing.assert_array_equal(GC(64, rngs=nnx.Rngs(0))(x), x)


def test_the_authors_blocks_are_those_of_the_last_three_stages():
    def built(stage):
        return build_attention(AttentionConfig("gc", stages=(1, 2, 3)), Slot(32, Place(stage, 4)), nnx.Rngs(0))

    assert [type(built(stage)) for stage in range(4)] == [Identity, GC, GC, GC]
    with pytest.raises(EcaJaxError, match=r"attention\.stages: expected numbers from 0 to 3, .*, got 4"):
        build_attention(AttentionConfig("gc", stages=(2, 4)), Slot(32, Place(0, 4)), nnx.Rngs(0))


def test_errors():
    with pytest.raises(EcaJaxError, match=r"gc: 16 channels / 16 leave 1 .*at least 32 channels.*reduction 8 or less"):
        GC(16, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match=r"attention\.reduction: expected 1 or more, got 0"):
        AttentionConfig("gc", reduction=0)
    with pytest.raises(EcaJaxError, match=r"attention\.epsilon: expected more than 0, got 0"):
        AttentionConfig("gc", epsilon=0)
