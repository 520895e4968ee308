"""Frequency channel attention (FcaNet)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least
from eca_jax.nn.attention.base import scale
from eca_jax.nn.attention.maps import expect_map
from eca_jax.nn.attention.se import hidden_width
from eca_jax.nn.layers import linear
from eca_jax.nn.norm import widened

SIDE = 7
"""Frequencies are counted on a map of 7 x 7, so there is none but the mean on a smaller one."""
TOP = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
    *((4, 6), (6, 3), (3, 3), (5, 3), (5, 5), (2, 1), (6, 1), (5, 2)),
    *((5, 4), (3, 2), (3, 1), (4, 1), (2, 3), (2, 0), (6, 5), (1, 3)),
)
"""The authors' frequencies (along the height, along the width), the best first: each was tried alone on ImageNet."""
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class FCAOptions:
    """The options of frequency channel attention; the defaults are the authors' "top16"."""

    frequencies: int = 16
    """How many of the authors' best frequencies there are: 1, 2, 4, 8, 16 or 32. Each has as many channels."""
    reduction: int = 16
    """The hidden layer has channels / reduction channels."""
    grid: int | None = None
    """The side of the map on which the frequencies are, 7 or more; others are averaged or stretched to it. None is the
    authors': the map as it is in networks for 224 pixels. With a grid of 7, maps of any size have frequencies, which is
    not the authors' setting."""

    def __post_init__(self):
        if self.frequencies not in COUNTS:
            expected = f"{', '.join(map(str, COUNTS[:-1]))} or {COUNTS[-1]}"
            raise EcaJaxError(f"attention.frequencies: expected {expected}, got {self.frequencies}")
        expect_at_least("attention.reduction", self.reduction)
        if self.grid is not None:
            expect_at_least("attention.grid", self.grid, SIDE)


def adaptive_average(size: int, grid: int) -> np.ndarray:
    """The matrix (grid, size) that averages `size` pixels to `grid`, as PyTorch's `adaptive_avg_pool1d` does.

    Place i averages the pixels from floor(i * size / grid) to ceil((i + 1) * size / grid): windows overlap where the
    grid does not divide the size, and repeat pixels where it is larger.
    """
    i, pixels = np.arange(grid)[:, None], np.arange(size)
    inside = (i * size // grid <= pixels) & (pixels < -(-(i + 1) * size // grid))
    return inside / inside.sum(1, keepdims=True)


def cosines(frequencies: np.ndarray, size: int, grid: int) -> np.ndarray:
    """(size, k): what every pixel of a row counts for each of the k frequencies, an orthonormal DCT on `grid` places.

    The frequencies are those of 7 places, so they are multiplied by grid // 7. A row of another size is averaged to the
    grid first. Both steps are linear, so the averaging is multiplied into the basis and costs no pass over the pixels.
    """
    u, places = frequencies * (grid // SIDE), np.arange(grid)[:, None]
    basis = np.cos(np.pi * u * (places + 0.5) / grid) * np.where(u > 0, math.sqrt(2), 1) / math.sqrt(grid)
    return adaptive_average(size, grid).T @ basis


class FCA(nnx.Module):
    """Frequency channel attention: sigmoid(W2 relu(W1 s)), where s is one DCT coefficient of every channel.

    s_c = sum over h, w of x[h, w, c] cos(pi u (h + .5) / H) cos(pi v (w + .5) / W), each cosine divided by sqrt(H) or
    sqrt(W) and, unless its frequency is 0, times sqrt(2). The channels are cut into as many equal parts as there are
    frequencies (u, v); the first part has (0, 0), for which s is the average times sqrt(H W). The basis is not trained.

    It stands after the last batch norm of a branch, as the authors' does. W1 and W2 have no biases and start as
    PyTorch's default; the gates start near 0.5. On ResNet-50 it has 2,514,944 parameters, as SE.

    Source: Qin et al., "FcaNet: Frequency Channel Attention Networks", ICCV 2021; github.com/cfzd/FcaNet,
    model/layer.py (MultiSpectralAttentionLayer) and model/fcanet.py.
    """

    def __init__(
        self,
        channels: int,
        *,
        side: int | None = None,
        frequencies: int = 16,
        reduction: int = 16,
        grid: int | None = None,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`side` is that of the map where images have 224 pixels; without it and `grid`, every map is its own grid.

        Raises:
          EcaJaxError: the channels cannot be cut into so many frequencies, or the grid has none of them.
        """
        if channels % frequencies:
            raise EcaJaxError(
                f"fca: {channels} channels cannot be cut into {frequencies} frequencies; expected a multiple of "
                f"{frequencies}: another width, or attention.frequencies {math.gcd(channels, 32)}"
            )
        self.grid = grid or side
        if self.grid is not None:
            _expect_frequencies(self.grid, self.grid)
        self.frequencies = TOP[:frequencies]
        hidden = hidden_width(channels, reduction)
        self.fc1 = linear(channels, hidden, use_bias=False, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = linear(hidden, channels, use_bias=False, param_dtype=param_dtype, rngs=rngs)

    def spectrum(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, c): the coefficient of every channel, float32 or wider.

        Raises:
          EcaJaxError: x are no images, or there is no grid and they are too small to be one.
        """
        size = expect_map("fca", x)
        grid = size if self.grid is None else (self.grid, self.grid)
        _expect_frequencies(*grid)
        x = widened(x)
        rows, columns = (
            jnp.asarray(np.repeat(cosines(np.array(u), n, g), x.shape[-1] // len(u), axis=1), x.dtype)
            for u, n, g in zip(zip(*self.frequencies, strict=True), size, grid, strict=True)
        )
        return jnp.sum(x * (rows[:, None] * columns), axis=(1, 2))

    def gates(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, c), float32 or wider; as `spectrum`."""
        return jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(self.spectrum(x)))))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype, every channel scaled by its gate."""
        return scale(x, self.gates(x))


def _expect_frequencies(height: int, width: int) -> None:
    if min(height, width) < SIDE:
        raise EcaJaxError(
            f"fca: a map of {height} x {width} pixels has no frequency but the mean; expected at least {SIDE} on each "
            f"side: larger images, or attention.grid {SIDE}, to which maps are stretched (not the authors' setting)"
        )
