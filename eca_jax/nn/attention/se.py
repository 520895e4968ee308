"""Squeeze and excitation."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import ChannelGate
from eca_jax.nn.layers import linear


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


class SE(ChannelGate):
    """Squeeze and excitation: sigmoid(W2 relu(W1 s)) with `hidden` channels between (Hu et al. 2018).

    The SE networks in the ECA-Net paper have no biases (hidden = c / 16, or c / 8 in MobileNetV2); timm's SEModule has.
    """

    def __init__(self, channels: int, hidden: int, *, bias: bool = False, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.fc1 = linear(channels, hidden, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = linear(hidden, channels, use_bias=bias, param_dtype=param_dtype, rngs=rngs)

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(s))))
