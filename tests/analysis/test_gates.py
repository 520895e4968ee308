"""The recorded gates are those that the network used; what is said of them is computed by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.analysis import channel_gates, class_means, gate_statistics
from eca_jax.analysis.gates import gate_function
from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import FCA, SRM, squeeze


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


class OfSquares(nnx.Module):
    """Scales channels by a gate that is no function of their averages."""

    def gates(self, x):
        return nnx.sigmoid(squeeze(x * x))

    def __call__(self, x):
        return x * self.gates(x)[:, None, None]


def test_another_attention_says_its_gates_itself(images):
    model = tiny("resnet18")
    model.layer4[1].attn = OfSquares()
    gates = channel_gates(model, images)
    block = model.layer4[1]
    h = model.layer4[0](model.features(images)["layer3"])
    y = block.bn2(block.conv2(nnx.relu(block.bn1(block.conv1(h)))))
    assert list(gates) == ["layer4.1"]
    np.testing.assert_allclose(gates["layer4.1"], 1 / (1 + np.exp(-np.mean(y * y, (1, 2)))), rtol=1e-4)


@pytest.mark.parametrize("kind", ["srm", "fca"])
def test_gates_of_attentions_that_need_more_than_the_average(kind, images):
    x = jnp.tile(images, (1, 1, 1, 11))[..., :32]
    attn = SRM(32, rngs=nnx.Rngs(0)) if kind == "srm" else FCA(32, rngs=nnx.Rngs(0))
    attn.eval()
    if kind == "srm":
        attn.cfc[...] = attn.cfc[...] + 0.3  # they start at 0
    assert attn.gates(x).std() > 1e-3
    np.testing.assert_allclose(attn(x), x * attn.gates(x)[:, None, None], rtol=1e-6)


def test_a_network_without_channel_gates_is_refused_by_name(images):
    expected = r"^model: resnet18 has the attention 'none', which computes no gate for each channel; expected .*eca_"
    with pytest.raises(EcaJaxError, match=expected):
        channel_gates(tiny("resnet18"), images)


def test_the_function_for_many_batches(images):
    model = tiny("eca_resnet18")
    run, whole = gate_function(model), channel_gates(model, images)
    assert list(whole) == list(run(images[:1]))
    for name, gates in run(images[:1]).items():
        np.testing.assert_allclose(gates, whole[name][:1], rtol=1e-4)


def test_a_model_in_training_mode_is_refused(images):
    model = tiny("eca_resnet18")
    model.train()
    with pytest.raises(EcaJaxError, match=r"^model: it is in training mode, .* call model.eval\(\) first"):
        channel_gates(model, images)
    with pytest.raises(EcaJaxError, match=r"^model: expected a network of create_model, got str"):
        channel_gates("runs/digits", images)


def test_statistics_by_hand():
    gates = [[0.50, 0.51, 0.99, 0.01], [0.49, 0.96, 0.40, 0.04]]
    found = gate_statistics(np.array(gates))
    flat = sorted(gate for row in gates for gate in row)

    def quantile(q):
        place = q * (len(flat) - 1)
        left = math.floor(place)
        return flat[left] + (place - left) * (flat[min(left + 1, len(flat) - 1)] - flat[left])

    of_channels = [((a - b) / 2) ** 2 for a, b in zip(*gates, strict=True)]
    of_images = [sum((gate - sum(row) / 4) ** 2 for gate in row) / 4 for row in gates]
    mean = sum(flat) / 8
    assert (found.images, found.channels) == (2, 4)
    assert found.mean == pytest.approx(mean, abs=1e-15)
    quartiles = found.lower_quartile, found.median, found.upper_quartile
    assert quartiles == pytest.approx([quantile(q) for q in (0.25, 0.5, 0.75)], abs=1e-15)
    assert (found.low_percentile, found.high_percentile) == pytest.approx((quantile(0.01), quantile(0.99)), abs=1e-15)
    assert (found.near_half, found.near_zero, found.near_one) == (3 / 8, 2 / 8, 2 / 8)
    assert found.over_images == pytest.approx(math.sqrt(sum(of_channels) / 4), abs=1e-15)
    assert found.over_channels == pytest.approx(math.sqrt(sum(of_images) / 2), abs=1e-15)


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        (np.full((4, 10), 0.51), "stuck at 0.5: halves every channel of every image"),
        (np.full((4, 10), 0.01), "closed: lets almost nothing through"),
        (np.full((4, 10), 0.99), "open: passes everything on, as without attention"),
        (np.full((4, 10), 0.7), "the same number for every channel of every image"),
        (np.tile(np.linspace(0.1, 0.9, 10), (4, 1)), "the same for every image: a fixed scale for each channel"),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), "saturated: channels are either on or off"),
        (np.repeat([[0.2], [0.8]], 10, axis=1), "the same for every channel: one scale for each image"),
        (np.array([[0.2, 0.6], [0.6, 0.2]]), "differs between images and between channels"),  # equal means
        (np.array([[0.2, 0.6], [0.3, 0.9]]), "differs between images and between channels"),
        # Nine of ten are enough, eight are not.
        (np.array([[0.5] * 9 + [0.9]]), "stuck at 0.5: halves every channel of every image"),
        (np.array([[0.5] * 8 + [0.9] * 2]), "the same for every image: a fixed scale for each channel"),
    ],
)
def test_verdicts(gates, verdict):
    assert gate_statistics(gates).verdict == verdict


def test_what_are_no_gates_is_refused():
    with pytest.raises(EcaJaxError, match=r"^gates: expected an array \(images, channels\), got the shape \(0, 3\)"):
        gate_statistics(np.zeros((0, 3)))
    with pytest.raises(EcaJaxError, match=r"^gates that are not finite numbers"):
        gate_statistics(np.array([[0.5, np.nan]]))


def test_means_of_classes_by_hand():
    gates = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.9]], np.float32)
    means = class_means(gates, np.array([7, 3, 7]), np.array([3, 7]))
    np.testing.assert_allclose(means, [[0.3, 0.4], [0.3, 0.55]], atol=1e-7)
    with pytest.raises(EcaJaxError, match="no image of the class 5"):
        class_means(gates, np.array([7, 3, 7]), np.array([5]))
