"""Networks whose attention is inside of their blocks (GCT, BA, EMCA): counts, training, files, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eca_jax
from eca_jax.analysis import complexity
from eca_jax.convert.convert import convert
from eca_jax.convert.pretrained import load
from eca_jax.errors import EcaJaxError
from eca_jax.models.ba_resnet import with_bridges
from eca_jax.models.config import ModelConfig
from eca_jax.models.emca_resnet import EMCAResNet, with_memory
from eca_jax.models.registry import gated_convolutions, register_backbone
from eca_jax.models.resnet import BasicBlock, ResNet, Variant
from tests.convert.test_convert import equal, randomised
from tests.tiny import brought_from_outside

PLAIN = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "mobilenet_v2": 3_504_872}
ADDED = {
    # 3 weights for every input channel of every convolution; 67,593 was counted in the authors' network.
    "gct_resnet18": 3 * 3_843,
    "gct_resnet34": 3 * 7_555,
    "gct_resnet50": 67_593,
    "gct_mobilenet_v2": 3 * 15_779,
    # Basic blocks: 3 c^2 / 16 + c / 4; bottlenecks: 5 c^2 / 32 + 3 c / 8, the authors' count.
    "ba_resnet18": 3 * 696_320 // 16 + 1_920 // 4,
    "ba_resnet34": 3 * 1_257_472 // 16 + 3_776 // 4,
    "ba_resnet50": 3_149_344,
    # 2 k + S + 3 a block, k in the first of a stage; the authors' 261 without the 44 that are never used.
    "emca_resnet18": (3 + 10) + (5 + 15) + (5 + 16) + (5 + 17),
    "emca_resnet50": 261 - 44,
}


def abstract(name: str, **options) -> nnx.Module:
    return nnx.eval_shape(lambda: eca_jax.create_model(name, rngs=nnx.Rngs(0), **options))


@pytest.mark.parametrize("name", ADDED)
def test_parameter_counts(name):
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(abstract(name), nnx.Param)))
    assert found - PLAIN[name.split("_", 1)[1]] == ADDED[name]


def test_they_are_listed():
    resnets = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    assert set(eca_jax.list_models("gct_*")) == {f"gct_{name}" for name in (*resnets, "mobilenet_v2")}
    for kind in ("ba", "emca"):
        assert set(eca_jax.list_models(f"{kind}_*")) == {f"{kind}_{name}" for name in resnets}


SHORT = Variant(BasicBlock, (1, 2, 0, 0))
FACTORIES = {
    "gct": functools.partial(gated_convolutions, functools.partial(ResNet, SHORT)),
    "ba": functools.partial(ResNet, with_bridges(SHORT)),
    "emca": functools.partial(EMCAResNet, with_memory(SHORT)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "emca" else pytest.mark.slow) for kind in FACTORIES]
)
def test_all_of_a_network_is_trained(kind, dtype, rng):
    """With stochastic depth, the blocks computed again in the backward pass."""
    images, labels = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32), jnp.arange(8) % 4
    with brought_from_outside():
        register_backbone("short", FACTORIES[kind])
        settings = {"num_classes": 4, "width_multiplier": 0.25, "small_stem": True, "dtype": dtype}
        model = eca_jax.create_model("short", rngs=nnx.Rngs(0), drop_path=0.1, rematerialise=True, **settings)
    before = nnx.to_flat_state(nnx.clone(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, key):
        def loss(model):
            logits = model(images, rngs=nnx.Rngs(dropout=key))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(step(model, optimizer, jax.random.key(i))) for i in range(8)]
    assert losses[-1] < 0.7 * losses[0], losses
    after = dict(nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    for path, value in before:
        assert not np.array_equal(value[...], after[path][...]), path


@pytest.mark.parametrize(
    "name", ["gct_resnet18", *(pytest.param(f"{kind}_resnet18", marks=pytest.mark.slow) for kind in ("ba", "emca"))]
)
def test_files(name, tmp_path):
    """Our own gives the model back; the others have no such networks, and say so in a line."""
    model = randomised(name)
    line = eca_jax.save(model, file := tmp_path / "own.safetensors")
    assert line.startswith(f"{name} of eca_jax: {model.architecture.num_classes} classes"), line
    loaded = load(file)
    assert equal(loaded.model, model)
    for to, target in (("torchvision", "t.safetensors"), ("timm", "timm"), ("ecanet", "e.safetensors")):
        with pytest.raises(EcaJaxError, match=rf"^{to} has no model with the backbone '{name}'; write it as safetens"):
            convert(file, tmp_path / target, to)
    with pytest.raises(EcaJaxError, match=f"the weights are of '{name}', the model asked for is 'resnet18'"):
        eca_jax.create_model("resnet18", pretrained=file, rngs=nnx.Rngs(0))


def test_a_gct_on_the_image_is_not_adapted_to_other_channels(tmp_path):
    model = randomised("gct_resnet18")
    eca_jax.save(model, file := tmp_path / "own.safetensors")
    with pytest.raises(EcaJaxError, match=r"of another shape: conv1\.gct\.alpha \(3,\) instead of \(1,\)"):
        eca_jax.load_pretrained(file, in_channels=1)
    assert eca_jax.load_pretrained(file, in_channels=1, skip=("conv1.*",)).in_channels == 1


@pytest.mark.parametrize("name", ["gct_resnet50", "ba_resnet50", "emca_resnet50"])
def test_another_attention_is_refused(name):
    with pytest.raises(EcaJaxError, match=f"model '{name}' has its attention inside of its blocks, but .* 'eca'"):
        ModelConfig(name, attention="eca")  # pyright: ignore[reportArgumentType]


def test_bridge_attention_is_counted_too():
    """The count looks at one image, with statistics of the batch in every batch norm."""
    assert complexity(abstract("ba_resnet18"), 32).parameters == PLAIN["resnet18"] + ADDED["ba_resnet18"]
