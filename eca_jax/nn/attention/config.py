"""Which attention a network has, and the module that a configuration stands for."""

import dataclasses
from typing import Any

from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import Slot
from eca_jax.nn.attention.table import attention_row
from eca_jax.plain import field_types, of_type, to_plain


class AttentionConfig:
    """Which attention a network has: `AttentionConfig("eca", kernel_sizes="adaptive")`.

    Which options there are depends on the kind (see `ATTENTIONS`). Without a kind, the options change the attention
    that the model's name says: `create_model("eca_resnet50", attention=AttentionConfig(kernel_sizes=3))`.

    Example:
      >>> from eca_jax.nn import AttentionConfig
      >>> AttentionConfig("eca", kernel_sizes=5).options
      ECAOptions(kernel_sizes=5, circular=False)
      >>> AttentionConfig("eca", kernel_sizes=4)
      Traceback (most recent call last):
      ...
      eca_jax.errors.EcaJaxError: attention.kernel_sizes: expected an odd size ...
    """

    def __init__(self, kind: str | None = None, **options: Any):
        self.kind = of_type("attention.kind", kind, str | None)
        """A name in `ATTENTIONS` ('none', 'eca', 'se', ...); None is the attention in the model's name."""
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


def build_attention(config: AttentionConfig, slot: Slot, rngs: nnx.Rngs) -> nnx.Module:
    """The module for one slot: maps (b, h, w, c) to the same shape."""
    return attention_row(config.kind or "none").build(slot, config.options, rngs)
