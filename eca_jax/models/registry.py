"""Models by name: `eca_resnet50` is the attention `eca` on the backbone `resnet50`."""

import dataclasses
import fnmatch
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError
from eca_jax.models import ba_resnet, emca_resnet, mobilenetv2, resnet
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.settings import checked, checked_dtype
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig, GCTConv
from eca_jax.nn.bricks import Bricks
from eca_jax.plain import of_type
from eca_jax.plugins import Registry

BackboneFactory = Callable[..., Backbone]
"""Called as `ResNet` is after its variant: with `Bricks` and the keyword arguments `num_classes`, `small_stem`,
`width_multiplier`, `dropout` and `drop_path`; and, where they are not the usual ones, with those of `OPTIONAL`."""
OPTIONAL = {"in_channels": 3, "output_stride": 32}
"""Arguments that a factory may be without, and the value that it then stands for."""

BACKBONES: dict[str, BackboneFactory] = {
    **{name: functools.partial(resnet.ResNet, variant) for name, variant in resnet.VARIANTS.items()},
    "mobilenet_v2": mobilenetv2.MobileNetV2,
}
PAPER = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")
RESNETS = tuple(name for name in PAPER if name in resnet.VARIANTS)


def gated_convolutions(factory: BackboneFactory, bricks: Bricks, **options: Any) -> Backbone:
    """The network of a factory with a GCT before every convolution: the stem's, the blocks', the shortcuts'."""
    return factory(dataclasses.replace(bricks, convolution=GCTConv), **options)


INSIDE: dict[str, BackboneFactory] = {
    **{f"gct_{name}": functools.partial(gated_convolutions, BACKBONES[name]) for name in PAPER},
    **{
        f"ba_{name}": functools.partial(resnet.ResNet, ba_resnet.with_bridges(resnet.VARIANTS[name]))
        for name in RESNETS
    },
    **{
        f"emca_{name}": functools.partial(emca_resnet.EMCAResNet, emca_resnet.with_memory(resnet.VARIANTS[name]))
        for name in RESNETS
    },
}
"""Backbones with an attention that does not fit the slot at the end of a branch, which stays empty in them."""
BACKBONES |= INSIDE
PREFIXES = {"": AttentionConfig("none"), "se_": AttentionConfig("se"), "eca_": AttentionConfig("eca")}
# timm's names, which are those of its published weights; its SE has biases.
TIMM_PREFIXES = {"": AttentionConfig("none"), "se": AttentionConfig("se", bias=True), "eca": AttentionConfig("eca")}
TIMM = {
    "": ("resnet26t", "resnet50t", "resnet50d", "resnet101d", "resnet152d", "resnet200d"),
    "se": ("resnet50", "resnet101", "resnet152", "resnet50t", "resnet152d", "resnet200d", "resnet269d"),
    "eca": ("resnet26t", "resnet50t", "resnet50d", "resnet101d", "resnet200d", "resnet269d", "resnetlight"),
}


def model_fault(name: str, row: tuple[str, AttentionConfig]) -> str | None:
    """What is wrong with a model that is to be registered."""
    if isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], AttentionConfig):
        return None
    return f"expected (backbone, AttentionConfig), got {row!r}: register_backbone makes them of a class"


MODELS: Registry[tuple[str, AttentionConfig]] = Registry(
    "model",
    {
        **{prefix + name: (name, attention) for prefix, attention in PREFIXES.items() for name in PAPER},
        **{prefix + name: (name, TIMM_PREFIXES[prefix]) for prefix, names in TIMM.items() for name in names},
        **{name: (name, AttentionConfig("none")) for name in INSIDE},
    },
    model_fault,
)
"""Name -> (backbone, attention)."""


def register_backbone(name: str, factory: BackboneFactory) -> None:
    """Adds a backbone of a package of the user's own: the models `name`, `se_name` and `eca_name`."""
    if not callable(factory):
        raise EcaJaxError(f"the backbone {name!r}: expected a class or a function that makes one, got {factory!r}")
    for prefix, attention in PREFIXES.items():
        MODELS.register(prefix + name, (name, attention))
    BACKBONES[name] = factory


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, filtered by a shell pattern: `list_models("eca_*")`.

    Example:
      >>> import eca_jax
      >>> eca_jax.list_models("eca_resnet*")
      ['eca_resnet101', 'eca_resnet152', 'eca_resnet18', 'eca_resnet34', 'eca_resnet50']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def resolve_attention(name: str, attention: AttentionConfig = AttentionConfig()) -> AttentionConfig:
    """The attention of the model called `name`: its kind from the name unless a plain backbone is given another."""
    backbone, own = model_row(name)
    if backbone in INSIDE and attention.kind not in (None, "none"):
        raise EcaJaxError(
            f"model {name!r} has its attention inside of its blocks, but attention.kind is {attention.kind!r}: "
            "give the kind to the plain backbone instead"
        )
    if attention.kind not in (None, own.kind) and own.kind != "none":
        raise EcaJaxError(
            f"model {name!r} has the attention {own.kind!r}, but attention.kind is {attention.kind!r}: "
            "give the kind to the plain backbone instead"
        )
    return own.refined(attention).resolved()


def as_attention(attention: AttentionConfig | str) -> AttentionConfig:
    """A string is the kind."""
    if isinstance(attention, str):
        return AttentionConfig(attention)
    if not isinstance(attention, AttentionConfig):
        raise EcaJaxError(f'attention: expected an AttentionConfig or a kind such as "eca", got {attention!r}')
    return attention


def model_row(name: str) -> tuple[str, AttentionConfig]:
    """(backbone, attention) of a model.

    Raises:
      EcaJaxError: nobody has registered it; the nearest names are given.
    """
    if of_type("name", name, str) not in MODELS:
        raise MODELS.unknown(name)
    return MODELS[name]


def attention_from_old(values: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """What version 0.1.0 wrote of an attention (the options of all kinds) without those that it does not have."""
    row = ATTENTIONS.get(kind or "none")
    known = {field.name for field in dataclasses.fields(row.options)} if row else set()
    return {k: v for k, v in values.items() if k == "kind" or (k in known and v is not None)}


def _expect_accepted(backbone: str, unusual: Mapping[str, Any]) -> None:
    """Refuses arguments of `OPTIONAL` that the factory of the backbone, a plugin's, does not have."""
    factory = BACKBONES[backbone]  # of a class, NNX's own __call__ hides what __init__ takes
    parameters = inspect.signature(factory.__init__ if isinstance(factory, type) else factory).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in unusual.items():
        if key not in parameters and not takes_all:
            raise EcaJaxError(
                f"{key}: the backbone {backbone!r} has no such argument; expected {OPTIONAL[key]}, got {value}"
            )


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    rngs: nnx.Rngs,
    in_channels: int = 3,
    attention: AttentionConfig | str = AttentionConfig(),
    small_stem: bool = False,
    output_stride: int = 32,
    width_multiplier: float = 1.0,
    dropout: float | None = None,
    drop_path: float = 0.0,
    rematerialise: bool = False,
    batch_norm_group: int | None = None,
    batch_norm_momentum: float = 0.1,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Backbone:
    """A model with fresh weights, in training mode: normalised images (b, h, w, in_channels) to (b, num_classes).

    Args:
      name: one of `list_models()`.
      num_classes: width of the logits.
      rngs: for the initialisation, e.g. `nnx.Rngs(0)`.
      in_channels: of the images.
      attention: changes the attention that the name implies (kernel sizes, SE's biases), or gives one to a plain
        backbone; a string is its kind, "eca".
      small_stem: for images of 8 to 64 pixels: full resolution up to the first stage.
      output_stride: 32, 16 or 8: pixels of the image that one of the last stage's stands for at most. Stages that would
        go beyond are dilated instead of strided; parameters and their shapes stay the same.
      width_multiplier: scales the number of channels.
      dropout: before the classifier; None is the architecture's own (0.25 in MobileNetV2, else none).
      drop_path: stochastic depth: the probability that the last block's branch is left out of an example.
      rematerialise: compute the inside of each block again in the backward pass instead of keeping it.
      batch_norm_group: examples that share batch statistics; None is the whole batch.
      batch_norm_momentum: in PyTorch's sense, the weight of the new batch.
      dtype: of the computation, a floating type of 16 to 64 bits; logits, statistics and gates stay float32 or wider.
      param_dtype: of parameters and running statistics.

    Raises:
      EcaJaxError: for an unknown name (the nearest are named), an attention that does not fit, or an argument of
        another type or a value that cannot work; float64 needs JAX_ENABLE_X64=1.
    """
    given = locals()
    if not isinstance(rngs, nnx.Rngs):
        raise EcaJaxError(f"rngs: expected flax.nnx.Rngs, got {rngs!r}: give nnx.Rngs(0)")
    attention = as_attention(attention)
    said = checked(given)
    kept = ("num_classes", "small_stem", "width_multiplier", *OPTIONAL)
    architecture = Architecture(name, attention=resolve_attention(name, attention), **{key: said[key] for key in kept})
    bricks = Bricks(
        architecture.attention,
        rngs,
        batch_norm_group=said["batch_norm_group"],
        batch_norm_momentum=said["batch_norm_momentum"],
        dtype=checked_dtype("dtype", dtype),
        param_dtype=checked_dtype("param_dtype", param_dtype),
    )
    backbone, _ = MODELS[name]
    of_backbone = ("num_classes", "small_stem", "width_multiplier", "dropout", "drop_path")
    unusual = {key: said[key] for key, usual in OPTIONAL.items() if said[key] != usual}
    _expect_accepted(backbone, unusual)
    model = BACKBONES[backbone](bricks, **{key: said[key] for key in of_backbone}, **unusual)
    model.architecture = architecture
    model.rematerialise = said["rematerialise"]
    return model
