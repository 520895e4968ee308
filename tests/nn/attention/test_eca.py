"""ECA and ECA-NS against NumPy by hand, in float64, with their gradients; kernel sizes against the paper's tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import (
    ECA,
    ECA_NS,
    AttentionConfig,
    KernelOptions,
    Place,
    Slot,
    adaptive_kernel_size,
)
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


SEQUENCE, IMAGE, VOLUME = (2, 5, 9), (2, 4, 3, 9), (2, 3, 2, 2, 9)


@pytest.mark.parametrize(
    ("k", "circular", "shape"),
    [
        (1, False, IMAGE),
        (3, False, SEQUENCE),
        (3, True, SEQUENCE),
        (5, False, VOLUME),
        (7, False, IMAGE),
        (7, True, VOLUME),
    ],
)
@jax.enable_x64(True)
def test_eca(k, circular, shape):
    def by_hand(arrays, x):
        gates = sigmoid(slid(x.mean(tuple(range(1, x.ndim - 1))), lambda i: arrays["kernel"], k, circular=circular))
        return x * gates.reshape(len(x), *[1] * (x.ndim - 2), -1)

    check(ECA(9, k, circular=circular, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, shape)


@jax.enable_x64(True)
def test_eca_ns():
    def by_hand(arrays, x):
        return x * sigmoid(slid(x.mean((1, 2)), lambda i: arrays["kernel"][:, i], 3))[:, None, None]

    module = ECA_NS(6, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert module.kernel.shape == (3, 6)
    check(module, by_hand, (2, 4, 3, 6))


@pytest.mark.parametrize(
    ("channels", "k"), [(16, 3), (64, 3), (96, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (1280, 5), (2048, 7)]
)
def test_adaptive_kernel_size_is_the_paper_s_formula(channels, k):
    assert adaptive_kernel_size(channels) == k
    assert ECA(channels, rngs=nnx.Rngs(0)).kernel.shape == (k,)


def test_kernel_policies():
    slots = [
        Slot(channels, Place(stage, stages=4, released=released))
        for stage, (channels, released) in enumerate([(256, 3), (512, 5), (1024, 5), (2048, 7)])
    ]

    def kernel_sizes(policy):
        options = KernelOptions(policy)
        return tuple(options.kernel_size(slot) for slot in slots)

    assert kernel_sizes("released") == (3, 5, 5, 7)
    assert kernel_sizes("adaptive") == (5, 5, 5, 7)
    assert kernel_sizes(9) == (9, 9, 9, 9)
    assert kernel_sizes((3, 3, 7, 7)) == (3, 3, 7, 7)
    with pytest.raises(EcaJaxError, match="has 2 sizes, the network 4 stages"):
        kernel_sizes((3, 5))


@pytest.mark.parametrize(
    ("kernel_sizes", "message"),
    [
        (4, "odd size of at least 1, got 4.*use 3 or 5"),
        ((3, 5, 6, 7), "odd size of at least 1, got 6"),
        (-1, "odd size of at least 1, got -1"),
        ("adaptiv", "unknown policy 'adaptiv'; expected one of released, adaptive"),
    ],
)
def test_wrong_kernel_sizes_are_refused(kernel_sizes, message):
    with pytest.raises(EcaJaxError, match=message):
        AttentionConfig("eca", kernel_sizes=kernel_sizes)


def test_an_even_kernel_is_refused_by_the_module_too():
    with pytest.raises(EcaJaxError, match="odd"):
        ECA(8, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("k", [3, 7])
def test_the_kernel_starts_as_pytorch_s_conv1d_does(k):
    kernels = np.concatenate([np.asarray(ECA(64, k, rngs=nnx.Rngs(i)).kernel[...]) for i in range(200)])
    bound = 1 / np.sqrt(k)
    assert np.abs(kernels).max() <= bound
    np.testing.assert_allclose(kernels.std(), bound / np.sqrt(3), rtol=0.1)
