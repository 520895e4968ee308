"""timm's networks with every attention that is here too: weights both ways, the same logits, and built by timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from eca_jax import create_model, load_pretrained, save  # noqa: E402
from eca_jax.convert.counterparts import COUNTERPARTS, Counterpart, counterpart  # noqa: E402
from eca_jax.convert.infer import infer  # noqa: E402
from eca_jax.convert.leaves import COUNTER, leaves  # noqa: E402
from eca_jax.convert.state_dict import from_state_dict, parameter_order, to_state_dict  # noqa: E402
from eca_jax.models.base import Backbone  # noqa: E402
from eca_jax.nn import AttentionConfig  # noqa: E402
from tests.parity import authors  # noqa: E402

pytestmark = pytest.mark.parity
ROWS = [pytest.param(row, id=f"{row.kind}-{row.name}") for row in COUNTERPARTS["timm"] if row.name]
FREE = {"se": {"divisor": 8}}
"""Options beside those of the row for which timm's default builds the same, by our kind."""
UNSEEN = {"ceca": "eca", "ge": "none"}
"""timm's names of attentions whose state dicts look like those of another kind: that kind."""


def theirs_of(network: str, row: Counterpart) -> torch.nn.Module:
    """timm's network as a person asks for it, with random weights and statistics."""
    layer = functools.partial(timm.layers.get_attn(row.name), **row.arguments) if row.arguments else row.name
    return authors.randomise(timm.create_model(network, num_classes=10, block_args={"attn_layer": layer})).eval()


def ours_of(row: Counterpart) -> AttentionConfig:
    return AttentionConfig(row.kind, **row.options, **FREE.get(row.kind, {}))


def abstract(network: str, row: Counterpart) -> Backbone:
    """Ours, without weights yet."""
    return nnx.eval_shape(lambda: create_model(network, num_classes=10, attention=ours_of(row), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
@pytest.mark.parametrize("row", ROWS)
def test_weights_go_both_ways_and_logits_are_the_same(row: Counterpart, network: str):
    """float32: within 1e-5 of the largest logit."""
    theirs, architecture = theirs_of(network, row), abstract(network, row).architecture
    assert counterpart(architecture, "timm") == row
    tensors = authors.arrays(theirs)
    ours = from_state_dict(tensors, source="timm", architecture=architecture)
    written = to_state_dict(ours, "timm")
    assert list(written) == list(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    theirs.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in written.items()}, strict=True)
    assert parameter_order(ours, "timm") == [name for name, _ in theirs.named_parameters()]
    _, seen = infer({name: value.shape for name, value in tensors.items() if not name.endswith(COUNTER)})
    if row.name in UNSEEN:
        assert seen.attention.kind == UNSEEN[row.name]
    else:
        assert seen.attention.kind == row.kind
        assert counterpart(seen, "timm") == row

    images = (
        np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
        + np.float32([0, 1])[:, None, None, None]
    )
    with torch.no_grad():
        want = theirs(authors.to_torch(images)).numpy()
    graphdef, state = nnx.split(ours)
    got = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, jnp.asarray(images))
    print(f"{authors.error(got, want):.1e}")
    assert np.ptp(want, axis=0).max() > 1e-3 * np.abs(want).max(), "the logits do not depend on the image"
    assert authors.error(got, want) < 1e-5


@pytest.mark.parametrize("row", ROWS)
def test_timm_builds_the_directory_and_it_is_read_as_what_it_is(row: Counterpart, tmp_path):
    name = {"eca": "eca_resnet18"}.get(row.kind, "resnet18")
    model = abstract(name, row)
    for leaf in leaves(model):
        leaf.variable.set_value(jnp.ones(leaf.variable.shape))
    line = save(model, tmp_path / "timm", "timm")
    assert load_pretrained(tmp_path / "timm").architecture == model.architecture
    assert ("timm's create_model does not build it" in line) == bool(row.arguments)
    if not row.arguments:
        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
        built = type(theirs.layer1[0].se)
        assert built is type(timm.layers.create_attn(row.name, 64))
