"""Forward mode and second derivatives of whole networks, in training and in evaluation, in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eca_jax
from eca_jax.models import mobilenetv2
from eca_jax.models.resnet import VARIANTS, ResNet
from eca_jax.nn import AttentionConfig
from eca_jax.nn.bricks import Bricks

STEP = {"evaluation": 1e-6, "training": 1e-9}
"""Of a difference, in float64, so that no ReLU bends and no maximum moves within it. In training that takes a smaller
one: fifty layers, normalised by the statistics of four images each, are steep (slopes of 1e4 and more)."""
TINY = {"num_classes": 3, "width_multiplier": 0.125, "dropout": 0.0}
WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def short_resnet() -> ResNet:
    """Stem, max pool and one bottleneck with its shortcut."""
    variant = dataclasses.replace(VARIANTS["resnet50"], depths=(1, 0, 0, 0))
    return ResNet(variant, Bricks(AttentionConfig("se"), nnx.Rngs(0), **WIDE), **TINY)


def short_mobilenet(monkeypatch: pytest.MonkeyPatch) -> mobilenetv2.MobileNetV2:
    """Stem, one inverted residual with its shortcut, last convolution."""
    monkeypatch.setattr(mobilenetv2, "STAGES", (mobilenetv2.Stage(2, 32, 1, 1),))
    return mobilenetv2.MobileNetV2(Bricks(AttentionConfig("eca"), nnx.Rngs(0), **WIDE), **TINY)


def apart(a: Any, b: Any) -> float:
    """The largest distance between two trees of arrays, relative to the largest number of all."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return float(max(jnp.abs(x - y).max() for x, y in pairs) / max(jnp.abs(y).max() for _, y in pairs))


def check(model: nnx.Module, train: bool, size: int) -> None:
    """Slope and curvature along a random direction against central differences, and reverse over reverse."""
    (model.train if train else model.eval)()
    step = STEP["training" if train else "evaluation"]
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(0)
    shape = (4, size, size, 3)

    def random(scale: float):
        return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * scale), (params, jnp.zeros(shape)))

    # Away from fresh weights, whose biases of 0 leave many activations at the bend of ReLU.
    point, along = jax.tree.map(jnp.add, (params, jnp.zeros(shape)), random(0.2)), random(1.0)
    rest = jax.tree.map(lambda s: s + jnp.asarray(rng.uniform(0.1, 1, s.shape)) if s.dtype == jnp.float64 else s, rest)

    def loss(point):
        params, x = point
        logits = nnx.merge(graphdef, params, rest, copy=True)(x)
        return jnp.square(logits - jnp.arange(logits.size).reshape(logits.shape)).mean()

    def slope(point):
        gradient = jax.grad(loss)(point)
        return sum(jnp.vdot(g, v) for g, v in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))

    value_and_grad = jax.value_and_grad(loss)
    compiled = jax.jit(value_and_grad)
    above, below = (compiled(jax.tree.map(lambda p, v, s=s: p + s * v, point, along)) for s in (step, -step))
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), above, below)
    tangents = jax.jit(lambda point: jax.jvp(value_and_grad, (point,), (along,))[1])(point)
    assert apart(tangents[0], differences[0]) < 1e-6
    assert apart(tangents[1], differences[1]) < 1e-6
    assert apart(tangents[1], jax.jit(jax.grad(slope))(point)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@jax.enable_x64(True)
def test_a_short_resnet(train):
    check(short_resnet(), train, 16)


@pytest.mark.slow
@jax.enable_x64(True)
def test_a_short_mobilenet_in_training(monkeypatch):
    check(short_mobilenet(monkeypatch), True, 16)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["eca_resnet18", "se_resnet50", "eca_mobilenet_v2"])
@jax.enable_x64(True)
def test_whole_networks(name, train):
    check(eca_jax.create_model(name, rngs=nnx.Rngs(0), **TINY, **WIDE), train, 32)


def operations(jaxpr) -> set[str]:
    """The names of all operations of a jaxpr, with those of the jaxprs in it."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {equation.primitive.name}
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found |= operations(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.parametrize("name", ["eca_resnet18", "se_resnet50", "eca_mobilenet_v2", "ecaresnet26t"])
def test_evaluation_is_differentiated_by_autodiff_alone(name):
    """Its tangent holds no `linear_map`, which that of training holds."""
    model = nnx.eval_shape(lambda: eca_jax.create_model(name, rngs=nnx.Rngs(0), **TINY))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def of_tangent():
        graphdef, state = nnx.split(model)

        def tangent(state, x):
            return jax.jvp(lambda x: nnx.merge(graphdef, state, copy=True)(x), (x,), (x,))

        return operations(jax.make_jaxpr(tangent)(state, x).jaxpr)

    assert "linear_map" in of_tangent()
    model.eval()
    assert "linear_map" not in of_tangent()
