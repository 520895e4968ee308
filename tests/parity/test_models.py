"""Every model against the authors' (stand-ins), torchvision's and timm's: conversion, outputs, gradients.

Weights and running statistics are random everywhere: `randomise` in authors.py.
"""

import copy
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import eca_jax  # noqa: E402
from eca_jax.convert.infer import infer  # noqa: E402
from eca_jax.convert.leaves import COUNTER, leaves  # noqa: E402
from eca_jax.convert.state_dict import (  # noqa: E402
    from_state_dict,
    momentum_to_state_dict,
    parameter_order,
    to_state_dict,
)
from eca_jax.models.base import Architecture, Backbone  # noqa: E402
from eca_jax.models.registry import INSIDE, PAPER, resolve_attention  # noqa: E402
from eca_jax.training.step import split  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity

TIMM = [*sorted({*eca_jax.list_models(), "mobilenetv2_100"} & set(timm.list_models()))]
SOURCES = {"ecanet": authors.NAMES, "torchvision": PAPER, "timm": TIMM}
MODELS = [(source, name) for source, names in SOURCES.items() for name in names]


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on few cores, threads that wait for one another and for JAX's take longer
    yield
    torch.set_num_threads(before)


def build(source: str, name: str) -> torch.nn.Module:
    """The real class, with random weights."""
    make = {"ecanet": authors.eca_model, "torchvision": torchvision.models.get_model, "timm": timm.create_model}
    return authors.randomise(make[source](name))


def our_name(source: str, name: str) -> str:
    return f"eca_{name}" if source == "ecanet" else {"mobilenetv2_100": "mobilenet_v2"}.get(name, name)


def inferred_source(source: str, name: str) -> str:
    """timm's plain ResNets have torchvision's names and layouts: nothing tells them apart."""
    return "torchvision" if source == "timm" and name in PAPER else source


def test_the_models_are_all_of_them():
    """What timm does not have: ours with the authors' ECA (checked against the stand-ins), and the paper's SE."""
    checked = {our_name(source, name) for source, name in MODELS}
    assert set(eca_jax.list_models()) - checked - set(INSIDE) == {f"se_{name}" for name in PAPER}


def assert_identical(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names in the same order, the same types, the same bits."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].shape == value.shape, name
        assert actual[name].tobytes() == value.tobytes(), name


def by_path(model: Backbone) -> dict[str, np.ndarray]:
    return {leaf.path: np.asarray(leaf.variable[...]) for leaf in leaves(model)}


def fill(model: Backbone) -> None:
    """Other random numbers than the state dict's: a negative zero and a subnormal one among them; variances above 0."""
    rng = np.random.default_rng(1)
    for leaf in leaves(model):
        value = rng.standard_normal(leaf.variable.shape, np.float32)
        value = np.abs(value) if leaf.name == "var" else value
        value.flat[0], value.flat[-1] = -0.0, np.float32(1e-42)
        leaf.variable.set_value(jnp.asarray(value))


@pytest.mark.parametrize(("source", "name"), MODELS)
def test_weights_go_both_ways_bit_for_bit(source, name):
    """PyTorch -> JAX -> PyTorch, then other numbers JAX -> PyTorch's own class -> JAX; and what they are of is seen."""
    theirs = build(source, name)
    tensors = authors.arrays(theirs)
    ours = from_state_dict(tensors)
    known, architecture = infer({key: value.shape for key, value in tensors.items() if not key.endswith(COUNTER)})
    assert known == inferred_source(source, name)
    attention = resolve_attention(our_name(source, name))
    assert getattr(attention.options, "kernel_sizes", "released") == "released"
    assert ours.architecture == Architecture(our_name(source, name), 1000, attention)
    assert_identical(to_state_dict(ours, source), tensors)
    assert parameter_order(ours, source) == [name for name, _ in theirs.named_parameters()]

    fill(ours)
    written = to_state_dict(ours, source)
    theirs.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in written.items()}, strict=True)
    back = from_state_dict(authors.arrays(theirs), source=source, architecture=architecture)
    assert_identical(by_path(back), by_path(ours))


@pytest.mark.parametrize(
    ("source", "theirs", "ours", "policy"),
    [
        ("ecanet", ("resnet50", {"sizes": (5, 5, 5, 7)}), "eca_resnet50", "adaptive"),
        ("ecanet", ("resnet18", {"sizes": (3, 5, 5, 5)}), "eca_resnet18", "adaptive"),
        ("ecanet", ("resnet18", {"sizes": (3, 3, 3, 3)}), "eca_resnet18", (3, 3, 3, 3)),
        ("ecanet", ("mobilenet_v2", {"sizes": (3, 3)}), "eca_mobilenet_v2", (3,) * 7),
        ("timm", ("resnet18", {"block_args": {"attn_layer": "eca"}}), "eca_resnet18", "adaptive"),
        ("timm", ("resnet50", {"block_args": {"attn_layer": "eca"}}), "eca_resnet50", "adaptive"),
    ],
)
def test_kernel_sizes_are_seen_in_the_weights(source, theirs, ours, policy):
    """Sizes that are not the published ones; timm's ECA on the paper's networks takes the formula's."""
    name, options = theirs
    make = authors.eca_model if source == "ecanet" else timm.create_model
    tensors = authors.arrays(authors.randomise(make(name, num_classes=10, **options)))
    model = from_state_dict(tensors)
    assert model.architecture.name == ours
    assert model.architecture.num_classes == 10
    assert model.architecture.attention.options.kernel_sizes == policy
    assert_identical(to_state_dict(model, source), tensors)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_without_gates_the_stand_ins_are_torchvision_s(name):
    plain, stand_in = build("torchvision", name).eval(), authors.eca_resnet(name).eval()
    for module in stand_in.modules():
        if hasattr(module, "eca"):
            module.eca = torch.nn.Identity()
    stand_in.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(stand_in(torch.ones(1, 3, 64, 64)), plain(torch.ones(1, 3, 64, 64)))


# Outputs: the paper's models from both sources, and timm's of every kind of stem, shortcut and attention.

COMPUTED = [
    *(model for model in MODELS if model[0] != "timm"),
    *(("timm", name) for name in ("ecaresnet26t", "ecaresnet50t", "ecaresnet50d", "ecaresnetlight", "ecaresnet101d")),
    *(("timm", name) for name in ("ecaresnet269d", "seresnet50", "resnet50d", "mobilenetv2_100")),
]
PLAIN_AND_DEEP = (("torchvision", "resnet101"), ("torchvision", "resnet152"))
"""Compiled, they take long, and in float32 they say nothing that the same with ECA does not."""
RESNET_STAGES = {f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}
STAGES = {
    "mobilenet_v2": {f"features.{end}": f"stage{i}" for i, end in enumerate((1, 3, 6, 10, 13, 16, 17), 1)},
    "mobilenetv2_100": {f"blocks.{i}": f"stage{i + 1}" for i in range(7)},
}
"""Where PyTorch's networks have the outputs that `features` names."""


def their_outputs(theirs: torch.nn.Module, stages: dict[str, str], images: np.ndarray) -> dict[str, np.ndarray]:
    outputs = {}

    def keep(name: str):
        def hook(module, args, output):  # copied: what follows may work in place
            outputs[name] = output.numpy().transpose(0, 2, 3, 1).copy()

        return hook

    hooks = [theirs.get_submodule(path).register_forward_hook(keep(name)) for path, name in stages.items()]
    with torch.no_grad():
        outputs["logits"] = theirs(authors.to_torch(images)).numpy()
    for hook in hooks:
        hook.remove()
    return outputs


def our_outputs(model: Backbone, x: jax.Array) -> dict[str, jax.Array]:
    features = model.features(x)
    return features | {"logits": model.head(features[model.feature_info[-1].name])}


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(*shape, 3))


@pytest.mark.parametrize(("source", "name"), [model for model in COMPUTED if model not in PLAIN_AND_DEEP])
def test_outputs_in_float32(source, name):
    """Every stage and the logits, compiled, of an odd size that is not square: within 2e-5 of each one's scale.

    A sum of n products in another order is off by about sqrt(n) roundings of 6e-8: 4e-6 for the 4608 of a 3x3
    convolution over 512 channels. Batch norm keeps every layer's scale, so depth adds such errors like noise.
    """
    theirs = build(source, name).eval()
    images = random_images(2, 65, 90).astype(np.float32)
    graphdef, state = nnx.split(from_state_dict(authors.arrays(theirs)))
    run = jax.jit(lambda state, x: our_outputs(nnx.merge(graphdef, state), x))
    expected = their_outputs(theirs, STAGES.get(name, RESNET_STAGES), images)
    worst, layer = authors.worst(run(state, jnp.asarray(images)), expected)
    print(f"{worst:.1e} in {layer}")
    assert worst < 2e-5, layer


@pytest.mark.parametrize(("source", "name"), COMPUTED)
def test_outputs_in_float64(source, name):
    """The same, where roundings are 1e-16: within 1e-10 there is room for thousands of them, and for no mistake."""
    theirs = build(source, name).eval().double()
    with jax.enable_x64(True):
        ours = from_state_dict(authors.arrays(theirs), **authors.FLOAT64)
        deep = any(number in name for number in ("101", "152", "269"))  # more of the same blocks
        for shape in ((1, 65, 90),) if deep else ((2, 64, 64), (1, 65, 90)):
            images = random_images(*shape)
            actual = our_outputs(ours, jnp.asarray(images))
            assert actual["logits"].dtype == jnp.float64
            expected = their_outputs(theirs, STAGES.get(name, RESNET_STAGES), images)
            worst, layer = authors.worst(actual, expected)
            print(f"{shape}: {worst:.1e} in {layer}")
            assert worst < 1e-10, (shape, layer)


@pytest.mark.parametrize(
    ("source", "name", "output_stride"),
    [
        ("torchvision", "resnet50", 16),
        ("torchvision", "resnet50", 8),
        ("timm", "resnet18", 16),
        ("timm", "resnet18", 8),
        ("timm", "ecaresnet26t", 16),
        ("timm", "ecaresnet26t", 8),
        ("timm", "mobilenetv2_100", 16),
        ("timm", "mobilenetv2_100", 8),
    ],
)
def test_dilated_stages_in_float32(source, name, output_stride):
    """As above: torchvision's and timm's dilated networks, with basic blocks, averaged shortcuts, depthwise kernels."""
    if source == "torchvision":
        dilated = [False, output_stride == 8, True]
        theirs = torchvision.models.get_model(name, replace_stride_with_dilation=dilated)
    else:
        theirs = timm.create_model(name, output_stride=output_stride)
    theirs = authors.randomise(theirs).eval()
    images = random_images(2, 65, 90).astype(np.float32)
    ours = from_state_dict(authors.arrays(theirs), output_stride=output_stride)
    assert ours.feature_info[-1].stride == output_stride
    graphdef, state = nnx.split(ours)
    run = jax.jit(lambda state, x: our_outputs(nnx.merge(graphdef, state), x))
    expected = their_outputs(theirs, STAGES.get(name, RESNET_STAGES), images)
    for feature in ours.feature_info:
        sides = [math.ceil(side / feature.stride) for side in images.shape[1:3]]
        assert expected[feature.name].shape == (2, *sides, feature.channels)
    worst, layer = authors.worst(run(state, jnp.asarray(images)), expected)
    print(f"{worst:.1e} in {layer}")
    assert worst < 2e-5, layer


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["resnet18", "ecaresnet26t", "mobilenetv2_100"])
def test_a_stem_of_three_channels_is_adapted_as_timm_does(name, in_channels):
    """timm loads the state dict into a network of other channels; ours has the same bits, and the same outputs."""
    tensors = authors.arrays(build("timm", name))
    said = {"state_dict": {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=said, in_chans=in_channels).eval()
    adapted = authors.arrays(theirs)
    ours = from_state_dict(tensors, in_channels=in_channels)
    assert ours.architecture.in_channels == from_state_dict(adapted).architecture.in_channels == in_channels
    assert_identical(to_state_dict(ours, inferred_source("timm", name)), adapted)
    if in_channels != 4:
        return

    images = np.random.default_rng(1).normal(size=(2, 33, 40, in_channels)).astype(np.float32)
    with torch.no_grad():
        features = theirs.forward_features(authors.to_torch(images))
        expected = {pre: theirs.forward_head(features, pre_logits=pre).numpy() for pre in (False, True)}
    graphdef, state = nnx.split(ours)

    def heads(state: nnx.State, x: jax.Array) -> dict[bool, jax.Array]:
        model = nnx.merge(graphdef, state)
        last = model.features(x)[model.feature_info[-1].name]
        return {pre: model.head(last, pre_logits=pre) for pre in (False, True)}

    worst, pre_logits = authors.worst(jax.jit(heads)(state, jnp.asarray(images)), expected)
    print(f"{worst:.1e}, pre_logits={pre_logits}")
    assert worst < 2e-5


def test_a_network_for_other_channels_is_folded_too():
    """What has two channels becomes one for one, five or three: timm's rule is about the number that there was."""
    tensors = authors.arrays(authors.randomise(timm.create_model("resnet18", in_chans=2)))
    for in_channels in (1, 3, 5):
        expected = timm.models.adapt_input_conv(in_channels, torch.from_numpy(tensors["conv1.weight"]), base_chans=2)
        ours = from_state_dict(tensors, in_channels=in_channels)
        np.testing.assert_array_equal(to_state_dict(ours, "timm")["conv1.weight"], expected.numpy())


def test_dropout_is_before_what_a_classifier_gets_as_in_timm():
    """In training mode, whatever timm's numbers: about as many zeros, the others scaled up; in evaluation mode none."""
    theirs = timm.create_model("resnet18", drop_rate=0.25)
    ours = nnx.eval_shape(lambda: eca_jax.create_model("resnet18", dropout=0.25, rngs=nnx.Rngs(0)))
    last = np.ones((8, 512, 1, 1), np.float32)
    for training in (True, False):
        (theirs.train if training else theirs.eval)()
        (ours.train if training else ours.eval)()
        expected = theirs.forward_head(torch.from_numpy(last), pre_logits=True).numpy()
        x = ours.head(jnp.asarray(last.transpose(0, 2, 3, 1)), pre_logits=True, rngs=nnx.Rngs(dropout=0))
        np.testing.assert_allclose(np.unique(x), np.unique(expected), rtol=1e-6)
        deviation = (0.25 * 0.75 / expected.size) ** 0.5
        assert abs(np.mean(x == 0) - np.mean(expected == 0)) <= 7 * deviation * training


def loss_of(graphdef: nnx.GraphDef):
    """(parameters, statistics, images, labels) -> (cross entropy, (logits, statistics after the batch))."""

    def loss(params, batch_stats, images, labels):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = model(images)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, (logits, split(model)[2])

    return loss


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("ecanet", "resnet18"),
        ("ecanet", "resnet50"),
        ("ecanet", "mobilenet_v2"),
        ("timm", "ecaresnet26t"),
        ("timm", "seresnet50"),
    ],
)
def test_gradients(source, name):
    """Of the cross entropy by every parameter, through the statistics of the batch, within 1e-8 of each one's scale.

    float64. Backwards through batch norm on 8 values a channel (one of each image in the last stage) a rounding
    grows by some powers of ten, in MobileNetV2, where nothing bounds the projections, the most.
    """
    theirs = authors.without_dropout(build(source, name).double().train())
    images, labels = random_images(8, 32, 32), np.arange(8)
    with jax.enable_x64(True):
        ours = from_state_dict(authors.arrays(theirs), dropout=0.0, **authors.FLOAT64)
        ours.train()
        graphdef, params, batch_stats = split(ours)
        run = jax.jit(jax.value_and_grad(loss_of(graphdef), has_aux=True))
        (loss, (_, after)), grads = run(params, batch_stats, jnp.asarray(images), jnp.asarray(labels))
        expected = torch.nn.functional.cross_entropy(theirs(authors.to_torch(images)), torch.from_numpy(labels))
        expected.backward()
        assert abs(float(loss) - expected.item()) < 1e-12 * expected.item()
        worst, parameter = authors.worst(momentum_to_state_dict(ours, grads, source), authors.gradients(theirs))
        print(f"{worst:.1e} in {parameter}")
        assert worst < 1e-8, parameter

        moved = to_state_dict(nnx.merge(graphdef, params, after), source)
        running = {key: value for key, value in authors.arrays(theirs).items() if "running" in key}
        worst, statistic = authors.worst({key: moved[key] for key in running}, running)
        print(f"{worst:.1e} in {statistic}")
        assert worst < 1e-10, statistic


def test_batch_norm_groups_are_the_devices_of_pytorch():
    """The paper's 256 images in groups of 64, in a whole network: what four GPUs with statistics of their own compute.

    Each part's outputs are a GPU's, the gradient is the average of the GPUs', and the running statistics are the
    average of what the GPUs would hold (PyTorch saves the first one's). Two batches, so that averages move on. float64.
    """
    first = authors.randomise(authors.eca_resnet("resnet18", num_classes=10, divisor=8)).double().train()
    gpus = [first, *(copy.deepcopy(first) for _ in range(3))]
    with jax.enable_x64(True):
        ours = from_state_dict(authors.arrays(first), batch_norm_group=64, **authors.FLOAT64)
        ours.train()
        assert ours.architecture.width_multiplier == 1 / 8
        graphdef, params, batch_stats = split(ours)
        run = jax.jit(jax.grad(loss_of(graphdef), has_aux=True))
        rng = np.random.default_rng(1)
        for batch in range(2):
            images = rng.normal(batch, 1 + batch, size=(256, 32, 32, 3))
            images += rng.normal(size=(256, 1, 1, 3)).cumsum(0) / 8  # groups that differ
            labels = rng.integers(10, size=256)
            grads, (logits, batch_stats) = run(params, batch_stats, jnp.asarray(images), jnp.asarray(labels))
            for i, gpu in enumerate(gpus):
                part = slice(64 * i, 64 * (i + 1))
                gpu.zero_grad()
                theirs = gpu(authors.to_torch(images[part]))
                torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels[part])).backward()
                assert authors.error(logits[part], theirs.detach().numpy()) < 1e-10

            def average(dicts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
                return {key: np.mean([values[key] for values in dicts], axis=0) for key in dicts[0]}

            expected = average([authors.gradients(gpu) for gpu in gpus])
            worst, name = authors.worst(momentum_to_state_dict(ours, grads, "ecanet"), expected)
            print(f"gradients, batch {batch}: {worst:.1e} in {name}")
            assert worst < 1e-8, name

            moved = to_state_dict(nnx.merge(graphdef, params, batch_stats), "ecanet")
            held = [{key: value for key, value in authors.arrays(gpu).items() if "running" in key} for gpu in gpus]
            worst, name = authors.worst({key: moved[key] for key in held[0]}, average(held))
            print(f"statistics, batch {batch}: {worst:.1e} in {name}")
            assert worst < 1e-10, name
            # The groups are not alike: one GPU's statistics are others than the average.
            assert authors.worst(held[0], average(held))[0] > 1e-2
