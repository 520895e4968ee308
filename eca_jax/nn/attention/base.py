"""What every attention is built on: the slot that it fills, the base of the gates, and a row of the table."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.norm import BatchNorm
from eca_jax.nn.valid import Valid

SUM_OF_PRODUCTS = "sum_of_products"
"""The scope (`jax.named_scope`) of a convolution or matrix product that is written as products and their sum: by it,
`eca_jax.analysis.complexity` counts it as what it is, and profiles show what the products belong to."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a network an attention is."""

    stage: int = 0
    stages: int = 1
    """The number of stages of the network."""
    released: int = 3
    """The kernel size of this stage in the authors' checkpoint of the network."""
    side: int | None = None
    """Height and width of this stage's activations where images have 224 pixels, for which the networks were published,
    and the output stride is 32: another one does not change it. None in networks with a small stem."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """What a network tells one of its attentions."""

    channels: int
    place: Place = Place()
    reduction: int = 16
    """The reduction of SE if the configuration gives none."""
    param_dtype: jax.typing.DTypeLike = jnp.float32
    norm: Callable[..., BatchNorm] = BatchNorm
    """Makes a batch norm with the network's settings, `norm(channels)`; its output is float32 or wider."""


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of an attention that has none."""


def squeeze(x: jax.Array, valid: Valid | None = None) -> jax.Array:
    """(b, ..., c) -> (b, c): the average over the pixels, in float32 or wider; with `valid`, of the image."""
    if valid is not None:
        return valid.mean(x)
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=jnp.promote_types(x.dtype, jnp.float32))


@jax.named_scope(SUM_OF_PRODUCTS)
def weighted_sum(x: jax.Array, weights: jax.Array, axis: int | tuple[int, ...], *, keepdims: bool = False) -> jax.Array:
    """The sum of x * weights over an axis or several: a matrix product or a convolution with one result for each."""
    return jnp.sum(x * weights, axis=axis, keepdims=keepdims)


def scale(x: jax.Array, gates: jax.Array) -> jax.Array:
    """x (b, ..., c) times gates (b, c), in the dtype of x."""
    return x * jnp.expand_dims(gates.astype(x.dtype), range(1, x.ndim - 1))


class ChannelGate(nnx.Module):
    """Base of the attentions that need only the average: subclasses define `gate`.

    It works on any number of pixel axes: sequences (b, l, c), images (b, h, w, c), volumes (b, d, h, w, c).
    """

    def gate(self, s: jax.Array) -> jax.Array:
        """(b, c) averages -> (b, c) gates."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> the same shape and dtype, every channel scaled by its gate."""
        return scale(x, self.gate(squeeze(x)))


class Informed(ChannelGate):
    """A gate that looks at more than the averages, made by a block in each of its calls.

    `averages` are those (b, c) of which the gates were asked, once they were.
    """

    averages: jax.Array

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        """`function`: (b, c) averages -> (b, c) gates; it knows the rest."""
        self.function = nnx.static(function)

    def gate(self, s: jax.Array) -> jax.Array:
        self.averages = s
        return self.function(s)


class Identity(nnx.Module):
    """No attention: the plain network. Gives what it is given, (b, ..., c)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


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


def of_slot(module: type[nnx.Module], **fixed: Any) -> Callable[[Slot, Any, nnx.Rngs], nnx.Module]:
    """The `build` of an attention whose constructor has the options as arguments of the same names.

    Besides, it is given those of these that it names: `channels`, `side`, `norm` and `param_dtype` (as in `Slot` and
    `Place`), and `rngs`. `fixed` are arguments that are the same in every slot.
    """
    names = inspect.signature(module.__init__).parameters  # of the class itself, NNX hides them

    def build(slot: Slot, options: Any, rngs: nnx.Rngs) -> nnx.Module:
        offered = {"channels": slot.channels, "side": slot.place.side, "norm": slot.norm}
        offered |= {"param_dtype": slot.param_dtype, "rngs": rngs}
        chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        return module(**{name: value for name, value in offered.items() if name in names}, **chosen, **fixed)

    return build
