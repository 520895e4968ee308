"""Attention modules against timm's, with timm's weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm_cbam = pytest.importorskip("timm.layers.cbam")

from eca_jax.convert.leaves import CONV, DENSE_AS_CONV, SAME, Layout  # noqa: E402
from eca_jax.nn.attention import CBAM  # noqa: E402
from tests.nn.attention.checks import flat  # noqa: E402

pytestmark = pytest.mark.parity

Names = dict[str, tuple[str, Layout]]
"""Our array, by path -> (PyTorch's name of it, layout)."""


def randomised(theirs: torch.nn.Module, rng: np.random.Generator) -> None:
    """Random parameters, biases and running statistics, whose variances are positive."""
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            numbers = rng.uniform(0.3, 1.5, value.shape) if name.endswith("_var") else rng.normal(size=value.shape)
            value.copy_(torch.from_numpy(numbers))


def copied(ours: nnx.Module, theirs: torch.nn.Module, names: Names) -> None:
    """Gives our module the weights of theirs; both must have all of these arrays, and no other."""
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items() if value.is_floating_point()}
    state = nnx.state(ours, (nnx.Param, nnx.BatchStat))
    assert flat(state).keys() == names.keys()
    assert arrays.keys() == {name for name, _ in names.values()}
    for path, variable in nnx.to_flat_state(state):
        name, layout = names[".".join(map(str, path))]
        value = layout.from_torch(arrays[name])
        assert value.shape == variable.shape, name
        variable.set_value(jnp.asarray(value))
    nnx.update(ours, state)


def same(ours: nnx.Module, theirs: torch.nn.Module, x: np.ndarray, *, train: bool) -> None:
    """Both map the activation x (b, h, w, c), float32, to the same, within 1e-6 of the largest value."""
    (theirs.train if train else theirs.eval)()
    (ours.train if train else ours.eval)()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    y = nnx.jit(lambda module, x: module(x))(ours, x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def of_norm(ours: str, theirs: str) -> Names:
    """The arrays of a batch norm."""
    pairs = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"{ours}.{mine}": (f"{theirs}.{other}", SAME) for mine, other in pairs.items()}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cbam_is_timm_s(rng, bias, train):
    theirs = timm_cbam.CbamModule(32, mlp_bias=bias)
    ours = CBAM(32, bias=bias, order="mean_max", rngs=nnx.Rngs(0))
    randomised(theirs, rng)
    layers = {"fc1": "channel.fc1", "fc2": "channel.fc2"}
    names = {f"{mine}.kernel": (f"{other}.weight", DENSE_AS_CONV) for mine, other in layers.items()}
    names |= {f"{mine}.bias": (f"{other}.bias", SAME) for mine, other in layers.items() if bias}
    names |= {"spatial.conv.kernel": ("spatial.conv.conv.weight", CONV)} | of_norm("spatial.bn", "spatial.conv.bn")
    copied(ours, theirs, names)
    same(ours, theirs, rng.normal(size=(3, 8, 7, 32)).astype(np.float32), train=train)
