"""CBAM against NumPy by hand, in float64, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import CBAM, AttentionConfig
from eca_jax.nn.attention.cbam import PlaneGate, banded
from tests.nn.attention.checks import check, normed, sigmoid


def plane_gate(arrays, name: str, x: np.ndarray, axis: int, *, train: bool, order=("max", "mean")) -> np.ndarray:
    """The gates of every place of the other two axes, from the maximum and mean over `axis`."""
    kernel = arrays[f"{name}.conv.kernel"]
    k, pad = len(kernel), len(kernel) // 2
    planes = np.stack([getattr(x, pool)(axis) for pool in order], -1)
    padded = np.pad(planes, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    b, height, width, _ = planes.shape
    z = np.zeros((b, height, width, 1))
    for i in range(height):
        for j in range(width):
            z[:, i, j] = np.einsum("bijp,ijpo->bo", padded[:, i : i + k, j : j + k], kernel)
    return np.expand_dims(sigmoid(normed(arrays, f"{name}.bn", z, train=train))[..., 0], axis)


@pytest.mark.parametrize(
    ("settings", "shape", "train"),
    [
        ({}, (2, 5, 4, 8), False),
        ({}, (3, 4, 7, 8), True),
        ({"bias": False, "order": "mean_max", "kernel_size": 3}, (2, 3, 3, 8), False),
    ],
)
@jax.enable_x64(True)
def test_cbam(settings, shape, train):
    def mlp(arrays, s):
        z = np.maximum(s @ arrays["fc1.kernel"] + arrays.get("fc1.bias", 0), 0)
        return z @ arrays["fc2.kernel"] + arrays.get("fc2.bias", 0)

    def by_hand(arrays, x):
        gates = sigmoid(mlp(arrays, x.mean((1, 2))) + mlp(arrays, x.max((1, 2))))
        x = x * gates[:, None, None]
        order = settings.get("order", "max_mean").split("_")
        return x * plane_gate(arrays, "spatial", x, 3, train=train, order=order)

    module = CBAM(8, reduction=2, **settings, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    check(module, by_hand, shape, train=train)


def test_at_first_every_pixel_is_halved(rng):
    module = CBAM(32, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 32)), jnp.float32)
    np.testing.assert_array_equal(module.spatial(x, 3), np.full((2, 5, 4, 1), 0.5))
    assert not module.fc1.bias[...].any()
    assert not module.fc2.bias[...].any()
    assert module.spatial.bn.momentum == 0.01


@pytest.mark.parametrize(("k", "plane"), [(7, (5, 4)), (7, (2, 16)), (3, (6, 7))])
@jax.enable_x64(True)
def test_the_convolution_of_tpus(rng, k, plane):
    """It is that of all other platforms."""
    conv = PlaneGate(k, param_dtype=jnp.float64, rngs=nnx.Rngs(0)).conv
    x = jnp.asarray(rng.normal(size=(2, *plane, 2)))
    np.testing.assert_allclose(banded(x, conv.kernel[...]), conv(x), rtol=0, atol=1e-14)


def test_what_cannot_work_is_refused():
    with pytest.raises(EcaJaxError, match=r"attention.reduction: expected 1 or more, got 0"):
        AttentionConfig("cbam", reduction=0)
    with pytest.raises(EcaJaxError, match=r"attention.kernel_size: expected an odd size of at most 255, got 4"):
        AttentionConfig("cbam", kernel_size=4)
    with pytest.raises(EcaJaxError, match=r"attention.kernel_size: expected an odd size of at most 255, got 257"):
        CBAM(8, kernel_size=257, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match=r"attention.order: expected one of max_mean, mean_max, got 'max'"):
        AttentionConfig("cbam", order="max")
    with pytest.raises(EcaJaxError, match=r"cbam: expected the activation of images, \(b, h, w, c\), .* \(2, 5, 8\)"):
        CBAM(8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8)))
