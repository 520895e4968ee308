"""The recorded gates are those that the network used."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.analysis import channel_gates
from eca_jax.errors import EcaJaxError


def tiny(name):
    model = eca_jax.create_model(name, num_classes=5, rngs=nnx.Rngs(0), small_stem=True, width_multiplier=0.125)
    model.eval()
    return model


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.normal(size=(3, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("name", ["eca_resnet18", "se_resnet18"])
def test_gates_of_the_last_block_by_hand(name, images):
    model = tiny(name)
    gates = channel_gates(model, images)
    assert list(gates) == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    block = model.layer4[1]
    x = model.layer4[0](model.features(images)["layer3"])
    h = block.bn2(block.conv2(nnx.relu(block.bn1(block.conv1(x)))))
    expected = block.attn.gate(h.mean((1, 2)))
    np.testing.assert_allclose(gates["layer4.1"], expected, rtol=1e-4, atol=1e-6)
    assert gates["layer1.0"].shape == (3, 8)


def test_a_kernel_of_zeros_gates_by_a_half(images):
    model = tiny("eca_resnet18")
    model.layer2[0].attn.kernel[...] = jnp.zeros_like(model.layer2[0].attn.kernel[...])
    np.testing.assert_array_equal(channel_gates(model, images)["layer2.0"], 0.5)


def test_looking_does_not_change_the_model(images):
    model = tiny("eca_resnet18")
    before = model(images)
    channel_gates(model, images)
    np.testing.assert_array_equal(model(images), before)


def test_a_plain_network_has_no_gates(images):
    assert channel_gates(tiny("resnet18"), images) == {}


def test_a_model_in_training_mode_is_refused(images):
    model = tiny("eca_resnet18")
    model.train()
    with pytest.raises(EcaJaxError, match=r"^model: it is in training mode, .* call model.eval\(\) first"):
        channel_gates(model, images)
    with pytest.raises(EcaJaxError, match=r"^model: expected a network of create_model, got str"):
        channel_gates("runs/digits", images)
