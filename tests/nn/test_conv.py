"""Convolutions, max pool and ReLU as the CPU computes them against NumPy by hand; what other platforms are given."""

import collections
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from eca_jax.nn.attention import AttentionConfig
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.conv import convolve
from eca_jax.nn.layers import rectified
from eca_jax.nn.pool import max_pool

# Rounding in float64: a sum of a few hundred products of numbers around 1.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def conv(*args, **kwargs) -> nnx.Conv:
    return Bricks(AttentionConfig("none"), nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64).conv(
        *args, **kwargs
    )


def windows(x: np.ndarray, k: int, stride: int, pad: int, fill: float, dilation: int = 1):
    """Row and column of every place in the output, and the (b, k, k, c) that the kernel meets there: a view."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    side = (k - 1) * dilation + 1
    starts = (range(0, padded.shape[axis] - side + 1, stride) for axis in (1, 2))
    for (i, row), (j, column) in itertools.product(*map(enumerate, starts)):
        yield i, j, np.s_[:, row : row + side : dilation, column : column + side : dilation], padded


def by_hand(x, kernel, stride, groups, dy, dilation=1):
    """Output, and the gradients of sum(dy * output): every place of the kernel by itself, in float64."""
    k, _, narrow, c_out = kernel.shape
    dense = np.zeros((k, k, x.shape[-1], c_out))
    for o in range(c_out):
        first = o // (c_out // groups) * narrow
        dense[:, :, first : first + narrow, o] = kernel[..., o]
    pad = (k - 1) // 2 * dilation
    y, ddense = np.zeros(dy.shape), np.zeros(dense.shape)
    dpadded = np.zeros((x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad, x.shape[3]))
    for i, j, place, padded in windows(x, k, stride, pad, 0.0, dilation):
        y[:, i, j] = np.einsum("bhwc,hwco->bo", padded[place], dense)
        ddense += np.einsum("bhwc,bo->hwco", padded[place], dy[:, i, j])
        dpadded[place] += np.einsum("bo,hwco->bhwc", dy[:, i, j], dense)
    dkernel = np.zeros(kernel.shape)
    for o in range(c_out):
        first = o // (c_out // groups) * narrow
        dkernel[..., o] = ddense[:, :, first : first + narrow, o]
    return y, dpadded[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], dkernel


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel_size", "groups"),
    [(4, 7, 1, 1), (7, 4, 1, 1), (60, 4, 1, 1), (5, 5, 3, 5), (3, 3, 1, 3), (3, 4, 3, 1), (4, 6, 3, 2), (3, 2, 7, 1)],
)
@pytest.mark.parametrize("size", [(6, 6), (5, 8), (2, 2), (4, 1)])
def test_convolution_and_its_gradients(rng, c_in, c_out, kernel_size, groups, stride, size):
    """1x1 widening and narrowing (many pixels a channel, and few), depthwise, dense, grouped, a stem; tiny outputs."""
    check_against_numpy(rng, c_in, c_out, kernel_size, groups, stride, size)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(5, 5, 5), (3, 4, 1)])
@pytest.mark.parametrize(("dilation", "size"), [(2, (6, 9)), (4, (5, 8))])
def test_dilated_convolution_and_its_gradients(rng, c_in, c_out, groups, stride, dilation, size):
    """Depthwise and dense; of five rows the middle one has no neighbours at a distance of 4."""
    check_against_numpy(rng, c_in, c_out, 3, groups, stride, size, dilation)


def check_against_numpy(rng, c_in, c_out, kernel_size, groups, stride, size, dilation=1):
    with jax.enable_x64(True):
        layer = conv(c_in, c_out, kernel_size, stride, groups=groups, dilation=dilation)
        kernel = rng.normal(size=(kernel_size, kernel_size, c_in // groups, c_out))
        layer.kernel[...] = jnp.asarray(kernel)
        graph, state = nnx.split(layer)
        x = rng.normal(size=(2, *size, c_in))
        y, pullback = jax.vjp(jax.jit(lambda state, x: nnx.merge(graph, state)(x)), state, jnp.asarray(x))
        dy = rng.normal(size=y.shape)
        dstate, dx = pullback(jnp.asarray(dy))
        assert y.dtype == dx.dtype == jnp.float64
    want = by_hand(x, kernel, stride, groups, dy, dilation)
    for got, value in zip((y, dx, dstate["kernel"][...]), want, strict=True):
        np.testing.assert_allclose(got, value, **TOLERANCE)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (2, 2), (1, 1)])
def test_max_pool_and_its_gradient(rng, size):
    """Whole numbers of few values, so that most windows have several maxima: the first in reading order wins."""
    x = rng.integers(0, 4, (2, *size, 3)).astype(np.float32)
    y, pullback = jax.vjp(jax.jit(max_pool), jnp.asarray(x))
    dy = rng.integers(1, 100, y.shape).astype(np.float32)
    want, dpadded = np.zeros(y.shape), np.zeros((2, size[0] + 2, size[1] + 2, 3))
    for i, j, place, padded in windows(x, 3, 2, 1, -np.inf):
        flat = padded[place].reshape(2, 9, 3)
        want[:, i, j] = flat.max(1)
        dpadded[place] += ((flat.argmax(1)[:, None] == np.arange(9)[:, None]) * dy[:, None, i, j]).reshape(2, 3, 3, 3)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(pullback(jnp.asarray(dy))[0], dpadded[:, 1:-1, 1:-1])


def test_bfloat16_stays_bfloat16(rng):
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 6)), jnp.bfloat16)
    for settings in ((6, 9, 1), (6, 6, 3)):
        groups = 6 if settings[2] == 3 else 1
        layer = Bricks(AttentionConfig("none"), nnx.Rngs(0), dtype=jnp.bfloat16).conv(*settings, groups=groups)
        y, pullback = jax.vjp(layer, x)
        assert y.dtype == pullback(y)[0].dtype == jnp.bfloat16


def operations(function, platform: str, *args) -> collections.Counter[tuple[str, str]]:
    """How often the program lowered for a platform has each operation and its types.

    A choice of one, as `platform_dependent` leaves it in StableHLO, is no operation: what a compiler gets has none.
    """
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    assert "conditional" not in lowered.as_text("hlo")
    text = lowered.as_text()
    found = re.findall(r"= \"?(stablehlo\.\w+)\"?.* : (.*)", text)
    return collections.Counter((name, types) for name, types in found if types != "tensor<i32>")


def gradients_of_square(function):
    return jax.grad(lambda *args: jnp.square(function(*args)).sum(), (0, 1))


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
@pytest.mark.parametrize(
    ("c_out", "kernel_size", "groups", "dilation"),
    [(6, 1, 1, 1), (3, 1, 1, 1), (4, 3, 4, 1), (4, 3, 4, 2), (6, 3, 1, 1)],
)
def test_other_platforms_are_given_the_convolution(
    platform: str, c_out: int, kernel_size: int, groups: int, dilation: int
):
    arrays = jnp.zeros((2, 4, 4, 4)), jnp.zeros((kernel_size, kernel_size, 4 // groups, c_out))
    pad = (kernel_size - 1) // 2 * dilation
    ours, plain = (
        gradients_of_square(
            functools.partial(
                function,
                **{name: (2, 2)},
                padding=((pad, pad), (pad, pad)),
                rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        )
        for function, name in ((convolve, "strides"), (lax.conv_general_dilated, "window_strides"))
    )
    want = operations(plain, platform, *arrays)
    assert sum(n for (name, _), n in want.items() if name == "stablehlo.convolution") == 3
    assert operations(ours, platform, *arrays) == want
    assert operations(ours, "cpu", *arrays) != want


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_other_platforms_are_given_their_max_pool(platform: str):
    def ours(x):
        return jnp.square(max_pool(x)).sum()

    def plain(x):
        window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        return jnp.square(lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)).sum()

    x = jnp.zeros((2, 8, 8, 3))
    want = operations(jax.grad(plain), platform, x)
    assert operations(jax.grad(ours), platform, x) == want
    assert operations(jax.grad(ours), "cpu", x) != want


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rectified(dtype):
    x = jnp.asarray([-np.inf, -1.5, -0.0, 0.0, 1e-30, 2.25, 3e38, np.inf, np.nan], dtype)
    y, pullback = jax.vjp(rectified, x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.float32(y), [0, 0, 0, 0, *np.float32(x[4:])])
    np.testing.assert_array_equal(pullback(jnp.full_like(x, 3))[0][:7], [0, 0, 0, 0, 3, 3, 3])


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_other_platforms_are_given_their_relu(platform: str):
    x = jnp.zeros((2, 8, 8, 3))
    want = operations(jax.nn.relu, platform, x)
    assert operations(rectified, platform, x) == want
    assert operations(rectified, "cpu", x) != want
