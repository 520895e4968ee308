"""Gather-excite: gates from the surroundings of a pixel, or from the whole map (Hu et al., NeurIPS 2018; GENet).

A gather reduces the map to one value for `extent` x `extent` pixels, or to one value in all; an excitation makes gates
of these. The official networks are `models/RN50-GEPF.prototxt` (theta-, here `ge_minus`), `RN50-GEP.prototxt` (theta,
`ge`) and `RN50-GEPP.prototxt` (theta+, `ge_plus`). All gather the whole map; figures/GEPF8.jpg and GEP8.jpg show the
gathers of an extent of 8. As there, all stand after the last batch norm of the branch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least
from eca_jax.nn.attention.base import ChannelGate, Slot, weighted_sum
from eca_jax.nn.attention.maps import expect_map
from eca_jax.nn.attention.se import hidden_width
from eca_jax.nn.layers import Conv, row
from eca_jax.nn.norm import BatchNorm, widened

EXTENTS = (2, 4, 8)
MAX_SIDE = 512
"""The limit on the side of a map that is gathered by one weight for each pixel: with 2048 channels, 2 GB of weights."""


@dataclasses.dataclass(frozen=True)
class ExtentOptions:
    """The options of a gather without parameters."""

    extent: int | None = None
    """The side of the square that shares a gate, in pixels: 2, 4 or 8; None is the whole map."""

    def __post_init__(self):
        if self.extent is not None:
            _check_extent(self.extent)


@dataclasses.dataclass(frozen=True)
class GEOptions(ExtentOptions):
    """The options of a gather with parameters."""

    sides: tuple[int, ...] | None = None
    """Height and width of the maps of each stage, for an `extent` of None: 8 4 2 1 in a ResNet with a small stem, on
    images of 8 pixels. None is right for images of 224 pixels, with a large stem and an output stride of 32."""

    def __post_init__(self):
        super().__post_init__()
        if self.sides is None:
            return
        if self.extent is not None:
            raise EcaJaxError(f"attention.sides: only an extent of None has them, got {self.extent}")
        for side in self.sides:
            _check_side(side)

    def side(self, slot: Slot) -> int | None:
        """Height and width of the map of one slot; None if nobody has said it."""
        place, sides = slot.place, self.sides
        if sides is None:
            return place.side
        if len(sides) != place.stages:
            raise EcaJaxError(f"attention.sides: expected one for each of the {place.stages} stages, got {len(sides)}")
        return sides[place.stage]


@dataclasses.dataclass(frozen=True)
class GEPlusOptions(GEOptions):
    """The options of gather-excite theta+."""

    reduction: int = 16
    """The hidden layer has channels / reduction channels."""

    def __post_init__(self):
        super().__post_init__()
        expect_at_least("attention.reduction", self.reduction)


def _check_extent(extent: int) -> int:
    if extent not in EXTENTS:
        raise EcaJaxError(f"attention.extent: expected 2, 4, 8 or None (the whole map), got {extent}")
    return extent


def _check_side(side: int) -> int:
    if not 1 <= side <= MAX_SIDE:
        raise EcaJaxError(f"attention.sides: expected sides of 1 to {MAX_SIDE} pixels, got {side}")
    return side


def nearest(m: int, n: int) -> np.ndarray:
    """For each of n pixels the one of m pixels whose value it takes: the pixel i takes floor(i * m / n), as in PyTorch.

    `jax.image.resize` differs where m does not divide n: it compares the centres of the pixels.
    """
    return np.arange(n) * m // n


def upsampled(x: jax.Array, sides: Sequence[int]) -> jax.Array:
    """(b, ..., c) -> (b, *sides, c), every pixel is a copy of its `nearest`."""
    for axis, n in enumerate(sides, start=1):
        m = x.shape[axis]
        # A gather of single rows is slow on TPUs; repeating all equally often is a broadcast.
        x = jnp.take(x, nearest(m, n), axis) if n % m else jnp.repeat(x, n // m, axis)
    return x


class GE_Minus(ChannelGate):
    """Gather-excite theta- of the whole map: sigmoid(s), without parameters; the same as `SE_Var1`.

    Maps (b, ..., c) to the same shape and dtype. The original is models/RN50-GEPF.prototxt. Its gates start near 0.5,
    where an average is near 0.
    """

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(s)


class GE_MinusExtent(nnx.Module):
    """Gather-excite theta- of an extent: x times sigmoid(upsampled(average)), without parameters.

    The averages are over windows of 2 extent - 1 pixels, extent pixels apart; beyond the border nothing is counted.
    There are ceil(h / extent) x ceil(w / extent) of them, which are enlarged to h x w by repeating pixels (GENet,
    figures/GEPF8.jpg; timm, layers/gather_excite.py). It works on any number of pixel axes. Its gates start near 0.5.
    """

    def __init__(self, *, extent: int):
        self.extent = _check_extent(extent)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> the same shape and dtype."""
        e, axes = self.extent, x.ndim - 2
        wide = widened(x)
        pad: Any = ((e - 1, e - 1),) * axes
        averages = nnx.avg_pool(wide, (2 * e - 1,) * axes, (e,) * axes, pad, count_include_pad=False)
        return x * upsampled(jax.nn.sigmoid(averages).astype(x.dtype), x.shape[1:-1])


def he_normal(key, shape, dtype=jnp.float32, out_sharding=None):
    """Normal with std sqrt(2 / (h w)) for a depthwise kernel (h, w, ...): Caffe's "msra", as in GENet's prototxts."""
    return row(jax.random.normal, key, shape, dtype, out_sharding) * (2 / (shape[0] * shape[1])) ** 0.5


class MapGather(nnx.Module):
    """norm(sum over the pixels of x * kernel): a depthwise convolution without bias as large as the map."""

    def __init__(self, channels: int, side: int, norm: Callable[..., BatchNorm], param_dtype, rngs: nnx.Rngs):
        shape = (_check_side(side), side, channels)
        self.kernel = nnx.Param(he_normal(rngs.params(), shape, param_dtype))
        self.norm = norm(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, side, side, c) -> (b, 1, 1, c), float32 or wider."""
        kernel = self.kernel[...]
        if x.shape[1:] != kernel.shape:
            raise EcaJaxError(
                f"GE: made for maps of {kernel.shape[0]}x{kernel.shape[1]} pixels and {kernel.shape[2]} channels, got "
                f"an activation {x.shape}: give the right attention.sides, or an attention.extent, which fits all maps"
            )
        return self.norm(weighted_sum(widened(x), kernel, (1, 2), keepdims=True))


class StridedGather(nnx.Module):
    """log2(extent) depthwise 3x3 convolutions of stride 2, each with its norm, and ReLU between (figures/GEP8.jpg)."""

    def __init__(self, channels: int, extent: int, norm: Callable[..., BatchNorm], param_dtype, rngs: nnx.Rngs):
        layers = range(_check_extent(extent).bit_length() - 1)
        self.convs = nnx.List(
            Conv(
                channels,
                channels,
                (3, 3),
                (2, 2),
                padding=((1, 1), (1, 1)),
                kernel_dilation=(1, 1),
                feature_group_count=channels,
                kernel_init=he_normal,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for _ in layers
        )
        self.norms = nnx.List(norm(channels) for _ in layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, ceil(h / extent), ceil(w / extent), c), float32 or wider."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(jax.nn.relu(x) if i else x))
        return x


class GE(nnx.Module):
    """Gather-excite theta: x times sigmoid(gather(x)), where the gather has parameters.

    It gathers the whole map by a weight for each of its pixels and channels (models/RN50-GEP.prototxt), so it fits one
    image size; with an extent, by depthwise convolutions of stride 2 (figures/GEP8.jpg), whose result is enlarged by
    repeating pixels. Batch norm follows the weights. Parameters: c (side^2 + 2), which is 5,549,568 on ResNet-50 at 224
    pixels (the SRM authors' copy has biases besides, 5,564,672); 11 c for each convolution of an extent. The weights
    start normal with std sqrt(2 / their number in a channel), the gates around 0.5, as sigmoid of a normalised value.

    Args:
      side: height and width of the map; not needed with an extent.
      extent: 2, 4 or 8 pixels; None is the whole map.
      norm: makes the batch norms, `norm(channels)`; their output has to be float32 or wider.
    """

    def __init__(
        self,
        channels: int,
        side: int | None = None,
        *,
        extent: int | None = None,
        norm: Callable[..., BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if extent is not None:
            self.gather = StridedGather(channels, extent, norm, param_dtype, rngs)
        elif side is not None:
            self.gather = MapGather(channels, side, norm, param_dtype, rngs)
        else:
            raise EcaJaxError(
                "GE: it has a weight for every pixel of the map, whose side is not known here: give attention.sides, "
                "one for each stage, or an attention.extent, which fits all maps"
            )

    def excite(self, gathered: jax.Array) -> jax.Array:
        """What the gates are the sigmoid of, in the shape of what was gathered."""
        return gathered

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype."""
        sides = expect_map("ge", x)
        gates = jax.nn.sigmoid(self.excite(self.gather(x)))
        return x * upsampled(gates.astype(x.dtype), sides)


class GE_Plus(GE):
    """Gather-excite theta+: x times sigmoid(W2 relu(W1 relu(gather(x)) + b1) + b2), with the gather of `GE`.

    Maps (b, h, w, c) to the same shape and dtype. The layers with c / 16 channels between are those of SE; they start
    normal with std 0.01, biases with 0, so the gates start at 0.5 (models/RN50-GEPP.prototxt). 8,080,560 parameters on
    ResNet-50 at 224 pixels.
    """

    def __init__(
        self,
        channels: int,
        side: int | None = None,
        *,
        extent: int | None = None,
        reduction: int = 16,
        norm: Callable[..., BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, side, extent=extent, norm=norm, param_dtype=param_dtype, rngs=rngs)
        hidden, init = hidden_width(channels, reduction), nnx.initializers.normal(0.01)
        self.fc1 = nnx.Linear(channels, hidden, kernel_init=init, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, channels, kernel_init=init, param_dtype=param_dtype, rngs=rngs)

    def excite(self, gathered: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.relu(self.fc1(jax.nn.relu(gathered))))


def ge_minus(slot: Slot, options: ExtentOptions, rngs: nnx.Rngs) -> nnx.Module:
    """The `build` of theta-: of the whole map it is a `ChannelGate`, which blocks compute without a further pass."""
    return GE_Minus() if options.extent is None else GE_MinusExtent(extent=options.extent)


def of_map(module: type[GE]) -> Callable[[Slot, Any, nnx.Rngs], nnx.Module]:
    """The `build` of a gather-excite with parameters: as `of_slot`, but `sides` has become the side of the slot."""

    def build(slot: Slot, options: GEOptions, rngs: nnx.Rngs) -> nnx.Module:
        chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        del chosen["sides"]
        given = {"norm": slot.norm, "param_dtype": slot.param_dtype, "rngs": rngs}
        return module(slot.channels, options.side(slot), **chosen, **given)

    return build
