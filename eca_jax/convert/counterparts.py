"""Which classes of a source compute the same as an attention of ours, and with which options."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eca_jax.models.base import Architecture
from eca_jax.models.registry import MODELS, PAPER
from eca_jax.nn.attention import AttentionConfig


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """An attention of ours that a source has too."""

    kind: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The options that decide, and the values under which the source computes the same; any value of the others will
    do."""
    name: str = ""
    """What the source calls it: timm's `attn_layer`."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the source's class, where its defaults compute something else. timm's `create_model` can be given them only in
    Python, `block_args=dict(attn_layer=functools.partial(CLASS, **arguments))`: they are in no config.json."""

    def differing(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Our options that have another value than the source's class: name -> its value."""
        return {name: value for name, value in self.options.items() if given[name] != value}


TIMM_CBAM = {"reduction": 16, "order": "mean_max", "kernel_size": 7}
TIMM_GC = {"epsilon": 1e-6, "stages": None}

COUNTERPARTS: dict[str, tuple[Counterpart, ...]] = {
    "ecanet": (Counterpart("none"), Counterpart("eca", {"circular": False}, "eca"), Counterpart("eca_ns", {}, "eca")),
    "torchvision": (Counterpart("none"),),
    # timm.layers.create_attn. Its ECA always has the formula's kernel sizes; `gc` there multiplies, `gca` adds.
    "timm": (
        Counterpart("none"),
        Counterpart("se", {"bias": True}, "se"),
        Counterpart("ese", {}, "ese"),
        Counterpart("eca", {"circular": False, "kernel_sizes": "adaptive"}, "eca"),
        Counterpart("eca", {"circular": True, "kernel_sizes": "adaptive"}, "ceca"),
        Counterpart("cbam", TIMM_CBAM | {"bias": False}, "cbam"),
        Counterpart("cbam", TIMM_CBAM | {"bias": True}, "cbam", {"mlp_bias": True}),
        Counterpart("gc", TIMM_GC | {"reduction": 8}, "gca"),
        Counterpart("gc", TIMM_GC | {"reduction": 16}, "gca", {"rd_ratio": 1 / 16}),
        Counterpart("ge_minus", {"extent": None}, "ge", {"use_mlp": False, "extra_params": False}),
        Counterpart("coordinate", {"reduction": 24, "rounded": True, "bias": False}, "coord"),
    ),
}
"""Source -> the attentions that its classes have. What is not here would be computed differently there."""


def counterpart(architecture: Architecture, source: str) -> Counterpart | str:
    """The source's own form of an architecture's attention, or a few words on what the source does not have."""
    kind = architecture.attention.kind
    rows = [row for row in COUNTERPARTS[source] if row.kind == kind]
    if not rows:
        return f"the attention {kind!r}"
    given = _options(architecture)
    nearest = min(rows, key=lambda row: len(row.differing(given)))
    if not (differing := nearest.differing(given)):
        return nearest
    has = ", ".join(f"{name} {architecture.attention.given[name]}" for name in differing)
    train = " ".join(f"--model.attention.{name.replace('_', '-')} {value}" for name, value in differing.items())
    return f"the attention {kind!r} and {has} (train with {train})"


def as_called(architecture: Architecture, source: str, name: str) -> Architecture:
    """The architecture with the attention that the source calls `name`, where names and shapes fit several.

    ECA's are those of circular ECA, and an attention without parameters leaves no trace at all. Options that the name
    does not decide stay as they are; a name that is none of `COUNTERPARTS` changes nothing.
    """
    here = counterpart(architecture, source)
    row = next((row for row in COUNTERPARTS[source] if row.name == name), None)
    if row is None or (isinstance(here, Counterpart) and here.name == name):
        return architecture
    if row.kind != architecture.attention.kind:
        return dataclasses.replace(architecture, attention=AttentionConfig(row.kind, **row.options).resolved())
    differing = row.differing(_options(architecture))
    return dataclasses.replace(
        architecture, attention=architecture.attention.refined(AttentionConfig(None, **differing))
    )


def _options(architecture: Architecture) -> dict[str, Any]:
    """All options of the attention; the 'released' kernel sizes of timm's own networks are the formula's."""
    given = dict(architecture.attention.resolved().given)
    if given.get("kernel_sizes") == "released" and MODELS[architecture.name][0] not in PAPER:
        given["kernel_sizes"] = "adaptive"
    return given
