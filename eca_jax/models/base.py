"""What every backbone offers: stage outputs by name, and logits as a head on the last of them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.settings import checked
from eca_jax.nn.attention import AttentionConfig, squeeze
from eca_jax.nn.bricks import Bricks
from eca_jax.nn.valid import Valid


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
    in_channels: int = 3
    output_stride: int = 32
    """No trace of it is in names and shapes."""


@dataclasses.dataclass(frozen=True)
class Spacing:
    """The strides and dilations of the windows in a block."""

    stride: int = 1
    first_dilation: int = 1
    """Of its first window that covers several pixels."""
    dilation: int = 1
    """Of the others."""


def spacings(strides: Sequence[int], stem_stride: int, output_stride: int) -> Iterator[tuple[int, Spacing, Spacing]]:
    """Of every stage: its stride against the image, the spacing of its first block, and that of its other blocks.

    A stride that would take a stage beyond `output_stride` becomes 1, and the windows after it are dilated by it
    instead: the weights that met every second pixel of the smaller activation do so in the larger one (Yu and Koltun
    2016; torchvision's `replace_stride_with_dilation`, timm's `output_stride`). The window that had the stride comes
    before that, so it has the dilation of the stage before.

    Args:
      strides: of the stages.
      stem_stride: of what is before the first stage.
    """
    total, dilation = stem_stride, 1
    for stride in strides:
        before = dilation
        if total * stride > output_stride:
            dilation, stride = dilation * stride, 1
        total *= stride
        yield total, Spacing(stride, before, dilation), Spacing(1, dilation, dilation)


def expect_images(x: jax.Array, channels: int = 3) -> None:
    """Refuses what is not a batch of normalised images (b, h, w, channels), by its shape and type alone.

    Raises:
      EcaJaxError: says which axis is missing or in another place, or how integers are normalised.
    """
    head = f"model: expected normalised images (b, h, w, {channels}), floats"
    if not isinstance(x, jax.Array | np.ndarray):
        raise EcaJaxError(f"{head}, got {type(x).__name__}: make it an array, jnp.asarray(...)")
    if x.ndim != 4 or x.shape[3] != channels:
        if x.ndim == 3 and x.shape[2] == channels:
            advice = "one image needs a batch axis too, x[None]"
        elif x.ndim == 4 and x.shape[1] == channels:
            advice = "channels come last, x.transpose(0, 2, 3, 1)"
        elif channels != 3:
            advice = f"this network was made with in_channels={channels}, one batch axis before"
        elif x.ndim == 4 and x.shape[3] == 1:
            advice = "a grey image is three equal channels, x.repeat(3, axis=3)"
        else:
            advice = "images are RGB, one batch axis before"
        raise EcaJaxError(f"{head}, got the shape {x.shape}: {advice}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        advice = "(x / 255 - mean) / std with the mean and std of model.preprocess (eca_jax.data.preprocess.normalise)"
        if channels != 3:
            advice = f"(x - mean) / std with a mean and std of your own for the {channels} channels"
        raise EcaJaxError(f"{head}, got {x.dtype}: normalise them, {advice}")


class Backbone(nnx.Module):
    """Maps normalised images (b, h, w, in_channels) to logits (b, num_classes), float32 or wider.

    `train()` and `eval()` switch dropout, stochastic depth and batch statistics as in all of NNX. In training mode a
    network with dropout or stochastic depth needs `rngs`.
    """

    feature_info: tuple[Feature, ...]
    architecture: Architecture
    in_channels: int = 3
    preprocess: PreprocessConfig = PreprocessConfig()
    """How the images are to be made that the weights were trained for; of RGB, its `mean` and `std` are for nothing
    where there are other channels."""
    rematerialise: bool = False
    """In the backward pass, compute the inside of each block again instead of keeping it: less memory, more time."""
    classifier_name: ClassVar[str] = "fc"
    """The attribute that has the last layer, which `reset_classifier` replaces."""
    classifier_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of `Bricks.classifier` by which the last layer is made."""
    head_layers: ClassVar[tuple[str, ...]] = ("fc",)
    """The attributes that `features` needs none of, which a detector leaves out."""

    def features(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None
    ) -> dict[str, jax.Array]:
        """(b, h, w, in_channels) -> every stage's output, (b, h / stride, w / stride, channels): see `feature_info`.

        `valid` says where in the batch the images are, if they are padded; what is beyond them in the outputs means
        nothing. A backbone without this argument takes images that fill their batch.
        """
        raise NotImplementedError

    def head(self, x: jax.Array, *, pre_logits: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last stage's output -> logits (b, num_classes).

        With `pre_logits`, what the classifier gets: the global average (b, c), float32 or wider, in training mode after
        dropout, as timm's `forward_head(x, pre_logits=True)`.
        """
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Gives the network a fresh last layer for `num_classes`; everything else stays as it is.

        An optimiser that was made before this has the old layer's state: make it anew.

        Raises:
          EcaJaxError: for a number that cannot be, or of a backbone whose `classifier_name` names no dense layer.
        """
        num_classes = checked({"num_classes": num_classes})["num_classes"]
        old = getattr(self, self.classifier_name, None)
        if not isinstance(old, nnx.Linear):
            raise EcaJaxError(
                f"reset_classifier: the backbone {type(self).__name__} has no dense layer {self.classifier_name!r}; "
                "its class has to say the layer's name, classifier_name"
            )
        bricks = Bricks(self.architecture.attention, rngs, param_dtype=old.param_dtype)
        new = bricks.classifier(old.in_features, num_classes, **self.classifier_options)
        setattr(self, self.classifier_name, new)
        self.architecture = dataclasses.replace(self.architecture, num_classes=num_classes)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        expect_images(x, self.in_channels)
        return self.head(self.features(x, rngs=rngs)[self.feature_info[-1].name], rngs=rngs)

    @property
    def run(self) -> Callable[..., Any]:
        """(block, activation (b, h, w, c), rngs, valid) -> what one residual block makes of it.

        The activation may be among other arrays in a tuple, if the block takes one. `valid` is None where the images
        fill their batch; only then blocks without that argument can be run.

        No method: `nnx.tabulate` calls those in its own way, and fails where a module is among the arguments.
        """

        def call(block: Any, x: Any, rngs: nnx.Rngs | None, valid: Valid | None = None) -> Any:
            return block(x, rngs=rngs) if valid is None else block(x, rngs=rngs, valid=valid)

        return nnx.remat(call) if self.rematerialise else call

    def pool(self, x: jax.Array) -> jax.Array:
        """Global average: (b, h, w, c) -> (b, c), float32 or wider."""
        return squeeze(x)
