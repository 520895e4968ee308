"""Channel attention: the modules that can stand at the end of every residual branch.

A `ChannelGate` takes the average of every channel over the pixels, s (b, c), and computes gates (b, c) in (0, 1). If
you call it on an activation (b, h, w, c), it averages the channels, computes the gates and multiplies by them. A block
that already knows the averages calls `gate(s)` itself. To add an attention, write a class and add a row to
`ATTENTIONS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.layers import linear, uniform_fan_in
from eca_jax.plain import field_types, of_type, to_plain
from eca_jax.plugins import Registry

KernelSizes = int | tuple[int, ...] | str
KERNEL_POLICIES = ("released", "adaptive")
MAX_KERNEL_SIZE = 255
"""The limit on kernel sizes. A kernel of k weights becomes k multiplications in the program, in every block, and three
times as many in training, so a size with too many zeros would be traced for minutes. The formula asks for 7 on 2048
channels; the paper tried up to 9."""


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """|log2(channels) / gamma + b / gamma|_odd, at least 3 (ECA-Net, equation 12, rounded as the authors and timm do).

    16..96 channels give 3, 128..1280 give 5, 2048 gives 7.
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return max(t if t % 2 else t + 1, 3)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a network an attention is."""

    stage: int = 0
    stages: int = 1
    """The number of stages of the network."""
    released: int = 3
    """The kernel size of this stage in the authors' checkpoint of the network."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """What a network tells one of its attentions."""

    channels: int
    place: Place = Place()
    reduction: int = 16
    """The reduction of SE if the configuration gives none."""
    param_dtype: jax.typing.DTypeLike = jnp.float32


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of an attention that has none."""


@dataclasses.dataclass(frozen=True)
class KernelOptions:
    """The options of the attentions that slide a kernel over the channels."""

    kernel_sizes: KernelSizes = "released"
    """'released' (the sizes of the authors' checkpoints, which do not follow the formula), 'adaptive' (the formula on
    the gated channels), one odd size for all stages, or one for each (3 5 5 7)."""

    def __post_init__(self):
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

    def kernel_size(self, slot: Slot) -> int:
        """The kernel size of one slot."""
        policy, place = self.kernel_sizes, slot.place
        if policy == "released":
            return place.released
        if policy == "adaptive":
            return adaptive_kernel_size(slot.channels)
        if isinstance(policy, int):
            return policy
        if len(policy) != place.stages:
            raise EcaJaxError(
                f"kernel_sizes={policy} has {len(policy)} sizes, the network {place.stages} stages: give one size, "
                f"or {place.stages}, or a policy out of {', '.join(KERNEL_POLICIES)}"
            )
        return int(policy[place.stage])


@dataclasses.dataclass(frozen=True)
class ECAOptions(KernelOptions):
    """The options of ECA."""

    circular: bool = False
    """The kernel wraps around at the ends of the channel axis instead of meeting zeros there (timm's CecaModule)."""


@dataclasses.dataclass(frozen=True)
class SEOptions:
    """The options of squeeze and excitation."""

    reduction: int | None = None
    """The hidden layer has channels / reduction channels; None is the paper's 16, or 8 in MobileNetV2."""
    bias: bool = False
    """Biases in both layers (timm's seresnet50 has them, the paper's networks do not)."""

    def __post_init__(self):
        if self.reduction is not None and self.reduction < 1:
            raise EcaJaxError(f"attention.reduction: expected 1 or more, got {self.reduction}")


class AttentionConfig:
    """Which attention a network has: `AttentionConfig("eca", kernel_sizes="adaptive")`.

    Which options there are depends on the kind (see `ATTENTIONS`). Without a kind, the options change the attention
    that the model's name says: `create_model("eca_resnet50", attention=AttentionConfig(kernel_sizes=3))`.
    """

    def __init__(self, kind: str | None = None, **options: Any):
        self.kind = of_type("attention.kind", kind, str | None)
        """A name in `ATTENTIONS` ('none', 'eca', 'eca_ns', 'se'); None is the attention in the model's name."""
        self.given = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        """The options that were given; the others have their defaults."""
        if kind is not None:
            _ = self.options  # raises an error for wrong options

    @property
    def options(self) -> Any:
        """All options of the kind: an instance of its class of options.

        Raises:
          EcaJaxError: the kind is unknown, does not have one of the options, or wants another type for it.
        """
        row = attention_row(self.kind or "none")
        known = field_types(row.options)
        for name in sorted(self.given.keys() - known.keys()):
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise EcaJaxError(f"attention.{name}: the attention {self.kind!r} has no such option; {has}")
        return row.options(**{name: of_type(f"attention.{name}", v, known[name]) for name, v in self.given.items()})

    def resolved(self) -> "AttentionConfig":
        """The same attention with every option given, also those with default values."""
        return AttentionConfig(self.kind, **dataclasses.asdict(self.options))

    def refined(self, by: "AttentionConfig") -> "AttentionConfig":
        """Our options, replaced by those of `by`; if `by` is of another kind, `by` itself."""
        return by if by.kind not in (None, self.kind) else AttentionConfig(self.kind, **self.given | by.given)

    def to_dict(self) -> dict[str, Any]:
        """{'kind': ..., option: value, ...}."""
        return {"kind": self.kind, **to_plain(self.given)}

    @classmethod
    def from_dict(cls, values: dict[str, Any] | str) -> "AttentionConfig":
        """The inverse of `to_dict`; a string is the kind."""
        return cls(values) if isinstance(values, str) else cls(**values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttentionConfig) and (self.kind, self.given) == (other.kind, other.given)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(sorted(self.given.items()))))

    def __repr__(self) -> str:
        said = [repr(self.kind)] if self.kind is not None else []
        return f"AttentionConfig({', '.join(said + [f'{k}={v!r}' for k, v in self.given.items()])})"


def _check_kernel_size(size: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool):
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd whole number, got {size!r}")
    if size > MAX_KERNEL_SIZE:
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd size of at most {MAX_KERNEL_SIZE}, got {size}")
    if size < 1:
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd size of at least 1, got {size}")
    if size % 2 == 0:
        raise EcaJaxError(
            f"attention.kernel_sizes: expected an odd size of at least 1, got {size}: "
            f"an even kernel has no centre channel; use {size - 1} or {size + 1}"
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
    """Correlates s (b, c) with a kernel along the channels, as k shifted multiplications.

    The kernel has the shape (k,), or (k, c) with a kernel for each channel. A convolution primitive over the channel
    axis compiles several times slower on TPU and needs extra calls on GPU.
    """
    k, c = kernel.shape[0], s.shape[1]
    pad = (k - 1) // 2
    padded = jnp.pad(s, ((0, 0), (pad, pad)), mode="wrap" if circular else "constant")
    return functools.reduce(jnp.add, (padded[:, j : j + c] * kernel[j] for j in range(k)))


class ECA(ChannelGate):
    """Efficient channel attention: sigmoid(conv1d(s)), one kernel of k weights slid over the channels (equation 9).

    It has no bias and does not flip the kernel. The channels are padded with zeros, or with `circular` they wrap
    around. The paper's Figure 3 omits the sigmoid; its equation and the authors' code have it.
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
    """ECA without sharing: every channel has a kernel of its own, k * c weights (the paper's ablation, Table 2)."""

    def __init__(self, channels: int, kernel_size: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        _check_kernel_size(kernel_size)
        self.kernel = nnx.Param(uniform_fan_in(kernel_size)(rngs.params(), (kernel_size, channels), param_dtype))

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(_slide(s, self.kernel[...]))


class SE(ChannelGate):
    """Squeeze and excitation: sigmoid(W2 relu(W1 s)) with `hidden` channels between (Hu et al. 2018).

    The SE networks in the ECA-Net paper have no biases (hidden = c / 16, or c / 8 in MobileNetV2); timm's SEModule has.
    """

    def __init__(self, channels: int, hidden: int, *, bias: bool = False, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.fc1 = linear(channels, hidden, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = linear(hidden, channels, use_bias=bias, param_dtype=param_dtype, rngs=rngs)

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(s))))


@dataclasses.dataclass(frozen=True)
class Attention:
    """A row of `ATTENTIONS`."""

    build: Callable[[Slot, Any, nnx.Rngs], nnx.Module]
    """(slot, options, rngs) -> the module, which maps (b, h, w, c) to the same shape."""
    options: type = NoOptions
    """A frozen dataclass of what users can choose, with defaults. It refuses values that cannot work."""


def attention_fault(name: str, attention: Attention) -> str | None:
    """Says what is wrong with an attention that is to be registered; None if nothing is."""
    if not isinstance(attention, Attention):
        return f"expected an Attention, got {attention!r}"
    options = attention.options
    if not dataclasses.is_dataclass(options):
        return f"its options, {options.__name__}, are no dataclass"
    unset = [f.name for f in dataclasses.fields(options) if f.default is f.default_factory is dataclasses.MISSING]
    return f"its options have no default for {', '.join(unset)}" if unset else None


ATTENTIONS: Registry[Attention] = Registry(
    "attention",
    {
        "none": Attention(lambda slot, options, rngs: Identity()),
        "eca": Attention(
            lambda slot, options, rngs: ECA(
                slot.channels,
                options.kernel_size(slot),
                circular=options.circular,
                param_dtype=slot.param_dtype,
                rngs=rngs,
            ),
            ECAOptions,
        ),
        "eca_ns": Attention(
            lambda slot, options, rngs: ECA_NS(
                slot.channels, options.kernel_size(slot), param_dtype=slot.param_dtype, rngs=rngs
            ),
            KernelOptions,
        ),
        "se": Attention(
            lambda slot, options, rngs: SE(
                slot.channels,
                max(slot.channels // (options.reduction or slot.reduction), 1),
                bias=options.bias,
                param_dtype=slot.param_dtype,
                rngs=rngs,
            ),
            SEOptions,
        ),
    },
    attention_fault,
)
"""The attentions by their kind; `ATTENTIONS.register("my_gate", Attention(...))` adds one."""


def attention_row(kind: str) -> Attention:
    """The row of a kind in `ATTENTIONS`.

    Raises:
      EcaJaxError: the kind is not registered; the message names the most similar ones.
    """
    if kind not in ATTENTIONS:
        raise EcaJaxError(f"attention.kind: {ATTENTIONS.unknown(kind)}")
    return ATTENTIONS[kind]


def build_attention(config: AttentionConfig, slot: Slot, rngs: nnx.Rngs) -> nnx.Module:
    """The module for one slot: maps (b, h, w, c) to the same shape."""
    return attention_row(config.kind or "none").build(slot, config.options, rngs)
