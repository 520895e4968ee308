"""Attention modules against timm's, with timm's weights and running statistics by the conversion's rules."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm_layers = pytest.importorskip("timm.layers")

from eca_jax.nn.attention import CBAM, GC, CoordinateAttention  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity
PAIRS = [
    ("cbam", 32, {}, CBAM, {"bias": False, "order": "mean_max"}),
    ("cbam", 32, {"mlp_bias": True}, CBAM, {"order": "mean_max"}),
    ("gca", 64, {}, GC, {"reduction": 8, "epsilon": 1e-6}),
    ("gca", 64, {"rd_ratio": 1 / 16}, GC, {"epsilon": 1e-6}),
    *(("coord", c, {}, CoordinateAttention, {"reduction": 24, "rounded": True, "bias": False}) for c in (64, 320, 512)),
    ("coord", 64, {"rd_channels": 8, "bias": True}, CoordinateAttention, {}),  # the authors' widths
    ("coord", 512, {"rd_channels": 16, "bias": True}, CoordinateAttention, {}),
]
"""timm's name, channels, timm's arguments; our class, its arguments."""


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("name", "channels", "arguments", "layer", "options"), PAIRS)
def test_a_module_is_timm_s(rng, name, channels, arguments, layer, options, train):
    """float32: within 1e-6 of the largest value, in evaluation and with the statistics of the batch."""
    theirs = authors.randomise(timm_layers.create_attn(name, channels, **arguments))
    ours = layer(channels, **options, rngs=nnx.Rngs(0))
    authors.exchange(ours, theirs)
    (theirs.train if train else theirs.eval)()
    (ours.train if train else ours.eval)()
    x = rng.normal(size=(3, 9, 7, channels)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(authors.to_torch(x)).numpy().transpose(0, 2, 3, 1)
    y = nnx.jit(lambda module, x: module(x))(ours, jnp.asarray(x))
    assert authors.error(y, expected) < 1e-6
