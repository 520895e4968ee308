"""Squeeze and excitation, its effective form, and the simpler forms of ECA-Net's ablation (Table 2)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least
from eca_jax.nn.attention.base import ChannelGate, Slot
from eca_jax.nn.layers import linear, uniform_fan_in


@dataclasses.dataclass(frozen=True)
class SEOptions:
    """The options of squeeze and excitation. Its three published forms are these.

    - The networks of the ECA-Net paper: the defaults.
    - Hu's own networks: `bias=True`.
    - timm's: `bias=True, divisor=8`. It differs from Hu's where channels / reduction is no multiple of 8, so in
      ResNet-18 and 34, not in ResNet-50.
    """

    reduction: int | None = None
    """The hidden layer has channels / reduction channels; None is the paper's 16, or 8 in MobileNetV2."""
    bias: bool = False
    """Biases in both layers (Hu's and timm's networks have them, the paper's networks do not)."""
    divisor: int | None = None
    """Rounds the width of the hidden layer to the nearest multiple of this, but at least to this (timm's rounding, with
    8); None rounds down, but at least to 1."""

    def __post_init__(self):
        for name in ("reduction", "divisor"):
            value = getattr(self, name)
            if value is not None:
                expect_at_least(f"attention.{name}", value)

    def hidden(self, slot: Slot) -> int:
        """The width of the hidden layer in one slot."""
        return hidden_width(slot.channels, self.reduction or slot.reduction, self.divisor)


def hidden_width(channels: int, reduction: int = 16, divisor: int | None = None) -> int:
    """channels / reduction, rounded as `SEOptions.divisor` says; timm's make_divisible with round_limit=0."""
    if divisor is None:
        return max(channels // reduction, 1)
    return max((2 * channels + divisor * reduction) // (2 * divisor * reduction) * divisor, divisor)


class SE(ChannelGate):
    """Squeeze and excitation: sigmoid(W2 relu(W1 s)) with `hidden` channels between (Hu et al., CVPR 2018).

    Maps (b, ..., c) to the same shape and dtype. It stands after the last batch norm of the branch, as in the original.
    Its gates start near 0.5. Weights and biases start as PyTorch's Linear does. Without biases it is the one in the
    ECA-Net paper, 2,514,944 parameters on ResNet-50; Hu's (SENet, models/SE-ResNet-50.prototxt) and timm's SEModule
    have biases, 2,530,992.

    Args:
      hidden: None is channels / 16. `hidden_width` computes other widths, such as timm's.

    Example:
      >>> import jax.numpy as jnp
      >>> from eca_jax.nn import SE
      >>> from flax import nnx
      >>> attention = SE(64, rngs=nnx.Rngs(0))
      >>> attention.fc1.kernel.shape, attention.fc2.kernel.shape
      ((64, 4), (4, 64))
      >>> attention(jnp.ones((2, 8, 8, 64))).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        *,
        bias: bool = False,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels) if hidden is None else hidden
        self.fc1 = linear(channels, hidden, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = linear(hidden, channels, use_bias=bias, param_dtype=param_dtype, rngs=rngs)

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(s))))


class ESE(ChannelGate):
    """Effective SE: hard_sigmoid(W s + b), one layer of c x c weights; hard_sigmoid(z) = min(max(z + 3, 0), 6) / 6.

    Maps (b, ..., c) to the same shape and dtype. It is from CenterMask (Lee and Park, CVPR 2020), where it stands at
    the end of VoVNetV2's stages; here after the last batch norm of the branch, as timm's EffectiveSEModule
    (layers/squeeze_excite.py) in ResNets. Its gates start near 0.5. Weights and biases start as PyTorch's Linear does.
    20,134,656 parameters on ResNet-50.
    """

    def __init__(self, channels: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.fc = linear(channels, channels, param_dtype=param_dtype, rngs=rngs)

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.hard_sigmoid(self.fc(s))


class SE_Var1(ChannelGate):
    """sigmoid(s), without parameters (ECA-Net, CVPR 2020, Table 2).

    Maps (b, ..., c) to the same shape and dtype. It stands after the last batch norm of the branch. Its gates start
    near 0.5, where an average is near 0.
    """

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(s)


class SE_GC(ChannelGate):
    """sigmoid(W s), W block-diagonal: one grouped layer without bias, ReLU or reduction (ECA-Net, CVPR 2020, Table 2).

    Maps (b, ..., c) to the same shape and dtype. Every group of c / groups channels has weights of its own, c^2 /
    groups in all, from which only the gates of the same group are computed. The paper names these, with the parameters
    they add to ResNet-50:

    - `se_var2`: c groups, so one weight for every channel; 15,104 parameters
    - `se_var3`: 1 group, so a dense layer; 20,119,552
    - `se_gc1`: 16 groups; 1,257,472
    - `se_gc2`: c / 16 groups; 241,664
    - `se_gc3`: c / 8 groups; 120,832

    Some of them are the same at some widths: `se_gc1` is `se_var2` on 16 channels, `se_gc3` on 128, and `se_gc2` on
    256; on 16 channels `se_gc2` is `se_var3`, on 8 channels `se_gc3` is.

    It stands after the last batch norm of the branch. Its gates start near 0.5. The authors' repository has no code of
    these and the paper names no initialisation; the weights start as those of PyTorch's Conv1d with as many groups do.
    """

    def __init__(self, channels: int, groups: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        if groups < 1:
            raise EcaJaxError(f"SE-GC: expected 1 group or more, got {groups}")
        size = _divided(channels, groups, f"{groups} groups")
        shape = (groups, size, size)  # groups, inputs, outputs
        self.kernel = nnx.Param(uniform_fan_in(size)(rngs.params(), shape, param_dtype))

    def gate(self, s: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        z = jnp.einsum("bgi,gio->bgo", s.reshape(s.shape[0], *kernel.shape[:2]), kernel)
        return jax.nn.sigmoid(z.reshape(s.shape))


def groups_of(size: int) -> Callable[[int], int]:
    """For `grouped`: as many groups as have `size` channels each."""
    return lambda channels: _divided(channels, size, f"groups of {size}")


def grouped(groups: Callable[[int], int]) -> Callable[[Slot, Any, nnx.Rngs], nnx.Module]:
    """The `build` of an `SE_GC` with groups(channels) groups."""
    return lambda slot, options, rngs: SE_GC(
        slot.channels, groups(slot.channels), param_dtype=slot.param_dtype, rngs=rngs
    )


def _divided(channels: int, divisor: int, parts: str) -> int:
    if channels % divisor:
        raise EcaJaxError(
            f"SE-GC: {channels} channels cannot be cut into {parts}; "
            f"choose a width_multiplier that makes all widths multiples of {divisor}, or another attention"
        )
    return channels // divisor
