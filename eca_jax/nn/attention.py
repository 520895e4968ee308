"""Channel attention: the slot at the end of every residual branch.

A `ChannelGate` maps the squeezed vector s (b, c), the average of every channel over the pixels, to gates (b, c) in
(0, 1). Called on an activation (b, h, w, c) it squeezes, gates and scales; a block that already knows the average calls
`gate(s)` itself. To add a module: write a class, add a row to `ATTENTIONS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError, nearest
from eca_jax.nn.layers import linear, uniform_fan_in

KernelSizes = int | tuple[int, ...] | str
KERNEL_POLICIES = ("released", "adaptive")


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """|log2(channels) / gamma + b / gamma|_odd, at least 3 (ECA-Net, equation 12, rounded as the authors and timm do).

    16..96 channels give 3, 128..1280 give 5, 2048 gives 7.
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return max(t if t % 2 else t + 1, 3)


def kernel_sizes(policy: KernelSizes, channels: Sequence[int], released: Sequence[int]) -> tuple[int, ...]:
    """The kernel size of every stage.

    Args:
      policy: 'released' (the sizes of the authors' checkpoints, which do not follow the formula), 'adaptive' (the
        formula on the gated channels), one odd size for all stages, or one for each.
      channels: the gated channels of every stage.
      released: the sizes that the authors released for this architecture.
    """
    if policy == "released":
        return tuple(released)
    if policy == "adaptive":
        return tuple(adaptive_kernel_size(c) for c in channels)
    if isinstance(policy, int):
        return (policy,) * len(channels)
    if len(policy) != len(channels):
        raise EcaJaxError(
            f"kernel_sizes={policy} has {len(policy)} sizes, the network {len(channels)} stages: give one size, "
            f"or {len(channels)}, or a policy out of {', '.join(KERNEL_POLICIES)}"
        )
    return tuple(int(k) for k in policy)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Which attention a network has. Only the fields that the kind uses matter."""

    kind: str | None = None
    """'none', 'eca', 'eca_ns' or 'se'; None is what the model's name says (eca_resnet50: 'eca')."""
    kernel_sizes: KernelSizes = "released"
    """ECA and ECA-NS: 'released', 'adaptive', one odd size, or one for each stage (3 5 5 7)."""
    circular: bool = False
    """ECA: the kernel wraps round the channels instead of meeting zeros (timm's CecaModule)."""
    reduction: int | None = None
    """SE: channels / reduction hidden ones; None is the paper's 16, and 8 in MobileNetV2."""
    bias: bool | None = None
    """SE: biases in both layers; None is what the model's name says (timm's seresnet50 has them, the paper's not)."""

    def __post_init__(self):
        if self.kind is not None and self.kind not in ATTENTIONS:
            raise EcaJaxError(f"attention.kind: unknown attention {self.kind!r}.{nearest(self.kind, ATTENTIONS)}")
        if isinstance(self.kernel_sizes, str):
            if self.kernel_sizes not in KERNEL_POLICIES:
                raise EcaJaxError(
                    f"attention.kernel_sizes: unknown policy {self.kernel_sizes!r}; expected one of "
                    f"{', '.join(KERNEL_POLICIES)}, or odd sizes such as 3 5 5 7"
                )
        else:
            sizes = self.kernel_sizes if isinstance(self.kernel_sizes, tuple | list) else (self.kernel_sizes,)
            if not sizes:
                raise EcaJaxError("attention.kernel_sizes: expected one odd size, or one for each stage, got none")
            for size in sizes:
                _check_kernel_size(size)
        if self.reduction is not None and self.reduction < 1:
            raise EcaJaxError(f"attention.reduction: expected 1 or more, got {self.reduction}")


def _check_kernel_size(size: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool):
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd whole number, got {size!r}")
    if size < 1 or size % 2 == 0:
        raise EcaJaxError(
            f"attention.kernel_sizes: expected an odd size of at least 1, got {size}: "
            f"an even kernel has no centre channel; use {max(size - 1, 1)} or {max(size, 0) + 1}"
        )
    return size


def squeeze(x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, c): the average over the pixels, in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


class ChannelGate(nnx.Module):
    """Base of the attentions that need only the average: subclasses define `gate`."""

    def gate(self, s: jax.Array) -> jax.Array:
        """(b, c) averages -> (b, c) gates."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype, every channel scaled by its gate."""
        return x * self.gate(squeeze(x)).astype(x.dtype)[:, None, None, :]


class Identity(nnx.Module):
    """No attention: the plain network."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def _slide(s: jax.Array, kernel: jax.Array, *, circular: bool = False) -> jax.Array:
    """Correlates (b, c) with (k,) or, a kernel a channel, (k, c) along the channels, as k shifted multiplies.

    A convolution primitive over the channel axis compiles several times slower on TPU and costs extra calls on GPU.
    """
    k, c = kernel.shape[0], s.shape[1]
    pad = (k - 1) // 2
    padded = jnp.pad(s, ((0, 0), (pad, pad)), mode="wrap" if circular else "constant")
    return functools.reduce(jnp.add, (padded[:, j : j + c] * kernel[j] for j in range(k)))


class ECA(ChannelGate):
    """Efficient channel attention: sigmoid(conv1d(s)), one kernel of k weights slid over the channels (equation 9).

    Zero padding, no bias, no flip; `circular` wraps the channel axis instead. The paper's Figure 3 forgets the sigmoid;
    its equation and the authors' code have it.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, circular: bool = False, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        _check_kernel_size(kernel_size)
        if circular and kernel_size > channels:
            raise EcaJaxError(f"ECA: a circular kernel of {kernel_size} does not fit on {channels} channels")
        self.kernel = nnx.Param(uniform_fan_in(kernel_size)(rngs.params(), (kernel_size,), param_dtype))
        self.circular = circular

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(_slide(s, self.kernel[...], circular=self.circular))


class ECA_NS(ChannelGate):
    """ECA without sharing: every channel slides a kernel of its own, k * c weights (the paper's ablation, Table 2)."""

    def __init__(self, channels: int, kernel_size: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        _check_kernel_size(kernel_size)
        self.kernel = nnx.Param(uniform_fan_in(kernel_size)(rngs.params(), (kernel_size, channels), param_dtype))

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(_slide(s, self.kernel[...]))


class SE(ChannelGate):
    """Squeeze and excitation: sigmoid(W2 relu(W1 s)) with `hidden` channels between (Hu et al. 2018).

    ECA-Net's comparison has no biases (hidden = c / 16, c / 8 in MobileNetV2); timm's SEModule has them.
    """

    def __init__(self, channels: int, hidden: int, *, bias: bool = False, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.fc1 = linear(channels, hidden, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = linear(hidden, channels, use_bias=bias, param_dtype=param_dtype, rngs=rngs)

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(s))))


@dataclasses.dataclass(frozen=True)
class Slot:
    """What a network knows about one place where an attention goes."""

    channels: int
    kernel_size: int
    reduction: int
    param_dtype: jax.typing.DTypeLike = jnp.float32


ATTENTIONS: dict[str, Callable[[Slot, AttentionConfig, nnx.Rngs], nnx.Module]] = {
    "none": lambda slot, config, rngs: Identity(),
    "eca": lambda slot, config, rngs: ECA(
        slot.channels, slot.kernel_size, circular=config.circular, param_dtype=slot.param_dtype, rngs=rngs
    ),
    "eca_ns": lambda slot, config, rngs: ECA_NS(
        slot.channels, slot.kernel_size, param_dtype=slot.param_dtype, rngs=rngs
    ),
    "se": lambda slot, config, rngs: SE(
        slot.channels,
        max(slot.channels // slot.reduction, 1),
        bias=bool(config.bias),
        param_dtype=slot.param_dtype,
        rngs=rngs,
    ),
}


def build_attention(config: AttentionConfig, slot: Slot, rngs: nnx.Rngs) -> nnx.Module:
    """The module for one slot: maps (b, h, w, c) to the same shape."""
    return ATTENTIONS[config.kind or "none"](slot, config, rngs)
