"""What layers return is computed by hand from the layers' own weights; nothing is looked at that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.analysis import activations, channel_gates, in_batches, with_gates
from eca_jax.errors import EcaJaxError
from eca_jax.models.ba_resnet import with_bridges
from eca_jax.models.emca_resnet import EMCAResNet, with_memory
from eca_jax.models.resnet import BasicBlock, ResNet, Variant
from eca_jax.nn import ECA, AttentionConfig
from eca_jax.nn.bricks import Bricks

SIZE = {"num_classes": 5, "small_stem": True, "width_multiplier": 1 / 8}
pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def model(small_backbones):
    model = eca_jax.create_model("eca_resnet10", rngs=nnx.Rngs(0), **SIZE)
    model.eval()
    return model


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def everything(model, images):
    return activations(model, images, "*")


def convolved(x, kernel):
    """A 3x3 convolution of stride 1 with zeros around, in float64."""
    x, kernel = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0))), np.asarray(kernel, np.float64)
    size = x.shape[1] - 2
    return sum(x[:, i : i + size, j : j + size] @ kernel[i, j] for i in range(3) for j in range(3))


def normed(x, norm):
    mean, var, scale, bias = (np.asarray(v[...], np.float64) for v in (norm.mean, norm.var, norm.scale, norm.bias))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def test_every_layer_of_a_block_by_hand(model, images, everything):
    stem = np.maximum(normed(convolved(images, model.conv1.kernel[...]), model.bn1), 0)
    block = model.layer1[0]
    first = convolved(stem, block.conv1.kernel[...])
    second = convolved(np.maximum(normed(first, block.bn1), 0), block.conv2.kernel[...])
    out = normed(second, block.bn2)
    weights = np.pad(np.asarray(block.attn.kernel[...], np.float64), 0)
    padded = np.pad(out.mean((1, 2)), ((0, 0), (len(weights) // 2,) * 2))
    mixed = sum(w * padded[:, i : i + out.shape[3]] for i, w in enumerate(weights))
    gated = out / (1 + np.exp(-mixed))[:, None, None]
    expected = {
        "conv1": convolved(images, model.conv1.kernel[...]),
        "layer1.0.conv1": first,
        "layer1.0.bn1": normed(first, block.bn1),
        "layer1.0.conv2": second,
        "layer1.0.bn2": out,
        "layer1.0.attn": gated,
        "layer1.0": np.maximum(gated + stem, 0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(everything[name], values, atol=2e-5 * abs(values).max(), err_msg=name)


def test_a_sequence_of_layers_stands_for_its_last(model, images, everything):
    features, logits = jax.jit(lambda images: (model.features(images), model(images)))(images)
    for name, feature in features.items():
        np.testing.assert_allclose(everything[name], feature, atol=2e-5 * float(abs(feature).max()))
    assert everything["layer2.0.downsample"] is not everything["layer2.0.downsample.layers.0"]
    np.testing.assert_array_equal(everything["layer2.0.downsample"], everything["layer2.0.downsample.layers.1"])
    np.testing.assert_allclose(everything["fc"], logits, atol=1e-5)


def test_names_patterns_and_their_order(model, images, everything):
    found = activations(model, images, ("layer?.0.attn", "bn1", "layer1.0.attn"))
    assert list(found) == ["bn1", *(f"layer{stage}.0.attn" for stage in (1, 2, 3, 4))]
    for name, values in found.items():
        np.testing.assert_allclose(values, everything[name], atol=1e-5)
    assert list(activations(model, images, "layer4")) == ["layer4"]


def test_looking_does_not_change_the_model(model, images):
    before = nnx.split(model)
    activations(model, images, "layer4.*")
    after = nnx.split(model)
    assert before[0] == after[0]
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(before[1]), nnx.to_pure_dict(after[1]))


def test_a_network_of_ones_own(images):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=rngs), ECA(4, rngs=rngs), nnx.relu)
    found = activations(model, images, ("layers.0", "layers.1"))
    x = model.layers[0](images)
    np.testing.assert_allclose(found["layers.0"], x, atol=1e-5)
    np.testing.assert_allclose(found["layers.1"], model.layers[1](x), atol=1e-5)


def test_blocks_that_return_several_arrays_and_save_memory_in_training(images):
    variant = with_memory(Variant(BasicBlock, (1, 1, 1, 1)))
    model = EMCAResNet(variant, Bricks(AttentionConfig("none"), nnx.Rngs(0)), **SIZE)
    model.eval()
    features = jax.jit(model.features)(images)
    model.rematerialise = True
    found = activations(model, images, ("layer1.0", "layer4"))
    np.testing.assert_allclose(found["layer1.0"], features["layer1"], atol=1e-5)
    np.testing.assert_allclose(found["layer4"], features["layer4"], atol=1e-5)


class Twice(nnx.Module):
    """Calls a layer twice, and another never."""

    def __init__(self):
        self.linear, self.unused = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(self.linear(x))


def test_what_cannot_be_looked_at_is_refused(model, images):
    with pytest.raises(EcaJaxError, match=r"^model: it has no layer 'layer4\.0\.atn'\. Did you mean layer4\.0\.attn"):
        activations(model, images, "layer4.0.atn")
    with pytest.raises(EcaJaxError, match=r"^model: it has no layer 'stage\?'\."):
        activations(model, images, ["stage?"])
    with pytest.raises(EcaJaxError, match=r"^model: expected a network, an nnx.Module, got str"):
        activations("runs/digits", images, "layer4")
    with pytest.raises(EcaJaxError, match=r"^model: its layer 'linear' is called more than once"):
        activations(Twice(), images, "linear")
    with pytest.raises(EcaJaxError, match=r"^model: it never calls unused as a function of one activation"):
        activations(Twice(), images, "unused")
    training = nnx.clone(model)
    training.train()
    with pytest.raises(EcaJaxError, match=r"^model: it is in training mode, .* call model.eval\(\) first"):
        activations(training, images, "layer4")


def test_many_images_in_batches(model, images, everything):
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return {"sum": batch.sum((1, 2, 3)), "first": batch[:, 0, 0]}

    many = np.random.default_rng(1).normal(size=(7, 2, 2, 3)).astype(np.float32)
    outputs = in_batches(function, many, batch_size=3)
    assert sizes == [3, 3, 3]
    assert list(outputs) == ["sum", "first"]
    np.testing.assert_allclose(outputs["sum"], many.sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(outputs["first"], many[:, 0, 0])
    np.testing.assert_allclose(in_batches(model, images, batch_size=2), everything["fc"], atol=1e-5)
    with pytest.raises(EcaJaxError, match=r"^images: expected at least one, got none"):
        in_batches(function, many[:0])
    with pytest.raises(EcaJaxError, match=r"^batch_size: expected 1 or more, got 0"):
        in_batches(function, many, batch_size=0)


def test_gates_of_ones_own(model, images, everything):
    gates = channel_gates(model, images)
    assert list(gates) == [f"layer{stage}.0" for stage in (1, 2, 3, 4)]
    np.testing.assert_allclose(in_batches(with_gates(model, gates), images), everything["fc"], atol=1e-5)
    # A closed attention leaves the shortcut alone.
    closed = with_gates(model, {"layer1.0": np.zeros(8)})
    found = activations(closed, images, ("layer1.0", "bn1", "layer1.0.attn"))
    np.testing.assert_array_equal(found["layer1.0"], np.maximum(found["bn1"], 0))
    half = with_gates(model, {"layer4.0": lambda gate: gate / 2})
    np.testing.assert_allclose(channel_gates(half, images)["layer4.0"], gates["layer4.0"] / 2, rtol=1e-5)


def test_gates_that_cannot_be_are_refused(model, images):
    with pytest.raises(
        EcaJaxError, match=r"^gates: there is no block 'layer5.0' with channel gates. Did you mean layer"
    ):
        with_gates(model, {"layer5.0": np.ones(8)})
    with pytest.raises(EcaJaxError, match=r"^gates: of layer1.0 expected \(8,\) or \(3, 8\), got the shape \(9,\)"):
        with_gates(model, {"layer1.0": np.ones(9)})(images)


@pytest.mark.parametrize("name", ["ba", "emca"])
def test_gates_of_attentions_that_see_more_of_a_block(name, images):
    variant, bricks = Variant(BasicBlock, (1, 1, 1, 1)), Bricks(AttentionConfig("none"), nnx.Rngs(0))
    made = (
        ResNet(with_bridges(variant), bricks, **SIZE)
        if name == "ba"
        else EMCAResNet(with_memory(variant), bricks, **SIZE)
    )
    made.eval()
    gates = channel_gates(made, images)["layer1.0"]
    found = activations(made, images, ("bn1", "layer1.0.bn?", "layer1.0"))
    attn, s = made.layer1[0].attn, found["layer1.0.bn2"].mean((1, 2))
    inner = nnx.relu(found["layer1.0.bn1"]).mean((1, 2))
    expected = attn.gate(inner, s) if name == "ba" else attn.gate(s, [])
    np.testing.assert_allclose(gates, expected, rtol=1e-4)
    out = nnx.relu(found["layer1.0.bn2"] * expected[:, None, None] + nnx.relu(found["bn1"]))
    np.testing.assert_allclose(found["layer1.0"], out, atol=1e-5)
