"""GCT against NumPy by hand, in float64, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.models.base import Spacing
from eca_jax.models.resnet import Bottleneck
from eca_jax.nn import AttentionConfig
from eca_jax.nn.attention import GCT, GCTConv, Place
from eca_jax.nn.bricks import Bricks
from tests.models.by_hand import branch, relu, shortcut
from tests.nn.attention.checks import check


def gated(arrays, x: np.ndarray, name: str = "") -> np.ndarray:
    """(b, ..., c) through the GCT `name`, one example after the other."""
    out = np.empty_like(x)
    for b, image in enumerate(x):
        pixels = image.reshape(-1, x.shape[-1])
        e = np.array([np.sqrt((channel**2).sum() + 1e-5) for channel in pixels.T]) * arrays[f"{name}alpha"]
        shared = np.sqrt((e**2).mean() + 1e-5)
        out[b] = image * (1 + np.tanh(e * arrays[f"{name}gamma"] / shared + arrays[f"{name}beta"]))
    return out


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 4, 6), (2, 3, 2, 2, 6)], ids=["sequence", "image", "volume"])
@jax.enable_x64(True)
def test_gct(shape):
    check(GCT(6, param_dtype=jnp.float64), gated, shape)


@pytest.mark.parametrize("train", [False, True])
@jax.enable_x64(True)
def test_a_block_with_gct(train):
    """Before all four convolutions. A seed for which no ReLU bends within a step of the central differences."""

    def by_hand(arrays, x):
        first = gated(arrays, x, "downsample.layers.0.gct.")
        y = branch(arrays, x, train=train, stride=2, before=lambda name, x: gated(arrays, x, f"{name}.gct."))[-1]
        return relu(y + shortcut(arrays, first, train=train, stride=2))

    bricks = Bricks(
        AttentionConfig("none"), nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64, convolution=GCTConv
    )
    block = Bottleneck(6, 2, Spacing(stride=2), Place(), False, 0.0, bricks)
    check(block, by_hand, (3, 3, 4, 6), train=train, seed=1)


def test_it_starts_as_the_identity(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 6)), jnp.bfloat16)
    y = GCT(6)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), x.astype(jnp.float32))
