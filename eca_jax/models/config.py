"""The network of a run."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.models.base import Architecture, Backbone
from eca_jax.models.registry import create_model, resolve_attention
from eca_jax.models.settings import DTYPES, checked, checked_dtype
from eca_jax.nn.attention import AttentionConfig
from eca_jax.plain import TypedFields


@dataclasses.dataclass(frozen=True)
class ModelConfig(TypedFields, at="model"):
    """The network; see `eca_jax.create_model`."""

    name: str = "eca_resnet50"
    """One of `eca_jax.list_models()`."""
    attention: AttentionConfig = AttentionConfig()
    """Changes what the name implies; in Python a string is the kind: ModelConfig("resnet50", attention="eca")."""
    small_stem: bool = False
    """For images of 8 to 64 pixels."""
    output_stride: int = 32
    """32, 16 or 8: pixels of the image that one of the last stage's stands for; below 32 its stages are dilated."""
    width_multiplier: float = 1.0
    """Scales the number of channels."""
    dropout: float | None = None
    """Before the classifier; None is the architecture's own."""
    drop_path: float = 0.0
    """Stochastic depth: probability that the last block's branch is left out; it grows linearly from the first's 0."""
    batch_norm_group: int | None = None
    """Examples that share batch statistics (the paper's: 64); None is the global batch."""
    pretrained: str | None = None
    """Weights to start from: a file, a run, or a name on the hub, as `eca_jax.load_pretrained` takes them."""
    skip: tuple[str, ...] = ()
    """Shell patterns of names in the pretrained weights that start anew: ("fc.*",) for another head."""
    rematerialise: bool = False
    """Compute the inside of each block again in the backward pass instead of keeping it: less memory, more time."""
    dtype: str = "float32"
    """Of the computation: 'float32' or 'bfloat16'; parameters, statistics, logits and loss stay float32. 'float64' is
    for checks of arithmetic and needs JAX_ENABLE_X64=1."""

    def __post_init__(self):
        resolve_attention(self.name, self.attention)
        checked_dtype("model.dtype", self.dtype, DTYPES)
        checked(vars(self), at="model.")
        if self.skip and self.pretrained is None:
            raise EcaJaxError(f"model.skip: {self.skip} is of model.pretrained, which is not given")


def build_model(model: ModelConfig, num_classes: int, rngs: nnx.Rngs) -> Backbone:
    """The model that the configuration describes, with fresh weights."""
    return create_model(
        model.name,
        num_classes=num_classes,
        rngs=rngs,
        attention=model.attention,
        small_stem=model.small_stem,
        output_stride=model.output_stride,
        width_multiplier=model.width_multiplier,
        dropout=model.dropout,
        drop_path=model.drop_path,
        rematerialise=model.rematerialise,
        batch_norm_group=model.batch_norm_group,
        dtype=jnp.dtype(model.dtype),
        param_dtype=param_dtype(model),
    )


def param_dtype(model: ModelConfig) -> np.dtype:
    """Of parameters, statistics, and the images as they enter the network: float32 or wider."""
    return jnp.promote_types(model.dtype, jnp.float32)


def architecture(model: ModelConfig, num_classes: int) -> Architecture:
    """What `build_model` makes, by name."""
    attention = resolve_attention(model.name, model.attention)
    return Architecture(
        model.name,
        num_classes,
        attention,
        small_stem=model.small_stem,
        width_multiplier=model.width_multiplier,
        output_stride=model.output_stride,
    )
