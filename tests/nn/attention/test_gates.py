"""What all attentions of the table have in common, and the gates among them on any number of pixel axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import (
    ATTENTIONS,
    ECA,
    AttentionConfig,
    ChannelGate,
    Place,
    Slot,
    build_attention,
)
from tests.nn.attention.checks import sigmoid

SLOT = Slot(channels=128, place=Place(released=3, side=8), reduction=4)
"""Every attention can stand here, on a map of 8 x 8 pixels."""


def built(kind: str) -> nnx.Module:
    return build_attention(AttentionConfig(kind), SLOT, nnx.Rngs(0))


def test_an_unknown_attention_is_refused():
    with pytest.raises(EcaJaxError, match=r"unknown attention 'ecca'. Did you mean eca"):
        AttentionConfig("ecca")


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_attention_keeps_shape_and_dtype(kind):
    x = jax.ShapeDtypeStruct((2, 8, 8, SLOT.channels), jnp.bfloat16)
    y = jax.eval_shape(lambda x: built(kind)(x), x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_gates_work_on_any_number_of_pixel_axes():
    """Sequences, images and volumes of the same pixels have the same result, in every gate of the table."""
    x = jax.random.normal(jax.random.key(0), (2, 12, SLOT.channels))
    images, volumes = x.reshape(2, 3, 4, -1), x.reshape(2, 2, 3, 2, -1)

    @jax.jit
    def run():
        modules = {kind: built(kind) for kind in ATTENTIONS}
        gates = {kind: module for kind, module in modules.items() if isinstance(module, ChannelGate)}
        return {kind: (gate.gate(x.mean(1)), gate(x), gate(images), gate(volumes)) for kind, gate in gates.items()}

    results = run()
    assert {"eca", "eca_ns", "se", "ese", "se_var1", "se_gc1", "ge_minus"} <= set(results)
    for kind, (gates, *outputs) in results.items():
        for y, pixels in zip(outputs, (x, images, volumes), strict=True):
            assert y.shape == pixels.shape
            np.testing.assert_allclose(y.reshape(x.shape), x * gates[:, None], rtol=1e-6, atol=1e-6, err_msg=kind)


def test_the_average_of_bfloat16_is_taken_in_float32():
    # 1 + 2^-7 is the smallest bfloat16 above 1; a bfloat16 sum of 4096 ones would stop at 256.
    x = jnp.full((1, 64, 64, 3), 1 + 2**-7, jnp.bfloat16)
    module = ECA(3, 1, rngs=nnx.Rngs(0))
    module.kernel[...] = jnp.ones(1)
    np.testing.assert_allclose(module.gate(x.mean((1, 2), dtype=jnp.float32)), sigmoid(1 + 2**-7), rtol=1e-6)
    np.testing.assert_allclose(module(x).astype(jnp.float32)[0, 0, 0], (1 + 2**-7) * sigmoid(1 + 2**-7), rtol=2**-7)


def test_eca_in_a_network_of_one_s_own(rng):
    """README's example."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(3, 64, (3, 3), rngs=rngs), ECA(64, rngs=rngs), nnx.relu)

    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    conv, eca, _ = model.layers
    y = np.asarray(conv(x))
    padded = np.pad(y.mean((1, 2)), ((0, 0), (1, 1)))
    z = sum(padded[:, j : j + 64] * np.asarray(eca.kernel[...])[j] for j in range(3))
    np.testing.assert_allclose(model(x), np.maximum(y * sigmoid(z)[:, None, None], 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gct", "ba", "emca"])
def test_an_attention_inside_of_blocks_is_no_kind_and_names_its_models(kind):
    with pytest.raises(EcaJaxError, match=rf"attention.kind: '{kind}' does not stand .* model {kind}_resnet50"):
        AttentionConfig(kind)
    assert eca_jax.list_models(f"{kind}_resnet50")
