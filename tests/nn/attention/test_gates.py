"""Channel gates against NumPy by hand, and the kernel policies against the paper's tables."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import (
    ATTENTIONS,
    ECA,
    ECA_NS,
    SE,
    AttentionConfig,
    KernelOptions,
    Place,
    Slot,
    adaptive_kernel_size,
    build_attention,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scaled_by_hand(x, gates):
    out = np.empty_like(x)
    for b in range(x.shape[0]):
        for c in range(x.shape[3]):
            out[b, :, :, c] = x[b, :, :, c] * gates[b, c]
    return out


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_eca_slides_one_kernel_over_the_channels(rng, k, circular):
    c = 9
    x = rng.normal(size=(2, 4, 3, c)).astype(np.float32)
    module = ECA(c, k, circular=circular, rngs=nnx.Rngs(0))
    kernel = np.asarray(module.kernel[...])
    s = x.mean((1, 2))
    z = np.zeros((2, c), np.float64)
    for i in range(c):
        for j in range(k):
            source = i + j - (k - 1) // 2
            if circular:
                z[:, i] += kernel[j] * s[:, source % c]
            elif 0 <= source < c:
                z[:, i] += kernel[j] * s[:, source]
    np.testing.assert_allclose(module(jnp.asarray(x)), scaled_by_hand(x, sigmoid(z)), rtol=1e-5, atol=1e-6)


def test_eca_ns_has_a_kernel_for_every_channel(rng):
    c, k = 6, 3
    x = rng.normal(size=(2, 4, 3, c)).astype(np.float32)
    module = ECA_NS(c, k, rngs=nnx.Rngs(0))
    kernel = np.asarray(module.kernel[...])
    assert kernel.size == k * c
    s = x.mean((1, 2))
    z = np.zeros((2, c))
    for i in range(c):
        for j in range(k):
            if 0 <= i + j - 1 < c:
                z[:, i] += kernel[j, i] * s[:, i + j - 1]
    np.testing.assert_allclose(module(jnp.asarray(x)), scaled_by_hand(x, sigmoid(z)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_se_is_two_layers_and_a_sigmoid(rng, bias):
    c, hidden = 8, 3
    x = rng.normal(size=(2, 4, 3, c)).astype(np.float32)
    module = SE(c, hidden, bias=bias, rngs=nnx.Rngs(0))
    s = x.mean((1, 2))
    b1 = np.asarray(module.fc1.bias[...]) if bias else 0
    b2 = np.asarray(module.fc2.bias[...]) if bias else 0
    assert bias or module.fc1.bias is None
    z = np.maximum(s @ np.asarray(module.fc1.kernel[...]) + b1, 0) @ np.asarray(module.fc2.kernel[...]) + b2
    np.testing.assert_allclose(module(jnp.asarray(x)), scaled_by_hand(x, sigmoid(z)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "k"), [(16, 3), (64, 3), (96, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (1280, 5), (2048, 7)]
)
def test_adaptive_kernel_size_is_the_paper_s_formula(channels, k):
    assert adaptive_kernel_size(channels) == k


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
    ("fields", "message"),
    [
        ({"kind": "ecca"}, r"unknown attention 'ecca'. Did you mean eca"),
        ({"kind": "eca", "kernel_sizes": 4}, "odd size of at least 1, got 4.*use 3 or 5"),
        ({"kind": "eca", "kernel_sizes": (3, 5, 6, 7)}, "odd size of at least 1, got 6"),
        ({"kind": "eca", "kernel_sizes": -1}, "odd size of at least 1, got -1"),
        ({"kind": "eca", "kernel_sizes": "adaptiv"}, "unknown policy 'adaptiv'; expected one of released, adaptive"),
        ({"kind": "se", "reduction": 0}, "expected 1 or more, got 0"),
    ],
)
def test_a_wrong_attention_is_refused(fields, message):
    with pytest.raises(EcaJaxError, match=message):
        AttentionConfig(**fields)


def test_an_even_kernel_is_refused_by_the_module_too():
    with pytest.raises(EcaJaxError, match="odd"):
        ECA(8, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_attention_keeps_shape_and_dtype(rng, kind):
    module = build_attention(
        AttentionConfig(kind=kind), Slot(channels=128, place=Place(released=3), reduction=4), nnx.Rngs(0)
    )
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 128)), jnp.bfloat16)  # as much as the most demanding of them needs
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == jnp.bfloat16


def test_the_average_of_bfloat16_is_taken_in_float32():
    # 1 + 2^-7 is the smallest bfloat16 above 1; a bfloat16 sum of 4096 ones would stop at 256.
    x = jnp.full((1, 64, 64, 3), 1 + 2**-7, jnp.bfloat16)
    module = ECA(3, 1, rngs=nnx.Rngs(0))
    module.kernel[...] = jnp.ones(1)
    np.testing.assert_allclose(module.gate(x.mean((1, 2), dtype=jnp.float32)), sigmoid(1 + 2**-7), rtol=1e-6)
    np.testing.assert_allclose(module(x).astype(jnp.float32)[0, 0, 0], (1 + 2**-7) * sigmoid(1 + 2**-7), rtol=2**-7)


@pytest.mark.parametrize("k", [3, 7])
def test_the_kernel_starts_as_pytorch_s_conv1d_does(k):
    kernels = np.concatenate([np.asarray(ECA(64, k, rngs=nnx.Rngs(i)).kernel[...]) for i in range(200)])
    bound = 1 / np.sqrt(k)
    assert np.abs(kernels).max() <= bound
    np.testing.assert_allclose(kernels.std(), bound / np.sqrt(3), rtol=0.1)
