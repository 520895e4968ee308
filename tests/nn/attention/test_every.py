"""What holds for every attention, whatever it computes: JAX's transformations, narrow numbers, many devices.

The kinds are those of the table, so a new one is tested by itself; it may need a line in `OPTIONS` or `IDLE`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from eca_jax.data.loader import train_batches
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.data.sources import open_source
from eca_jax.models.base import Spacing
from eca_jax.models.resnet import BasicBlock
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig, Place, Slot, build_attention
from eca_jax.nn.bricks import Bricks
from eca_jax.sharding import make_mesh
from eca_jax.tasks import Classification
from eca_jax.training.program import build_program
from tests.nn.attention.checks import flat, randomise
from tests.tiny import brought_from_outside, register

CHANNELS, SIDE = 32, 8
OPTIONS = {"sa": {"groups": 4}, "ge": {"sides": (SIDE,)}, "ge_plus": {"sides": (SIDE,)}}
"""What a kind needs for 32 channels of 8 x 8 pixels."""
IDLE = {
    "cbam": ("spatial.conv.kernel",),  # the weight of the norm behind it starts at 0
    "triplet": ("hw.conv.kernel",),  # the same
    "srm": ("bn.scale",),  # what it scales is 0 for all examples, as the weights before it start at 0
    "gc": ("mask", "fc1", "norm"),  # the last layer starts at 0; the bias of the mask never has an effect
    "sa": ("norm_",),  # the weights of what is normalised start at 0
    "coordinate": ("fc1.bias",),  # the batch norm behind it takes it away
}
"""The beginnings of the paths of parameters whose gradient is 0 at the initial values."""


def some(*quick: str) -> list:
    """All kinds; those that are not quick are marked slow."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in ATTENTIONS]


def config_of(kind: str) -> AttentionConfig:
    return AttentionConfig(kind, **OPTIONS.get(kind, {}))


def block(kind: str, rngs: nnx.Rngs) -> BasicBlock:
    """A residual block in float64; batch norm takes the statistics of four examples."""
    bricks = Bricks(config_of(kind), rngs, batch_norm_group=4, dtype=jnp.float64, param_dtype=jnp.float64)
    return BasicBlock(CHANNELS, CHANNELS, Spacing(), Place(), False, 0.0, bricks)


def gradients(graphdef: nnx.GraphDef, x: jax.Array, *, rematerialise: bool = False):
    """(parameters, statistics) -> (output, statistics after it), gradients of a weighted sum of the output."""
    weights = np.random.default_rng(1).normal(size=x.shape)

    def loss(params: nnx.State, stats: nnx.State):
        model = nnx.merge(graphdef, params, stats, copy=True)

        def call(module: nnx.Module, x: jax.Array) -> jax.Array:  # as Backbone.run
            return module(x)

        y = (nnx.remat(call) if rematerialise else call)(model, x)
        return (y * weights).sum(), (y, nnx.state(model, nnx.BatchStat))

    def function(params: nnx.State, stats: nnx.State):
        (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
        return outputs, grads

    return function


def assert_same(a, b) -> None:
    """float64: sums in another order, some 1e-16 of the largest value of an array, grown by two batch norms."""

    def same(path, a, b):
        bound = 1e-11 * np.abs(b).max() + 1e-13
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, a, b)


@pytest.mark.parametrize("kind", some("cbam"))
@jax.enable_x64(True)
def test_jit_grad_vmap_over_seeds_and_rematerialisation(kind: str):
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: block(kind, nnx.Rngs(0))))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, SIDE, SIDE, CHANNELS)))

    def initialised(key: jax.Array) -> tuple[nnx.State, nnx.State]:
        return nnx.split(block(kind, nnx.Rngs(key)), nnx.Param, nnx.BatchStat)[1:]

    seeds = jax.jit(jax.vmap(initialised))(jax.random.split(jax.random.key(0), 2))
    one = jax.jit(gradients(graphdef, x))
    each = [one(*jax.tree.map(lambda leaf, i=i: leaf[i], seeds)) for i in range(2)]
    (y, _), grads = each[0]
    assert np.isfinite(y).all()
    for name, gradient in flat(grads).items():
        idle = name.startswith(tuple(f"attn.{beginning}" for beginning in IDLE.get(kind, ())))
        assert np.isfinite(gradient).all(), name
        assert (np.abs(gradient).max() > 1e-12) != idle, name

    together = jax.jit(jax.vmap(gradients(graphdef, x)))(*seeds)
    assert_same(together, jax.tree.map(lambda *leaves: np.stack(leaves), *each))
    first = jax.tree.map(lambda leaf: leaf[0], seeds)
    assert_same(jax.jit(gradients(graphdef, x, rematerialise=True))(*first), each[0])


@pytest.mark.parametrize("kind", some("srm"))
def test_bfloat16_is_near_float32(kind: str):
    """The same values in both types, and random parameters: only passes over the activation are narrow.

    A pass rounds its factor and its product, by at most 2^-9 each, and no attention has more than four passes behind
    one another: 2^-6 of the largest value. What is computed of averages is float32 in both.
    """
    slot = Slot(CHANNELS, Place())
    module = build_attention(config_of(kind), slot, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    randomise(module, rng)
    module.eval()
    narrow = jnp.asarray(rng.normal(size=(4, SIDE, SIDE, CHANNELS)), jnp.bfloat16)
    graphdef, state = nnx.split(module)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    got, want = run(state, narrow), np.asarray(run(state, narrow.astype(jnp.float32)))
    assert (got.dtype, want.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=2**-6 * np.abs(want).max())


CONFIG = Config(
    data=DataConfig(name="digits", train_split="train[:64]", eval_split="test[:8]", num_threads=1),
    task=Classification(PreprocessConfig(image_size=SIDE, eval_resize=SIDE, augment="none", flip=False)),
    optim=OptimConfig(lr=0.1),
    batch_size=16,
    epochs=1,
)


@functools.cache
def stepped(kind: str, devices: int, dtype: str):
    """The state after a step on so many devices, and the loss, on the host; the statistics of 4 examples together."""
    model = ModelConfig("tiny", attention=config_of(kind), width_multiplier=2.0, batch_norm_group=4, dtype=dtype)
    config = dataclasses.replace(CONFIG, model=model)
    program = build_program(config, make_mesh(jax.devices()[:devices]), num_examples=64, num_classes=10)
    (batch,) = train_batches(
        open_source("digits", config.data.train_split),
        config.task,
        seed=0,
        batch_size=config.batch_size,
        steps=range(1),
        sharding=program.batch_sharding,
        num_threads=1,
    )
    state, loss = program.train_step(program.init(), batch)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == devices
    assert int(state.skipped) == 0
    return jax.device_get((state.params, state.batch_stats, loss))


@pytest.mark.parametrize("kind", some("srm"))
def test_a_step_on_8_devices_is_the_step_on_1(kind: str):
    """A device has two examples, so that every group of statistics, also one inside an attention, is on two devices."""
    with brought_from_outside(), jax.enable_x64(True):
        register()
        assert_same(stepped(kind, 8, "float64"), stepped(kind, 1, "float64"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_step_in_bfloat16_has_nearly_the_loss_of_float32(kind: str):
    """Within 2% of each other: rounding to 8 bits in five layers, averaged over 16 examples."""
    with brought_from_outside():
        register()
        losses = [float(stepped(kind, 8, dtype)[2]) for dtype in ("float32", "bfloat16")]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
