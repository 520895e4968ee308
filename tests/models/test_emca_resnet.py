"""Blocks with EMCA, and the memory that the network carries, against NumPy by hand in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.models.base import Spacing
from eca_jax.models.emca_resnet import EMCABasicBlock, EMCABottleneck, EMCAResNet, with_memory
from eca_jax.models.resnet import BasicBlock, Variant
from eca_jax.nn import AttentionConfig
from eca_jax.nn.attention import EMCA, Place, squeeze
from eca_jax.nn.bricks import Bricks
from tests.models.by_hand import below, branch, conv, relu, shortcut, squeezed
from tests.nn.attention.checks import arrays_of, check, normed, randomise, sigmoid


def slid(s: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A kernel over the channels of (b, c), with zeros beyond them."""
    z, k = np.zeros_like(s), len(kernel)
    for i in range(s.shape[1]):
        for j in range(k):
            source = i + j - (k - 1) // 2
            if 0 <= source < s.shape[1]:
                z[:, i] += kernel[j] * s[:, source]
    return z


def interleaved(arrays: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """As the authors have it: n arrays (b, c) as one row (b, c * n), channel by channel; kernel and stride are n."""
    n, (b, c) = len(arrays), arrays[0].shape
    row = np.stack(arrays, axis=2).reshape(b, c * n)
    return np.stack([row[:, i * n : (i + 1) * n] @ weights for i in range(c)], axis=1)


def block_by_hand(arrays, x, memory, *, train: bool, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    y = branch(arrays, x, train=train, stride=stride)[-1]
    s = squeezed(y)
    scales = local = sigmoid(slid(s, arrays["attn.local"]))
    if "attn.gather" in arrays:
        seen = [np.concatenate([m] * (s.shape[1] // m.shape[1]), axis=1) for m in memory]
        shared = sigmoid(slid(relu(interleaved([*seen, s], arrays["attn.gather"])), arrays["attn.shared"]))
        scales = sigmoid(interleaved([local, shared], arrays["attn.fuse"]))
    y = y * (1 + scales)[:, None, None] + shortcut(arrays, x, train=train, stride=stride)
    return relu(y), s


def bricks() -> Bricks:
    return Bricks(AttentionConfig("none"), nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)


class Stage(nnx.Module):
    """Two blocks of the second stage, whose memory is made of their input."""

    def __init__(self, block, c_in: int, planes: int):
        self.blocks = nnx.List()
        for remembered in (0, 2):
            self.blocks.append(block(c_in, planes, Spacing(), Place(), False, 0.0, bricks()))
            self.blocks[-1].attn = EMCA(c_in, remembered, param_dtype=jnp.float64, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        memory = (squeeze(x[..., :4]), squeeze(x[..., 4:8]))
        for block in self.blocks:
            x, _ = block((x, memory))
        return x


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("block", "planes"), [(EMCABasicBlock, 8), (EMCABottleneck, 2)])
@jax.enable_x64(True)
def test_two_blocks(block, planes, train):
    """The first of a stage and another. A seed for which no ReLU bends within a step, and no gate is stuck."""

    def by_hand(arrays, x):
        memory = [squeezed(x[..., :4]), squeezed(x[..., 4:8])]
        for i in range(2):
            x, _ = block_by_hand(below(arrays, f"blocks.{i}"), x, memory, train=train)
        return x

    check(Stage(block, 8, planes), by_hand, (3, 3, 2, 8), train=train, seed=3)


@jax.enable_x64(True)
def test_the_memory_of_a_network(rng):
    """Every stage's output, with the averages of the stem and of the last branch of each stage before."""
    variant = with_memory(Variant(BasicBlock, (1, 2, 1, 2)))
    model = EMCAResNet(variant, bricks(), num_classes=3, small_stem=True, width_multiplier=1 / 16)
    randomise(model, rng)
    for _, kernel in nnx.iter_graph(model):  # so that no gate is stuck
        if isinstance(kernel, nnx.Param) and len(kernel.shape) == 4:
            kernel.set_value(kernel[...] / math.prod(kernel.shape[:-1]) ** 0.5)
    model.eval()
    arrays, images = arrays_of(model), rng.normal(size=(2, 9, 8, 3))
    graphdef, state = nnx.split(model)
    found = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True).features(x))(state, jnp.asarray(images))

    x = relu(normed(arrays, "bn1", conv(images, arrays["conv1.kernel"]), train=False))
    memory, s = [], squeezed(x)
    for stage, (name, depth) in enumerate(zip(found, variant.depths, strict=True)):
        memory.append(s)
        for i in range(depth):
            stride = 2 if stage and not i else 1
            x, s = block_by_hand(below(arrays, f"{name}.{i}"), x, memory, train=False, stride=stride)
        np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-12 * np.abs(x).max())
    assert [m.shape[1] for m in memory] == [4, 4, 8, 16]
