"""Gather-excite against NumPy by hand, in float64, with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import (
    GE,
    AttentionConfig,
    GE_Minus,
    GE_MinusExtent,
    GE_Plus,
    Place,
    Slot,
    build_attention,
)
from eca_jax.nn.norm import BatchNorm
from tests.nn.attention.checks import check, normed, sigmoid

WIDE = {"norm": functools.partial(BatchNorm, dtype=jnp.float64, param_dtype=jnp.float64), "param_dtype": jnp.float64}
MODES = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def enlarged(small: np.ndarray, h: int, w: int) -> np.ndarray:
    """Every pixel is that of `small` at the same place, rounded down."""
    large = np.empty((len(small), h, w, small.shape[3]))
    for i in range(h):
        for j in range(w):
            large[:, i, j] = small[:, i * small.shape[1] // h, j * small.shape[2] // w]
    return large


def averaged(x: np.ndarray, e: int) -> np.ndarray:
    """The average of the pixels less than e from every e-th pixel."""
    h, w = x.shape[1:3]
    rows = [x[:, max(i - e + 1, 0) : i + e] for i in range(0, h, e)]
    cells = [[row[:, :, max(j - e + 1, 0) : j + e].mean((1, 2)) for j in range(0, w, e)] for row in rows]
    return np.stack([np.stack(row, 1) for row in cells], 1)


def strided(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A depthwise 3x3 (3, 3, 1, c) around every second pixel; beyond the border there are zeros."""
    b, h, w, c = x.shape
    out = np.zeros((b, (h + 1) // 2, (w + 1) // 2, c))
    for i in range(0, h, 2):
        for j in range(0, w, 2):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < h and 0 <= j + dj < w:
                        out[:, i // 2, j // 2] += x[:, i + di, j + dj] * kernel[di + 1, dj + 1, 0]
    return out


def gathered(arrays, x, extent, train):
    if extent is None:
        y = np.einsum("bhwc,hwc->bc", x, arrays["gather.kernel"])[:, None, None]
        return normed(arrays, "gather.norm", y, train=train)
    for i in range({2: 1, 4: 2, 8: 3}[extent]):
        x = strided(np.maximum(x, 0) if i else x, arrays[f"gather.convs.{i}.kernel"])
        x = normed(arrays, f"gather.norms.{i}", x, train=train)
    return x


@jax.enable_x64(True)
def test_ge_minus_of_the_whole_map():
    check(GE_Minus(), lambda arrays, x: x * sigmoid(x.mean((1, 2), keepdims=True)), (2, 5, 4, 3))


@pytest.mark.parametrize("extent", [2, 4, 8])
@jax.enable_x64(True)
def test_ge_minus_of_an_extent(extent):
    def by_hand(arrays, x):
        return x * sigmoid(enlarged(averaged(x, extent), *x.shape[1:3]))

    check(GE_MinusExtent(extent=extent), by_hand, (2, 9, 6, 3))


@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 3, 4, 5, 3)], ids=["sequence", "volume"])
@jax.enable_x64(True)
def test_ge_minus_of_an_extent_has_any_number_of_pixel_axes(shape):
    def by_hand(arrays, x):
        out = np.empty_like(x)
        for place in np.ndindex(x.shape[1:-1]):
            sizes = [-(-n // 2) for n in x.shape[1:-1]]  # of the averages
            centres = [2 * (i * m // n) for i, m, n in zip(place, sizes, x.shape[1:-1], strict=True)]
            window = tuple(slice(max(i - 1, 0), i + 2) for i in centres)
            out[:, *place] = x[:, *place] * sigmoid(x[:, *window].mean(tuple(range(1, x.ndim - 1))))
        return out

    check(GE_MinusExtent(extent=2), by_hand, shape)


@MODES
@pytest.mark.parametrize(("extent", "shape"), [(None, (3, 3, 3, 4)), (2, (3, 5, 4, 4)), (8, (3, 7, 10, 4))])
@jax.enable_x64(True)
def test_ge(extent, shape, train):
    def by_hand(arrays, x):
        return x * enlarged(sigmoid(gathered(arrays, x, extent, train)), *x.shape[1:3])

    check(GE(4, 3, extent=extent, **WIDE, rngs=nnx.Rngs(0)), by_hand, shape, train=train)


@MODES
@pytest.mark.parametrize(("extent", "shape"), [(None, (3, 3, 3, 8)), (4, (3, 6, 5, 8))])
@jax.enable_x64(True)
def test_ge_plus(extent, shape, train):
    def by_hand(arrays, x):
        y = np.maximum(gathered(arrays, x, extent, train), 0)
        y = np.maximum(y @ arrays["fc1.kernel"] + arrays["fc1.bias"], 0) @ arrays["fc2.kernel"] + arrays["fc2.bias"]
        return x * enlarged(sigmoid(y), *x.shape[1:3])

    check(GE_Plus(8, 3, extent=extent, reduction=2, **WIDE, rngs=nnx.Rngs(0)), by_hand, shape, train=train)


def test_initial_weights_and_gates():
    x = jax.random.normal(jax.random.key(0), (8, 7, 7, 64))
    ge, plus = GE(64, 7, rngs=nnx.Rngs(0)), GE_Plus(64, 7, rngs=nnx.Rngs(0))
    extent = GE(64, extent=8, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ge.gather.kernel[...].std(), np.sqrt(2 / 49), rtol=0.05)
    np.testing.assert_allclose(extent.gather.convs[2].kernel[...].std(), np.sqrt(2 / 9), rtol=0.1)
    np.testing.assert_allclose(plus.fc1.kernel[...].std(), 0.01, rtol=0.2)
    for module, spread in ((ge, 0.208), (extent, 0.208), (plus, 0.001)):  # 0.208: sigmoid of a standard normal
        gates = nnx.jit(lambda module, x: module(x) / x)(module, x)
        np.testing.assert_allclose(gates.mean(), 0.5, atol=0.02)
        np.testing.assert_allclose(gates.std(), spread, atol=0.02)


def slots(sides, stages=4):
    return [Slot(16, Place(stage, stages, side=side)) for stage, side in enumerate(sides)]


@pytest.mark.parametrize("kind", ["ge", "ge_plus"])
def test_the_sides_of_the_maps(kind):
    """Those that the network knows; for other image sizes those that are given."""

    def built(slots, **options):
        modules = (build_attention(AttentionConfig(kind, **options), slot, nnx.Rngs(0)) for slot in slots)
        return [module.gather.kernel.shape for module in modules]

    assert built(slots([14, 7, 4, 2])) == [(14, 14, 16), (7, 7, 16), (4, 4, 16), (2, 2, 16)]
    digits = slots([None] * 4)
    assert built(digits, sides=(8, 4, 2, 1)) == [(8, 8, 16), (4, 4, 16), (2, 2, 16), (1, 1, 16)]
    with pytest.raises(EcaJaxError, match=r"side is not known here: give attention.sides, .* or an attention.extent"):
        built(digits)
    with pytest.raises(EcaJaxError, match="one for each of the 4 stages, got 2"):
        built(digits, sides=(8, 4))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ge_minus", {"extent": 3}, "attention.extent: expected 2, 4, 8 or None .*, got 3"),
        ("ge", {"extent": 0}, "attention.extent: expected 2, 4, 8 or None .*, got 0"),
        ("ge", {"sides": (8, 0)}, "attention.sides: expected sides of 1 to 512 pixels, got 0"),
        ("ge", {"sides": (8, 4), "extent": 2}, "attention.sides: only an extent of None has them, got 2"),
        ("ge_plus", {"reduction": 0}, "attention.reduction: expected 1 or more, got 0"),
        ("ge_plus", {"extent": 16}, "attention.extent: expected 2, 4, 8 or None .*, got 16"),
        ("ge_minus", {"sides": (8, 4)}, "attention.sides: the attention 'ge_minus' has no such option; it has extent"),
    ],
)
def test_wrong_options_are_refused(kind, options, message):
    with pytest.raises(EcaJaxError, match=message):
        AttentionConfig(kind, **options)


@pytest.mark.parametrize(
    ("extent", "shape", "message"),
    [
        (None, (2, 6, 5, 8), r"made for maps of 5x5 pixels and 8 channels, got an activation \(2, 6, 5, 8\)"),
        (None, (2, 5, 8), r"expected the activation of images, \(b, h, w, c\), got the shape \(2, 5, 8\)"),
        (2, (2, 5, 5, 5, 8), r"expected the activation of images, \(b, h, w, c\), got the shape \(2, 5, 5, 5, 8\)"),
    ],
)
def test_maps_that_do_not_fit_are_refused(extent, shape, message):
    with pytest.raises(EcaJaxError, match=message):
        GE(8, 5, extent=extent, rngs=nnx.Rngs(0))(jnp.ones(shape))


def test_an_impossible_extent_or_side_is_refused_by_the_modules_too():
    with pytest.raises(EcaJaxError, match="expected 2, 4, 8"):
        GE_MinusExtent(extent=5)
    with pytest.raises(EcaJaxError, match="expected 2, 4, 8"):
        GE(8, extent=6, rngs=nnx.Rngs(0))
    with pytest.raises(EcaJaxError, match="expected sides of 1 to 512"):
        GE(8, 1000, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("extent", [None, 4])
@pytest.mark.parametrize("kind", ["ge_minus", "ge", "ge_plus"])
def test_bfloat16_stays_bfloat16(kind, extent):
    module = build_attention(AttentionConfig(kind, extent=extent), Slot(8, Place(side=6)), nnx.Rngs(0))
    module.eval()
    assert jax.eval_shape(module, jax.ShapeDtypeStruct((2, 6, 6, 8), jnp.bfloat16)).dtype == jnp.bfloat16
