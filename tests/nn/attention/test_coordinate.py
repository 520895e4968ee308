"""Coordinate attention against NumPy by hand, in float64, with its gradients; its widths and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import AttentionConfig, CoordinateAttention
from eca_jax.nn.norm import BatchNorm
from tests.nn.attention.checks import check, normed, sigmoid

norm = functools.partial(BatchNorm, dtype=jnp.float64, param_dtype=jnp.float64)


def layer(arrays, name, x):
    return x @ arrays[f"{name}.kernel"] + arrays.get(f"{name}.bias", 0.0)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(5, 4), (3, 3)])
@jax.enable_x64(True)
def test_coordinate(size, bias, train):
    def by_hand(arrays, x):
        h = x.shape[1]
        s = np.concatenate([x.mean(2), x.mean(1)], 1)
        z = normed(arrays, "norm", layer(arrays, "fc1", s), train=train)
        z = z * np.clip(z + 3, 0, 6) / 6
        rows, columns = sigmoid(layer(arrays, "fc_h", z[:, :h])), sigmoid(layer(arrays, "fc_w", z[:, h:]))
        return np.einsum("bhwc,bhc,bwc->bhwc", x, rows, columns)

    module = CoordinateAttention(6, bias=bias, norm=norm, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    # In training, the batch norm takes off again what the first layer's bias adds.
    check(module, by_hand, (2, *size, 6), train=train, idle=("fc1.bias",) if train else ())


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({}, {64: 8, 256: 8, 512: 16, 2048: 64}),
        ({"reduction": 24, "rounded": True}, {64: 8, 256: 8, 512: 24, 1024: 40, 2048: 88}),
    ],
)
def test_the_width_of_the_hidden_layer(options, widths):
    """The authors' max(8, c / 32), and what timm's make_divisible(c / 24, 8) gives."""
    for channels, width in widths.items():
        module = nnx.eval_shape(lambda: CoordinateAttention(channels, **options, rngs=nnx.Rngs(0)))  # noqa: B023
        assert module.norm.mean.shape == (width,)


def test_errors():
    with pytest.raises(EcaJaxError, match=r"coordinate: expected the activation of images, .*\(1, 9, 8\)"):
        CoordinateAttention(8, rngs=nnx.Rngs(0))(jnp.ones((1, 9, 8)))
    with pytest.raises(EcaJaxError, match=r"attention\.reduction: expected 1 or more, got 0"):
        AttentionConfig("coordinate", reduction=0)
