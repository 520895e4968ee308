"""SE, ESE and the forms of ECA-Net's ablation against NumPy by hand, in float64, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import (
    ESE,
    SE,
    SE_GC,
    AttentionConfig,
    SE_Var1,
    SEOptions,
    Slot,
    build_attention,
    hidden_width,
)
from tests.nn.attention.checks import check, sigmoid

SHAPE = (2, 4, 3, 8)


def gated(gates_of):
    """The function that scales every channel of x by gates_of(arrays, averages)."""
    return lambda arrays, x: np.einsum("bhwc,bc->bhwc", x, gates_of(arrays, x.mean((1, 2))))


def layer(arrays, name, s):
    return np.einsum("bi,io->bo", s, arrays[f"{name}.kernel"]) + arrays.get(f"{name}.bias", 0)


@pytest.mark.parametrize("bias", [False, True])
@jax.enable_x64(True)
def test_se(bias):
    module = SE(8, 3, bias=bias, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert (module.fc1.bias is not None) == (module.fc2.bias is not None) == bias
    by_hand = gated(lambda arrays, s: sigmoid(layer(arrays, "fc2", np.maximum(layer(arrays, "fc1", s), 0))))
    check(module, by_hand, SHAPE)


@jax.enable_x64(True)
def test_ese():
    by_hand = gated(lambda arrays, s: np.clip(layer(arrays, "fc", s) / 6 + 0.5, 0, 1))
    check(ESE(8, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), by_hand, SHAPE)


@jax.enable_x64(True)
def test_se_var1():
    check(SE_Var1(), gated(lambda arrays, s: sigmoid(s)), SHAPE)


@pytest.mark.parametrize("groups", [1, 2, 8])
@jax.enable_x64(True)
def test_se_gc_is_a_block_diagonal_matrix(groups):
    def gates(arrays, s):
        size, matrix = 8 // groups, np.zeros((8, 8))
        for g in range(groups):
            block = slice(g * size, (g + 1) * size)
            matrix[block, block] = arrays["kernel"][g]
        return sigmoid(s @ matrix)

    check(SE_GC(8, groups, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), gated(gates), SHAPE)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("se_var2", (64, 1, 1)),
        ("se_var3", (1, 64, 64)),
        ("se_gc1", (16, 4, 4)),
        ("se_gc2", (4, 16, 16)),
        ("se_gc3", (8, 8, 8)),
    ],
)
def test_the_groups_of_the_paper_s_rows(kind, shape):
    kernel = build_attention(AttentionConfig(kind), Slot(64), nnx.Rngs(0)).kernel[...]
    assert kernel.shape == shape
    bound = shape[1] ** -0.5  # of PyTorch's grouped convolution: the fan-in is a group
    assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize(
    ("kind", "channels", "message"),
    [
        ("se_gc1", 24, "24 channels cannot be cut into 16 groups; .* multiples of 16"),
        ("se_gc2", 24, "24 channels cannot be cut into groups of 16; .* multiples of 16"),
        ("se_gc3", 4, "4 channels cannot be cut into groups of 8; .* multiples of 8"),
    ],
)
def test_groups_that_do_not_divide_are_refused(kind, channels, message):
    with pytest.raises(EcaJaxError, match=message):
        build_attention(AttentionConfig(kind), Slot(channels), nnx.Rngs(0))


def test_no_groups_are_refused():
    with pytest.raises(EcaJaxError, match="expected 1 group or more, got 0"):
        SE_GC(8, 0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({}, (1, 4, 6, 16)),  # of 8, 64, 96 and 256 channels
        ({"reduction": 8}, (1, 8, 12, 32)),
        ({"divisor": 8}, (8, 8, 8, 16)),  # timm's; 6 is nearer to 8 than to 0
        ({"divisor": 8, "reduction": 8}, (8, 8, 16, 32)),  # the half, 12, goes up
        ({"divisor": 1, "reduction": 6}, (1, 11, 16, 43)),
    ],
)
def test_hidden_widths(options, widths):
    slots = [Slot(channels) for channels in (8, 64, 96, 256)]
    assert tuple(SEOptions(**options).hidden(slot) for slot in slots) == widths
    built = [build_attention(AttentionConfig("se", **options), slot, nnx.Rngs(0)) for slot in slots]
    assert tuple(module.fc1.out_features for module in built) == widths


def test_the_hidden_width_of_se_by_default():
    assert SE(64, rngs=nnx.Rngs(0)).fc1.out_features == hidden_width(64) == 4


@pytest.mark.parametrize("option", ["reduction", "divisor"])
def test_an_impossible_width_is_refused(option):
    with pytest.raises(EcaJaxError, match=f"attention.{option}: expected 1 or more, got 0"):
        AttentionConfig("se", **{option: 0})


@pytest.mark.parametrize("kind", ["se", "ese", "se_var1", "se_var2", "se_var3", "se_gc1", "se_gc2", "se_gc3"])
def test_the_gates_start_near_a_half(kind):
    module = build_attention(AttentionConfig(kind), Slot(64), nnx.Rngs(0))
    gates = module.gate(0.1 * jax.random.normal(jax.random.key(0), (4, 64)))
    np.testing.assert_allclose(gates, 0.5, atol=0.1)
