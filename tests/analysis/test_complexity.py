"""Counts against formulas by hand; tests/parity/test_complexity.py compares with PyTorch and fvcore."""

import jax
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.analysis import Complexity, complexity
from eca_jax.analysis.complexity import Layer, abstract_model
from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Backbone, Feature
from eca_jax.nn.layers import linear

SMALL = {"num_classes": 5, "small_stem": True, "width_multiplier": 0.25}


def test_every_layer_of_a_small_network_by_hand(small_backbones):
    conv1, conv2, conv3 = 8 * 6 * 16, 4 * 3 * 32, 2 * 2 * 64  # elements, of an image of 8 x 6
    assert complexity("se_tiny", (8, 6)).layers == (
        Layer("conv1", "Conv", (8, 6, 16), 9 * 3 * 16, conv1 * 9 * 3, conv1),
        Layer("bn1", "BatchNorm", (8, 6, 16), 2 * 16, 0, 0),
        Layer("attn.fc1", "Linear", (1,), 16, 16, 1),
        Layer("attn.fc2", "Linear", (16,), 16, 16, 16),
        Layer("conv2", "Conv", (4, 3, 32), 9 * 16 * 32, conv2 * 9 * 16, conv2),
        Layer("bn2", "BatchNorm", (4, 3, 32), 2 * 32, 0, 0),
        Layer("conv3", "Conv", (2, 2, 64), 9 * 32 * 64, conv3 * 9 * 32, conv3),
        Layer("bn3", "BatchNorm", (2, 2, 64), 2 * 64, 0, 0),
        Layer("fc", "Linear", (1000,), 65 * 1000, 64 * 1000, 1000),
    )
    assert complexity("eca_tiny", 8).layers[2] == Layer("attn", "ECA", (8, 8, 16), 3, 3 * 16, 16)


def test_totals_are_sums_over_the_layers(small_backbones):
    layers = [Layer("a", "Conv", (2, 2, 8), 3, 50, 32), Layer("b", "Linear", None, 4, 60, 5)]
    total = Complexity(None, (8, 8), tuple(layers))
    assert (total.parameters, total.multiply_adds, total.flops, total.activations) == (7, 110, 220, 37)


@pytest.mark.parametrize("attention", ["none", "eca", "se"])
def test_a_bottleneck_is_counted_as_its_formula_says(attention):
    """Not as evaluation computes it, where the squeeze goes through the projection."""
    model = abstract_model("resnet26t", attention=attention, **SMALL)
    layers = {layer.path: layer for layer in complexity(model, 32).layers}
    blocks = [layer for path, layer in layers.items() if path.startswith("layer2.1.")]
    assert [layer.kind for layer in blocks[:6]] == ["Conv", "BatchNorm"] * 3
    assert [layer.output for layer in blocks[:6]] == [(16, 16, 32)] * 4 + [(16, 16, 128)] * 2
    assert [layer.multiply_adds for layer in blocks[:6]] == [256 * 128 * 32, 0, 256 * 9 * 32 * 32, 0, 256 * 32 * 128, 0]
    gates = [(layer.path, layer.multiply_adds, layer.output) for layer in blocks[6:]]
    assert (
        gates
        == {
            "none": [],
            "eca": [("layer2.1.attn", 5 * 128, (16, 16, 128))],
            "se": [("layer2.1.attn.fc1", 8 * 128, (8,)), ("layer2.1.attn.fc2", 8 * 128, (128,))],
        }[attention]
    )


def test_how_a_network_is_run_changes_nothing(small_backbones):
    options = {"drop_path": 0.2, "dropout": 0.1, "batch_norm_group": 4}
    model = abstract_model("eca_resnet10", rematerialise=True, **options, **SMALL)
    expected = complexity(abstract_model("eca_resnet10", **SMALL), 32).layers
    assert complexity(model, 32).layers == expected
    model.eval()
    assert complexity(model, 32).layers == expected


def test_a_network_with_arrays_stays_as_it_is(small_backbones):
    model = eca_jax.create_model("eca_tiny", rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(model))
    assert complexity(model, 8) == complexity("eca_tiny", 8)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    assert type(model.conv1).__module__ == "eca_jax.nn.layers"
    assert not hasattr(model.conv1, "watch")
    assert not model.bn1.use_running_average


def test_parameters_are_those_of_the_network():
    for name in ("seresnet50t",):
        model = abstract_model(name, **SMALL)
        assert complexity(model, 32).parameters == sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


class Shared(Backbone):
    """One dense layer, called twice, and one that nothing calls; a product of its own."""

    def __init__(self, rngs: nnx.Rngs):
        self.feature_info = (Feature("all", 3, 1),)
        self.layers = nnx.List([linear(3, 3, param_dtype=np.float32, rngs=rngs)] * 2)
        self.unused = linear(3, 2, param_dtype=np.float32, rngs=rngs)
        self.scale = nnx.Param(np.ones(3, np.float32))

    def features(self, x, *, rngs=None):
        return {"all": self.layers[1](self.layers[0](x)) * self.scale[...]}

    def head(self, x, *, pre_logits=False, rngs=None):
        return self.pool(x) @ self.scale[...][:, None]


def test_shared_unused_and_own():
    found = complexity(Shared(nnx.Rngs(0)), (4, 5))
    assert found.architecture is None
    assert found.layers == (
        Layer("", "Shared", (1,), 3, 3, 1),
        Layer("layers.0", "Linear", (4, 5, 3), 12, 2 * 20 * 9, 2 * 20 * 3),
        Layer("unused", "Linear", None, 8, 0, 0),
    )


def test_what_cannot_be_counted():
    with pytest.raises(EcaJaxError, match=r"^model: expected a name or a network of create_model, got Linear"):
        complexity(linear(3, 3, param_dtype=np.float32, rngs=nnx.Rngs(0)))
    with pytest.raises(EcaJaxError, match="eca_resnet50"):
        complexity("eca_resnet5")
    for size in (0, (224,), (224, -1), "224", 224.0, True):
        with pytest.raises(EcaJaxError, match=r"^image_size: expected pixels, such as 224, or \(height, width\), got"):
            complexity("resnet18", size)
