"""Creates the layers of one network with the settings that they share.

Layout: activations are (b, h, w, c), convolution kernels (h, w, c_in / groups, c_out).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import AttentionConfig, Place, Slot, build_attention
from eca_jax.nn.layers import Conv, Dropout, fan_out_normal, linear
from eca_jax.nn.norm import BatchNorm

MAX_WEIGHTS = 2**29
"""The limit for one layer: 2 GB in float32, and 200 times the largest layer of a ResNet. For much larger shapes, XLA
ends the process instead of raising an error."""


@dataclasses.dataclass(frozen=True)
class Bricks:
    """The settings that all layers of a network share.

    Attributes:
      attention: the attention at the end of every block.
      batch_norm_group: examples that share batch statistics; None is the global batch.
      dtype: of the computation (bfloat16 on accelerators). Parameters, statistics, gates and logits stay wider.
      param_dtype: of the parameters and running statistics.
      convolution: the class of all convolutions.
      normalisation: the class of all batch norms.
      norm_epsilon: what those of the backbone add to the variance.
    """

    attention: AttentionConfig
    rngs: nnx.Rngs
    batch_norm_group: int | None = None
    batch_norm_momentum: float = 0.1
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    convolution: type[Conv] = Conv
    normalisation: type[BatchNorm] = BatchNorm
    norm_epsilon: float = 1e-5

    def conv(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        init: jax.nn.initializers.Initializer = fan_out_normal,
    ) -> Conv:
        """A `convolution` padded by dilation * (kernel_size - 1) / 2 on every side, PyTorch's `padding=`.

        `init` makes its kernel. At stride 2, 'SAME' is different: it pads less at the top and on the left.

        Raises:
          EcaJaxError: it would have no channels, or more than MAX_WEIGHTS weights.
        """
        if c_out < 1:
            raise EcaJaxError("width_multiplier: too small, it leaves a convolution with no channels")
        if (weights := kernel_size**2 * c_in * c_out // groups) > MAX_WEIGHTS:
            raise EcaJaxError(
                f"width_multiplier: too large, a convolution from {c_in} to {c_out} channels would have {weights} "
                f"weights; expected at most {MAX_WEIGHTS}"
            )
        pad = dilation * (kernel_size - 1) // 2
        return self.convolution(
            c_in,
            c_out,
            (kernel_size, kernel_size),
            (stride, stride),
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=(dilation, dilation),
            feature_group_count=groups,
            kernel_init=init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def classifier(
        self, c_in: int, num_classes: int, layer: Callable[..., nnx.Linear] = linear, **initialisers
    ) -> nnx.Linear:
        """The classifier, (b, c_in) -> logits (b, num_classes): a `layer` with our settings and the `initialisers`.

        Raises:
          EcaJaxError: it would have more than MAX_WEIGHTS weights.
        """
        if c_in * num_classes > MAX_WEIGHTS:
            raise EcaJaxError(
                f"num_classes: too large, a classifier from {c_in} channels to {num_classes} classes would have "
                f"{c_in * num_classes} weights; expected at most {MAX_WEIGHTS}"
            )
        return layer(c_in, num_classes, param_dtype=self.param_dtype, rngs=self.rngs, **initialisers)

    def norm(self, channels: int) -> BatchNorm:
        return self.normalisation(
            channels,
            group_size=self.batch_norm_group,
            momentum=self.batch_norm_momentum,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    @staticmethod
    def drop_path(rate: float) -> Dropout:
        """Stochastic depth: drops a branch (b, h, w, c) of an example with probability `rate`, scales up the others."""
        return Dropout(rate, broadcast_dims=(1, 2, 3))

    def attn(self, channels: int, place: Place, *, reduction: int = 16) -> nnx.Module:
        """The attention of one block; `reduction` is for SE, if the configuration gives none."""
        slot = Slot(channels, place, reduction, self.param_dtype, self.gate_norm)
        return build_attention(self.attention, slot, self.rngs)

    @property
    def gate_norm(self) -> Callable[..., BatchNorm]:
        """Makes a batch norm inside an attention: as `norm`, but its output has the type of the parameters."""
        return functools.partial(
            self.normalisation,
            group_size=self.batch_norm_group,
            momentum=self.batch_norm_momentum,
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
        )
