"""Gather-excite against timm's, as far as timm 1.0.31 can build it.

With `extra_params` its constructor fails, so the gather of an extent is built here from PyTorch's layers and put into
timm's module, which then runs it. Its gather of the whole map with parameters is padded, unlike the official one.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm_layers = pytest.importorskip("timm.layers")

from eca_jax.nn.attention import GE, AttentionConfig, Slot, build_attention  # noqa: E402
from eca_jax.nn.attention.gather_excite import nearest  # noqa: E402

pytestmark = pytest.mark.parity


def assert_same(ours, theirs, rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    got = nnx.jit(lambda m, x: m(x))(ours, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(x).max())


@pytest.mark.parametrize("extent", [None, 2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 14, 14, 8), (2, 7, 10, 8), (2, 1, 3, 8)])
def test_theta_minus_is_timm_s(rng, extent, shape):
    theirs = timm_layers.GatherExcite(8, extent=extent or 0, use_mlp=False)
    ours = build_attention(AttentionConfig("ge_minus", extent=extent), Slot(8), nnx.Rngs(0))
    assert_same(ours, theirs, rng, shape)


@pytest.mark.parametrize("extent", [2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 14, 14, 8), (2, 7, 10, 8)])
def test_theta_of_an_extent_is_timm_s(rng, extent, shape):
    ours = GE(8, extent=extent, rngs=nnx.Rngs(0))
    ours.eval()
    layers = []
    for conv, norm in zip(ours.gather.convs, ours.gather.norms, strict=True):
        kernel = torch.from_numpy(np.array(conv.kernel[...]).transpose(3, 2, 0, 1).copy())
        twin, twin_norm = torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), torch.nn.BatchNorm2d(8)
        twin.weight.data = kernel
        for mine, name in ((norm.scale, "weight"), (norm.bias, "bias"), (norm.mean, "running_mean")):
            mine.set_value(jnp.asarray(rng.normal(size=8), jnp.float32))
            getattr(twin_norm, name).data = torch.from_numpy(np.array(mine[...]))
        layers += [twin, twin_norm, torch.nn.ReLU()]
    theirs = timm_layers.GatherExcite(8, extent=extent, use_mlp=False).eval()
    theirs.gather = torch.nn.Sequential(*layers[:-1]).eval()
    assert_same(ours, theirs, rng, shape)


def test_upsampling_is_pytorch_s():
    for n in range(1, 113):
        for m in {-(-n // e) for e in (1, 2, 4, 8)}:
            x = torch.arange(m, dtype=torch.float32)[None, None]
            expected = torch.nn.functional.interpolate(x, size=n)[0, 0]
            np.testing.assert_array_equal(nearest(m, n), expected, err_msg=f"{m} to {n}")
