"""What every backbone offers: stage outputs by name, and logits as a head on the last of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import AttentionConfig, squeeze


@dataclasses.dataclass(frozen=True)
class Feature:
    """One stage output: its name, its channels, and how many input pixels one of its pixels stands for."""

    name: str
    channels: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What `create_model` made a network from, as far as it decides names, shapes and what is computed."""

    name: str
    num_classes: int = 1000
    attention: AttentionConfig = AttentionConfig()
    """With its kind, whatever the name says."""
    small_stem: bool = False
    width_multiplier: float = 1.0


def expect_images(x: jax.Array) -> None:
    """Refuses what is not a batch of normalised RGB images (b, h, w, 3), by its shape and type alone.

    Raises:
      EcaJaxError: says which axis is missing or in another place, or how integers are normalised.
    """
    head = "model: expected normalised images (b, h, w, 3), floats"
    if not isinstance(x, jax.Array | np.ndarray):
        raise EcaJaxError(f"{head}, got {type(x).__name__}: make it an array, jnp.asarray(...)")
    if x.ndim != 4 or x.shape[3] != 3:
        advice = "images are RGB, one batch axis before"
        if x.ndim == 3 and x.shape[2] == 3:
            advice = "one image needs a batch axis too, x[None]"
        elif x.ndim == 4 and x.shape[1] == 3:
            advice = "channels come last, x.transpose(0, 2, 3, 1)"
        elif x.ndim == 4 and x.shape[3] == 1:
            advice = "a grey image is three equal channels, x.repeat(3, axis=3)"
        raise EcaJaxError(f"{head}, got the shape {x.shape}: {advice}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise EcaJaxError(
            f"{head}, got {x.dtype}: normalise them, "
            "(x / 255 - mean) / std with the mean and std of model.preprocess (eca_jax.data.preprocess.normalise)"
        )


class Backbone(nnx.Module):
    """Maps normalised images (b, h, w, 3) to logits (b, num_classes), float32 or wider.

    `train()` and `eval()` switch dropout, stochastic depth and batch statistics as in all of NNX. In training mode a
    network with dropout or stochastic depth needs `rngs`.
    """

    feature_info: tuple[Feature, ...]
    architecture: Architecture
    preprocess: PreprocessConfig = PreprocessConfig()
    """How the images are to be made that the weights were trained for."""
    rematerialise: bool = False
    """In the backward pass, compute the inside of each block again instead of keeping it: less memory, more time."""

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """(b, h, w, 3) -> every stage's output, (b, h / stride, w / stride, channels), as `feature_info` lists them."""
        raise NotImplementedError

    def head(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last stage's output -> logits (b, num_classes)."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        expect_images(x)
        return self.head(self.features(x, rngs=rngs)[self.feature_info[-1].name], rngs=rngs)

    @property
    def run(self) -> Callable[[nnx.Module, jax.Array, nnx.Rngs | None], jax.Array]:
        """(block, activation (b, h, w, c), rngs) -> what one residual block makes of it.

        No method: `nnx.tabulate` calls those in its own way, and fails where a module is among the arguments.
        """

        def call(block: Any, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
            return block(x, rngs=rngs)

        return nnx.remat(call) if self.rematerialise else call

    def pool(self, x: jax.Array) -> jax.Array:
        """Global average: (b, h, w, c) -> (b, c), float32 or wider."""
        return squeeze(x)
