"""The global context block (GCNet)."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least
from eca_jax.nn.attention.base import Identity, Place, Slot, weighted_sum
from eca_jax.nn.layers import linear
from eca_jax.nn.norm import widened


@dataclasses.dataclass(frozen=True)
class GCOptions:
    """The options of the global context block."""

    reduction: int = 16
    """The hidden layer has channels / reduction channels."""
    stages: tuple[int, ...] | None = None
    """The stages whose blocks have it, counted from 0; None is all of them. The authors' ResNets have (1, 2, 3)."""
    epsilon: float = 1e-5
    """Of the layer norm; timm's is 1e-6."""

    def __post_init__(self):
        expect_at_least("attention.reduction", self.reduction)
        if not self.epsilon > 0:
            raise EcaJaxError(f"attention.epsilon: expected more than 0, got {self.epsilon}")

    def has(self, place: Place) -> bool:
        """Whether the blocks there have it.

        Raises:
          EcaJaxError: the network does not have all of these stages.
        """
        if self.stages is None:
            return True
        if wrong := [stage for stage in self.stages if not 0 <= stage < place.stages]:
            raise EcaJaxError(
                f"attention.stages: expected numbers from 0 to {place.stages - 1}, the network's stages, got {wrong[0]}"
            )
        return place.stage in self.stages


class GC(nnx.Module):
    """Global context: x + W2 relu(LN(W1 s)), where s = sum over the pixels of softmax(wk . x) x.

    wk (c,) looks for the pixels that matter in an image, and the softmax over all pixels weighs them. W1, W2 and wk
    have biases; that of wk has no effect, since it moves all pixels alike, but the authors' has it too. LN is a layer
    norm over the hidden channels. It adds to the activation, instead of scaling it.

    It stands after the last batch norm of a branch, as the authors' does. W2 and its bias start at zero: at first it
    changes nothing. wk starts normal with std sqrt(2 / c), W1 as PyTorch's default. On ResNet-50 it has 2,548,000
    parameters in all 16 blocks; the 28.08 million that the paper counts for the whole network have it in the 13 blocks
    of the last three stages (`stages=(1, 2, 3)`), 2,521,741 parameters.

    Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCVW 2019;
    github.com/xvjiarui/GCNet, mmdet/ops/gcb/context_block.py. In timm it is `gca`, with a hidden layer of channels / 8
    and 1e-6 in the layer norm.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, epsilon: float = 1e-5, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        """Raises an EcaJaxError if the hidden layer would have fewer than two channels."""
        hidden = channels // reduction
        if hidden < 2:
            raise EcaJaxError(
                f"gc: {channels} channels / {reduction} leave {hidden} for the layer norm, which needs 2 to be other "
                f"than constant; expected at least {2 * reduction} channels: a wider network, or attention.reduction "
                f"{max(channels // 2, 1)} or less"
            )
        zeros = nnx.initializers.zeros
        self.mask = nnx.Linear(
            channels,
            1,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.fc1 = linear(channels, hidden, param_dtype=param_dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(hidden, epsilon=epsilon, use_fast_variance=False, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, channels, kernel_init=zeros, param_dtype=param_dtype, rngs=rngs)

    def context(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> (b, c): the average of the pixels with their weights, float32 or wider."""
        x = widened(x).reshape(x.shape[0], -1, x.shape[-1])
        # Sums and no matrix products, which would have one column: on TPU they are rounded to bfloat16.
        bias = cast(nnx.Param, self.mask.bias)[...]
        weights = jax.nn.softmax(weighted_sum(x, self.mask.kernel[:, 0], -1) + bias, axis=1)
        return weighted_sum(x, weights[..., None], 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, ..., c) -> the same shape and dtype, with as much added to every pixel."""
        added = self.fc2(jax.nn.relu(self.norm(self.fc1(self.context(x)))))
        return x + jnp.expand_dims(added.astype(x.dtype), range(1, x.ndim - 1))


def build_gc(slot: Slot, options: GCOptions, rngs: nnx.Rngs) -> nnx.Module:
    """The block of one slot; no attention in stages that are to have none."""
    if not options.has(slot.place):
        return Identity()
    return GC(
        slot.channels,
        reduction=options.reduction,
        epsilon=options.epsilon,
        param_dtype=slot.param_dtype,
        rngs=rngs,
    )
