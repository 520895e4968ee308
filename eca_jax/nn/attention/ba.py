"""Bridge attention, whose gates look at all activations of a block, not at its last alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import Informed, squeeze
from eca_jax.nn.attention.se import hidden_width
from eca_jax.nn.layers import linear
from eca_jax.nn.norm import BatchNorm
from eca_jax.nn.valid import Valid


class BA(nnx.Module):
    """Bridge attention: sigmoid(W relu(sum over i of BN_i(W_i s_i))), no biases beside those of the batch norms.

    s_1, s_2, ... are the averages of the block's activations: after each inner batch norm and ReLU, and after the last
    batch norm, whose activation is gated before the addition. Every W_i leads to channels / 16 hidden values, at least
    one, and W back to all channels. Initial weights are PyTorch's, so that gates start around 0.5. (Zhao et al., ECCV
    2022; zhaoy376/Bridge-Attention, models/BA_module.py, BA_module_resnet.)

    In a bottleneck that is 5 c^2 / 32 + 3 c / 8 parameters, 3,149,344 on ResNet-50.

    The batch norms see one value of each example: in training the gates of an image depend on the whole batch, or on
    its statistics group, which must have more than one example. (The later version of arXiv 2410.07860 is another.)
    """

    def __init__(
        self,
        inner: Sequence[int],
        channels: int,
        *,
        norm: Callable[[int], BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`inner`: channels of the activations before the last, in their order; `norm`: makes a batch norm."""
        hidden = hidden_width(channels)

        def layer(c_in: int, c_out: int) -> nnx.Linear:
            return linear(c_in, c_out, use_bias=False, param_dtype=param_dtype, rngs=rngs)

        self.reduce = nnx.List([layer(c, hidden) for c in (*inner, channels)])
        self.norms = nnx.List([norm(hidden) for _ in self.reduce])
        self.expand = layer(hidden, channels)
        self.deterministic = False  # set by nnx.Module.train() and .eval()

    def gate(self, *averages: jax.Array) -> jax.Array:
        """The averages (b, c_i) of all activations -> gates (b, c) of the last one's channels."""
        self._expect_several(averages[0].shape[0])
        hidden = sum(norm(fc(s)) for fc, norm, s in zip(self.reduce, self.norms, averages, strict=True))
        return jax.nn.sigmoid(self.expand(jax.nn.relu(hidden)))

    def after(self, *inner: jax.Array, valid: Valid | None = None) -> Informed:
        """The gate at the block's end, from the activations (b, ..., c_i) before it; `valid` of padded images."""
        averages = [squeeze(x, valid) for x in inner]
        return Informed(lambda s: self.gate(*averages, s))

    def _expect_several(self, batch: int) -> None:
        if not self.deterministic and (self.norms[0].group_size or batch) == 1:
            raise EcaJaxError(
                "BA: its batch norms have one value of each example, and no variance over a statistics group of 1; "
                "expected a batch, and model.batch_norm_group, of 2 or more in training, or model.eval()"
            )
