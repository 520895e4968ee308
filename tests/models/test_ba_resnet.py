"""Blocks with bridge attention against NumPy by hand, in float64, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.models.ba_resnet import BABasicBlock, BABottleneck
from eca_jax.models.base import Spacing
from eca_jax.nn import AttentionConfig
from eca_jax.nn.attention import BA, Place
from eca_jax.nn.bricks import Bricks
from tests.models.by_hand import branch, relu, shortcut, squeezed
from tests.nn.attention.checks import check, normed, sigmoid


def gates(arrays, averages: list[np.ndarray], *, train: bool) -> np.ndarray:
    hidden = 0
    for i, s in enumerate(averages):
        hidden = hidden + normed(arrays, f"attn.norms.{i}", s @ arrays[f"attn.reduce.{i}.kernel"], train=train)
    return sigmoid(relu(hidden) @ arrays["attn.expand.kernel"])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("block", "planes"), [(BABasicBlock, 4), (BABottleneck, 8)])
@jax.enable_x64(True)
def test_a_block(block, planes, train):
    """Odd and even sides. A seed for which no ReLU bends within a step of the central differences."""

    def by_hand(arrays, x):
        activations = branch(arrays, x, train=train)
        scales = gates(arrays, [squeezed(a) for a in activations], train=train)
        return relu(activations[-1] * scales[:, None, None] + shortcut(arrays, x, train=train))

    bricks = Bricks(AttentionConfig("none"), nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)
    channels = planes * block.expansion
    module = block(channels, planes, Spacing(), Place(), False, 0.0, bricks)
    check(module, by_hand, (4, 3, 2, channels), train=train, seed=1)


def test_one_example_has_no_batch_statistics():
    attention = BA((8, 8), 32, rngs=nnx.Rngs(0))
    s, wide = jnp.ones((1, 8)), jnp.ones((1, 32))
    with pytest.raises(EcaJaxError, match=r"BA: .* a statistics group of 1; expected a batch, .* of 2 or more"):
        attention.gate(s, s, wide)
    attention.eval()
    assert attention.gate(s, s, wide).shape == (1, 32)
