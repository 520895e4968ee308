"""Batch norm with groups against NumPy by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eca_jax.errors import EcaJaxError
from eca_jax.nn.norm import BatchNorm


def by_hand(x, group, scale, bias, momentum, eps):
    """Float64: output, running mean and variance after one batch from (0, 1)."""
    x = x.astype(np.float64)
    out, means, variances = np.empty_like(x), [], []
    for start in range(0, len(x), group):
        part = x[start : start + group]
        flat = part.reshape(-1, x.shape[-1])
        mean, var = flat.mean(0), flat.var(0)
        out[start : start + group] = (part - mean) / np.sqrt(var + eps) * scale + bias
        means.append(mean)
        variances.append(flat.var(0, ddof=1))
    running_mean = momentum * np.mean(means, 0)
    running_var = (1 - momentum) + momentum * np.mean(variances, 0)
    return out, running_mean, running_var


@pytest.mark.parametrize("group", [None, 2, 4])
def test_each_group_has_statistics_of_its_own(rng, group):
    x = (rng.normal(size=(8, 3, 5, 6)) * 3 + 2).astype(np.float32)
    norm = BatchNorm(6, group_size=group, momentum=0.1)
    norm.scale[...] = jnp.asarray(rng.uniform(0.5, 1.5, 6), jnp.float32)
    norm.bias[...] = jnp.asarray(rng.normal(size=6), jnp.float32)
    y = norm(jnp.asarray(x))
    out, mean, var = by_hand(x, group or 8, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), 0.1, 1e-5)
    np.testing.assert_allclose(y, out, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them(rng):
    x = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
    norm = BatchNorm(4)
    mean, var = rng.normal(size=4).astype(np.float32), rng.uniform(0.5, 2, 4).astype(np.float32)
    norm.mean[...], norm.var[...] = jnp.asarray(mean), jnp.asarray(var)
    norm.eval()
    np.testing.assert_allclose(norm(jnp.asarray(x)), (x - mean) / np.sqrt(var + 1e-5), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(norm.mean[...], mean)
    np.testing.assert_array_equal(norm.var[...], var)


def test_statistics_of_bfloat16_are_float32(rng):
    x = jnp.asarray(rng.normal(size=(64, 4, 4, 2)) + 1, jnp.bfloat16)
    norm = BatchNorm(2, dtype=jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], 0.1 * np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-5)


def test_one_value_a_channel_does_not_divide_by_zero():
    norm = BatchNorm(2)
    y = norm(jnp.ones((1, 1, 1, 2)))
    assert np.isfinite(y).all()
    assert np.isfinite(norm.var[...]).all()


def test_a_batch_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(EcaJaxError, match="batch of 6 cannot be cut into statistics groups of 4"):
        BatchNorm(2, group_size=4)(jnp.ones((6, 1, 1, 2)))


def test_gradients_pass_through_the_batch_statistics(rng):
    """The outputs of a normalised channel sum to a constant, so the gradient of their sum is zero."""
    x = jnp.asarray(rng.normal(size=(4, 3, 3, 2)), jnp.float32)
    gradient = jax.grad(lambda x: BatchNorm(2)(x).sum())(x)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("group", [None, 4])
def test_an_empty_batch_has_no_statistics(group):
    layer = BatchNorm(3, group_size=group)
    empty = jnp.zeros((0, 2, 2, 3))
    with pytest.raises(EcaJaxError, match=r"^batch norm: an empty batch has no statistics"):
        layer(empty)
    layer.eval()
    assert layer(empty).shape == empty.shape
