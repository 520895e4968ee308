"""Every backbone against torchvision's, with random weights and random running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

import eca_jax  # noqa: E402

pytestmark = pytest.mark.parity

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def resnet_key(path: tuple) -> str:
    names = [{"conv": "0", "bn": "1"}.get(p, p) if "downsample" in path else p for p in path[:-1]]
    return ".".join([*map(str, names), LEAVES[path[-1]]])


def mobilenet_key(path: tuple) -> str:
    conv_bn = {"conv": "0", "bn": "1"}
    match path:
        case ("stem", part, leaf):
            return f"features.0.{conv_bn[part]}.{LEAVES[leaf]}"
        case ("last", part, leaf):
            return f"features.18.{conv_bn[part]}.{LEAVES[leaf]}"
        case ("classifier", leaf):
            return f"classifier.1.{LEAVES[leaf]}"
        case ("blocks", i, *inner, leaf):
            first = 0 if i == 0 else 1  # the first block has no expansion
            places = {
                ("expand", "conv"): "0.0",
                ("expand", "bn"): "0.1",
                ("depthwise", "conv"): f"{first}.0",
                ("depthwise", "bn"): f"{first}.1",
                ("project",): f"{first + 1}",
                ("bn",): f"{first + 2}",
            }
            return f"features.{i + 1}.conv.{places[tuple(inner)]}.{LEAVES[leaf]}"
    raise AssertionError(path)


def randomise(model: "torch.nn.Module") -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            continue
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.ndim > 1:  # keeps the scale of activations through the depth
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.normal_(0.3 if name.endswith("weight") else 0, 0.3, generator=generator)


def copy_weights(model: eca_jax.models.base.Backbone, state_dict: dict, key) -> None:
    """Every leaf of `model` from its PyTorch name; every tensor of the state dict used once."""
    unused = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    state = nnx.state(model)
    for path, variable in nnx.to_flat_state(state):
        name = key(path)
        value = state_dict[name].numpy()
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        assert variable.shape == value.shape, (path, name)
        variable.set_value(jnp.asarray(value))
        unused.remove(name)
    assert not unused
    nnx.update(model, state)


MODELS = {
    "resnet18": resnet_key,
    "resnet34": resnet_key,
    "resnet50": resnet_key,
    "resnet101": resnet_key,
    "resnet152": resnet_key,
    "mobilenet_v2": mobilenet_key,
}
# Where torchvision's network has the outputs that `features` names.
NODES = {name: {f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)} for name in MODELS} | {
    "mobilenet_v2": {f"features.{end}": f"stage{i + 1}" for i, end in enumerate((1, 3, 6, 10, 13, 16, 17))}
}


@pytest.mark.parametrize("size", [64, 97])
@pytest.mark.parametrize("name", MODELS)
def test_features_and_logits_are_torchvision_s(name, size):
    """float32 sums in another order, through up to 152 layers: within 1e-4 of each layer's scale."""
    theirs = torchvision.models.get_model(name).eval()
    randomise(theirs)
    ours = eca_jax.create_model(name, rngs=nnx.Rngs(0))
    copy_weights(ours, theirs.state_dict(), MODELS[name])
    ours.eval()

    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    extractor = torchvision.models.feature_extraction.create_feature_extractor(theirs, NODES[name])
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = {k: v.numpy().transpose(0, 2, 3, 1) for k, v in extractor(x).items()}
        expected["logits"] = theirs(x).numpy()

    graphdef, state = nnx.split(ours)

    @jax.jit
    def run(state, x):
        model = nnx.merge(graphdef, state)
        features = model.features(x)
        return features | {"logits": model.head(features[model.feature_info[-1].name])}

    actual = run(state, jnp.asarray(images))
    assert set(actual) == set(expected)
    for layer, value in expected.items():
        scale = np.abs(value).max()
        assert 1e-3 < scale < 1e6, (layer, scale)
        error = np.abs(np.asarray(actual[layer]) - value).max() / scale
        assert error < 1e-4, (layer, error)
