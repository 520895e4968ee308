"""What XLA is told besides the program changes how fast it is, not what it says."""

import jax
import numpy as np
import pytest
from flax import nnx

from eca_jax import compiler_options as module
from eca_jax.compiler_options import compiler_options
from eca_jax.models.base import Spacing
from eca_jax.models.mobilenetv2 import InvertedResidual
from eca_jax.models.resnet import Bottleneck
from eca_jax.nn import BatchNorm
from eca_jax.nn.attention import AttentionConfig, Place
from eca_jax.nn.bricks import Bricks


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Bottleneck, InvertedResidual])
def test_blocks_say_the_same_with_them(kind, training):
    bricks = Bricks(AttentionConfig("eca"), nnx.Rngs(0))
    place, spacing = Place(), Spacing()
    if kind is Bottleneck:
        block = Bottleneck(64, 16, spacing, place, False, 0.0, bricks)
    else:
        block = InvertedResidual(64, 64, spacing, 6, place, 0.0, bricks)
    block.train() if training else block.eval()
    rng = np.random.default_rng(0)
    for _, norm in nnx.iter_modules(block):
        if isinstance(norm, BatchNorm):
            norm.mean.set_value(rng.normal(size=norm.mean.shape).astype(np.float32))
            norm.var.set_value(rng.uniform(0.5, 2, norm.var.shape).astype(np.float32))
    x = rng.normal(size=(8, 28, 27, 64)).astype(np.float32)
    graphdef, state = nnx.split(block)

    def loss(state, x):
        y = nnx.merge(graphdef, state, copy=True)(x)
        return (y**2).sum(), y

    program = jax.jit(jax.value_and_grad(loss, 1, has_aux=True)).lower(state, x)
    plain, with_options = program.compile(), program.compile(compiler_options("cpu"))
    assert plain.as_text() != with_options.as_text()
    for have, want in zip(jax.tree.leaves(with_options(state, x)), jax.tree.leaves(plain(state, x)), strict=True):
        # Sums of up to 6,048 terms (over the pixels of 8 examples), in another order.
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * float(np.abs(want).max()))


def test_only_the_cpu_has_some():
    assert compiler_options() == compiler_options("cpu") != {}
    assert compiler_options("tpu") == compiler_options("gpu") == {}


def test_a_jaxlib_without_them_goes_without(monkeypatch):
    monkeypatch.setitem(module.OPTIONS, "no_such_platform", {"xla_no_such_option": "1"})
    assert compiler_options("no_such_platform") == {}
