"""Rules of sharding that no array can be placed by."""

import jax
import jax.numpy as jnp
import pytest

from eca_jax.sharding import make_mesh, state_shardings
from tests.damage import refusal


@pytest.mark.parametrize(
    ("pattern", "axes", "message"),
    [
        ("fc/kernel", ("data", "data"), "on fc/kernel (64, 10): .*duplicate entries for `data`"),
        ("fc/bias", (None, "data"), "on fc/bias (10,): 2 axes for an array of 1"),
        ("fc/bias", ("data",), "on fc/bias (10,): .*partitioned 4 times, but the dimension size is 10"),
        ("fc/bias", ("model",), "on fc/bias (10,): .*model of P('model',) is not found in mesh"),
    ],
)
def test_a_rule_that_does_not_fit_its_array_is_one_line(pattern, axes, message):
    state = {"fc": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}}
    said = refusal(state_shardings, make_mesh(jax.devices()[:4]), state, ((pattern, axes),))
    start, end = message.split(": ", 1)
    assert said.startswith(f"sharding rule {pattern!r} -> {axes} {start}: ")
    assert end.removeprefix(".*") in said


SHAPES = {"kernel": (64, 10), "bias": (10,)}
