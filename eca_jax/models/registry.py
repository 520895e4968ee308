"""Models by name: `eca_resnet50` is the attention `eca` on the backbone `resnet50`."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError, nearest
from eca_jax.models import mobilenetv2, resnet
from eca_jax.models.base import Backbone
from eca_jax.nn.attention import AttentionConfig
from eca_jax.nn.bricks import Bricks

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{name: functools.partial(resnet.ResNet, variant) for name, variant in resnet.VARIANTS.items()},
    "mobilenet_v2": mobilenetv2.MobileNetV2,
}
PREFIXES = {"": "none", "se_": "se", "eca_": "eca"}
MODELS = {prefix + name: (build, kind) for prefix, kind in PREFIXES.items() for name, build in BACKBONES.items()}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, filtered by a shell pattern: `list_models("eca_*")`."""
    return sorted(fnmatch.filter(MODELS, pattern))


def resolve_attention(name: str, attention: AttentionConfig = AttentionConfig()) -> AttentionConfig:
    """The attention of the model called `name`: its kind from the name unless a plain backbone is given another."""
    if name not in MODELS:
        raise EcaJaxError(f"unknown model {name!r}.{nearest(name, MODELS)}")
    kind = MODELS[name][1]
    if attention.kind not in (None, kind) and kind != "none":
        raise EcaJaxError(
            f"model {name!r} has the attention {kind!r}, but attention.kind is {attention.kind!r}: "
            "give the kind to the plain backbone instead"
        )
    return dataclasses.replace(attention, kind=attention.kind or kind)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    rngs: nnx.Rngs,
    attention: AttentionConfig = AttentionConfig(),
    small_stem: bool = False,
    width_multiplier: float = 1.0,
    dropout: float | None = None,
    batch_norm_group: int | None = None,
    batch_norm_momentum: float = 0.1,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Backbone:
    """A model with fresh weights, in training mode: maps normalised images (b, h, w, 3) to logits (b, num_classes).

    Args:
      name: one of `list_models()`.
      num_classes: width of the logits.
      rngs: for the initialisation, e.g. `nnx.Rngs(0)`.
      attention: changes the attention that the name implies (kernel sizes, SE's biases), or gives one to a plain
        backbone.
      small_stem: for images of 8 to 64 pixels: full resolution up to the first stage.
      width_multiplier: scales the number of channels.
      dropout: before the classifier; None is the architecture's own (0.25 in MobileNetV2, else none).
      batch_norm_group: examples that share batch statistics; None is the whole batch.
      batch_norm_momentum: in PyTorch's sense, the weight of the new batch.
      dtype: of the computation; logits, statistics and gates stay float32 or wider.
      param_dtype: of parameters and running statistics.

    Raises:
      EcaJaxError: for an unknown name (the nearest are named), or an attention that does not fit.
    """
    bricks = Bricks(
        resolve_attention(name, attention),
        rngs,
        batch_norm_group=batch_norm_group,
        batch_norm_momentum=batch_norm_momentum,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    build, _ = MODELS[name]
    return build(
        bricks,
        num_classes=num_classes,
        small_stem=small_stem,
        width_multiplier=width_multiplier,
        dropout=dropout,
    )
