"""timm's global context block and coordinate attention, with random weights and random running statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
global_context = pytest.importorskip("timm.layers.global_context")
coord_attn = pytest.importorskip("timm.layers.coord_attn")

from eca_jax.nn.attention import GC, CoordinateAttention  # noqa: E402
from tests.nn.attention.checks import arrays_of, randomise  # noqa: E402

pytestmark = pytest.mark.parity


def theirs_as(ours, theirs, names):
    """Gives their module the parameters of ours; `names` are our names by theirs."""
    arrays = arrays_of(ours)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            value = arrays.pop(names[name])
            tensor.copy_(torch.from_numpy(value.T.reshape(tensor.shape).copy()))
    assert not arrays, f"not in theirs: {list(arrays)}"


def compare(ours, theirs, names, rng, channels):
    """float32: outputs differ by at most a millionth of the largest."""
    ours.eval()
    theirs.eval()
    randomise(ours, rng)
    for layer in (module for _, module in nnx.iter_modules(ours) if isinstance(module, nnx.Linear)):
        # Sums of c values of size 1 have that size too; else the gates would be 0 or 1, and show less.
        layer.kernel.set_value(layer.kernel[...] / np.sqrt(layer.in_features))
    theirs_as(ours, theirs, names)
    x = rng.normal(size=(3, 9, 7, channels)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def norm_names(theirs, ours):
    parts = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return {f"{theirs}.{their}": f"{ours}.{our}" for their, our in parts.items()}


def layer_names(theirs, ours):
    return {f"{theirs}.weight": f"{ours}.kernel", f"{theirs}.bias": f"{ours}.bias"}


def test_gc_is_timm_s_gca(rng):
    theirs = global_context.GlobalContext(64, fuse_add=True, fuse_scale=False, rd_ratio=1 / 16)
    ours = GC(64, rngs=nnx.Rngs(0))
    ours.norm.epsilon = theirs.mlp_add.norm.eps  # 1e-6; the authors' is 1e-5
    names = layer_names("conv_attn", "mask") | norm_names("mlp_add.norm", "norm")
    names |= layer_names("mlp_add.fc1", "fc1") | layer_names("mlp_add.fc2", "fc2")
    compare(ours, theirs, names, rng, 64)


@pytest.mark.parametrize("channels", [64, 320, 512])
def test_coordinate_is_timm_s(rng, channels):
    theirs = coord_attn.CoordAttn(channels)
    ours = CoordinateAttention(channels, reduction=24, rounded=True, bias=False, rngs=nnx.Rngs(0))
    names = norm_names("bn1", "norm")
    for their, our in {"conv1": "fc1", "conv_h": "fc_h", "conv_w": "fc_w"}.items():
        names |= layer_names(their, our)
    compare(ours, theirs, names, rng, channels)


@pytest.mark.parametrize("channels", [64, 512])
def test_coordinate_with_the_authors_width_is_timm_s_with_biases(rng, channels):
    theirs = coord_attn.CoordAttn(channels, rd_channels=max(8, channels // 32), bias=True)
    ours = CoordinateAttention(channels, rngs=nnx.Rngs(0))
    names = norm_names("bn1", "norm")
    for their, our in {"conv1": "fc1", "conv_h": "fc_h", "conv_w": "fc_w"}.items():
        names |= layer_names(their, our)
    compare(ours, theirs, names, rng, channels)
