"""The end of a residual branch against the plain formula, written out in float64, forward and gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.models.base import Spacing
from eca_jax.models.mobilenetv2 import InvertedResidual
from eca_jax.models.resnet import BasicBlock, Bottleneck
from eca_jax.nn.attention import AttentionConfig, Place
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.norm import BatchNorm
from eca_jax.nn.tail import affine_relu, tail

ATTENTIONS = {
    "eca": AttentionConfig("eca"),
    "eca_circular": AttentionConfig("eca", circular=True),
    "eca_ns": AttentionConfig("eca_ns"),
    "se": AttentionConfig("se", reduction=4),
    "se_bias": AttentionConfig("se", reduction=4, bias=True),
}
PLACE = Place(released=3)
BLOCKS = {
    "bottleneck": lambda c, stride, bricks: Bottleneck(c, c // 4, Spacing(stride), PLACE, False, 0.0, bricks),
    "bottleneck_shortcut": lambda c, stride, bricks: Bottleneck(c, 4, Spacing(stride), PLACE, True, 0.0, bricks),
    "basic": lambda c, stride, bricks: BasicBlock(c, 12, Spacing(stride), PLACE, False, 0.0, bricks),
    "inverted": lambda c, stride, bricks: InvertedResidual(c, c, Spacing(1), 2, PLACE, 0.0, bricks),
    "inverted_no_shortcut": lambda c, stride, bricks: InvertedResidual(c, 12, Spacing(stride), 2, PLACE, 0.0, bricks),
}


def normed(norm: BatchNorm, x: jax.Array) -> jax.Array:
    """Batch norm as it is written in a book."""
    mean, var = norm.mean[...], norm.var[...]
    if not norm.use_running_average:
        groups = x.reshape(-1, norm.group_size or len(x), *x.shape[1:])
        mean = jnp.repeat(groups.mean((1, 2, 3)), groups.shape[1], 0)[:, None, None]
        var = jnp.repeat(groups.var((1, 2, 3)), groups.shape[1], 0)[:, None, None]
    return (x - mean) / jnp.sqrt(var + 1e-5) * norm.scale[...] + norm.bias[...]


def gated(attention, x: jax.Array) -> jax.Array:
    """Attention as the paper has it: average, gate, scale."""
    return x * attention.gate(x.mean((1, 2)))[:, None, None]


def by_hand(block: nnx.Module, x: jax.Array) -> jax.Array:
    """What a block computes, each layer after the other."""
    if isinstance(block, InvertedResidual):
        h = x
        for layer in (block.expand, block.depthwise):
            h = jnp.clip(normed(layer.bn, layer.conv(h)), 0, 6)
        y = gated(block.attn, normed(block.bn, block.project(h)))
        return x + y if block.residual else y
    shortcut = x
    if block.downsample is not None:
        for layer in block.downsample.layers:
            shortcut = normed(layer, shortcut) if isinstance(layer, BatchNorm) else layer(shortcut)
    h = jnp.maximum(normed(block.bn1, block.conv1(x)), 0)
    if isinstance(block, Bottleneck):
        h = jnp.maximum(normed(block.bn2, block.conv2(h)), 0)
    last, norm = (block.conv3, block.bn3) if isinstance(block, Bottleneck) else (block.conv2, block.bn2)
    return jnp.maximum(gated(block.attn, normed(norm, last(h))) + shortcut, 0)


def randomised(block: nnx.Module, rng: np.random.Generator) -> nnx.Module:
    """With parameters and statistics that no initialisation would give."""
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Param | nnx.BatchStat):
            variable[...] = jnp.asarray(rng.uniform(0.3, 1.5, variable.shape) * rng.choice([-1, 1]))
        if isinstance(variable, nnx.BatchStat):
            variable[...] = jnp.abs(variable[...])
    return block


# Every block with every attention, the statistics group and the sizes by turns.
CASES = [
    (block, attention, *rest)
    for (block, attention), rest in zip(
        itertools.product(BLOCKS, ATTENTIONS),
        itertools.cycle([(None, 1, 5, 7), (2, 2, 5, 6), (None, 2, 7, 4), (2, 1, 1, 3)]),
        strict=False,
    )
]


@pytest.mark.parametrize(("name", "attention", "group", "stride", "height", "width"), CASES)
@jax.enable_x64(True)
def test_blocks_are_the_plain_formula(name, attention, group, stride, height, width):
    rng = np.random.default_rng(sum(map(ord, name + attention)))
    bricks = Bricks(ATTENTIONS[attention], nnx.Rngs(0), group, dtype=jnp.float64, param_dtype=jnp.float64)
    block = randomised(BLOCKS[name](16, stride, bricks), rng)
    x = jnp.asarray(rng.normal(size=(4, height, width, 16)))
    weights = jnp.asarray(rng.normal(size=jax.eval_shape(lambda x: by_hand(block, x), x).shape))
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)

    def values(run, train: bool):
        def loss(params, x):
            copy = nnx.merge(graphdef, params, rest, copy=True)
            (copy.train if train else copy.eval)()
            y = run(copy, x)
            return (y * weights).sum(), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    compare = jax.jit(
        lambda: [
            jax.tree.map(
                lambda a, b: jnp.abs(a - b).max() / jnp.abs(b).max(),
                values(lambda block, x: block(x), train),
                values(by_hand, train),
            )
            for train in (True, False)
        ]
    )
    assert max(map(float, jax.tree.leaves(compare()))) < 1e-12


def test_nothing_flows_back_through_a_pixel_that_relu_made_zero():
    x, one = jnp.array([-2.0, 0.0, 2.0]).reshape(1, 1, 3, 1), jnp.ones((1, 1, 1, 1))
    dx, dscale, doffset, dshortcut = jax.grad(lambda *a: affine_relu(*a, x.dtype).sum(), (0, 1, 2, 3))(
        x, one, 0 * one, 0 * x
    )
    assert dx.ravel().tolist() == dshortcut.ravel().tolist() == [0, 0, 1]
    assert (dscale.item(), doffset.item()) == (2, 1)


def _block(attention: str, dtype=jnp.float32) -> Bottleneck:
    bricks = Bricks(AttentionConfig(attention), nnx.Rngs(0), dtype=dtype)
    return Bottleneck(64, 16, Spacing(1), PLACE, False, 0.0, bricks)


def _sums_over_outputs(block: nnx.Module) -> int:
    """How often a function sums over an array as large as the block's output (2, 8, 8, 64)."""
    graphdef, state = nnx.split(block)
    jaxpr = jax.make_jaxpr(lambda x: nnx.merge(graphdef, state, copy=True)(x))(jnp.ones((2, 8, 8, 64)))

    def count(jaxpr) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            total += eqn.primitive.name == "reduce_sum" and eqn.invars[0].aval.shape == (2, 8, 8, 64)
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                total += count(inner) if hasattr(inner, "eqns") else 0
        return total

    return count(jaxpr.jaxpr)


@pytest.mark.parametrize("attention", ["eca", "eca_ns", "se"])
def test_a_gate_adds_no_sum_over_the_output_to_those_of_batch_norm(attention):
    block, plain = _block(attention), _block("none")
    assert _sums_over_outputs(block) == _sums_over_outputs(plain) == 2  # first and second moments
    block.eval(), plain.eval()
    assert _sums_over_outputs(block) == _sums_over_outputs(plain) == 0


def test_another_attention_is_called_as_it_stands(rng):
    class Halve(nnx.Module):
        def __call__(self, x):
            return x / 2

    block = _block("none")
    x = jnp.asarray(rng.normal(size=(4, 5, 5, 64)), jnp.float32)
    block.attn = Halve()
    y = block.bn3(block.conv3(x[..., :16])) / 2
    got = tail(
        x[..., :16], block.conv3, block.bn3, block.attn, drop_path=block.drop_path, rngs=None, shortcut=x, relu=True
    )
    np.testing.assert_allclose(got, np.maximum(y + x, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_stays_as_close_to_float32_with_a_gate_as_without(rng, train):
    x = jnp.asarray(rng.normal(size=(8, 6, 6, 64)), jnp.float32)

    def error(attention: str) -> float:
        wide, narrow = _block(attention), _block(attention, jnp.bfloat16)
        for block in (wide, narrow):
            (block.train if train else block.eval)()
        return float(jnp.abs(wide(x) - narrow(x.astype(jnp.bfloat16))).max() / jnp.abs(wide(x)).max())

    # Three convolutions, each rounding its output to 8 bits: a few times 2^-9 of the largest value.
    assert error("none") < 0.02
    assert error("eca") < 0.02
