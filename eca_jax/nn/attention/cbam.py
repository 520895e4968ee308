"""CBAM: a gate for every channel, then one for every pixel."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eca_jax.errors import EcaJaxError, expect_at_least, expect_one_of
from eca_jax.nn.attention.base import scale
from eca_jax.nn.attention.eca import MAX_KERNEL_SIZE
from eca_jax.nn.attention.maps import expect_map, maximum
from eca_jax.nn.attention.se import hidden_width
from eca_jax.nn.layers import Conv, fan_out_normal, uniform_fan_in
from eca_jax.nn.norm import BatchNorm, widened


def _max(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    for axis in sorted(axes, reverse=True):
        x = maximum(x, axis)
    return widened(x)


def _mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return x.mean(axes, dtype=jnp.promote_types(x.dtype, jnp.float32))


ORDERS = {"max_mean": (_max, _mean), "mean_max": (_mean, _max)}
"""What the two input channels of the convolution are: the authors' order, and timm's."""


@dataclasses.dataclass(frozen=True)
class CBAMOptions:
    """The options of CBAM; the defaults are the authors' settings."""

    reduction: int = 16
    """The hidden layer has channels / reduction channels, at least 1."""
    bias: bool = True
    """Biases in both layers of the gate for channels. timm's CbamModule has none."""
    order: str = "max_mean"
    """The input channels of the convolution: 'max_mean', or 'mean_max' as in timm's CbamModule."""
    kernel_size: int = 7
    """Of the convolution, odd."""

    def __post_init__(self):
        expect_at_least("attention.reduction", self.reduction)
        expect_one_of("attention.order", self.order, tuple(ORDERS))
        expect_odd("attention.kernel_size", self.kernel_size)


def expect_odd(name: str, size: int) -> None:
    """Refuses the size of a kernel that is not odd, or is too large; `name` is that of the option."""
    if size % 2 == 0 or not 1 <= size <= MAX_KERNEL_SIZE:
        raise EcaJaxError(f"{name}: expected an odd size of at most {MAX_KERNEL_SIZE}, got {size}")


class PlaneGate(nnx.Module):
    """sigmoid(BN(conv([max, mean]))): maximum and mean over one axis, and a gate for every place of the other two.

    The convolution is k x k, 2 channels to 1, padded with zeros, without bias: 2 k^2 + 2 parameters with the norm. Its
    initial values are normal with variance 2 / k^2, the norm's weight is `initial_scale`, its running statistics move
    by 0.01 a step. CBAM has one such gate, triplet attention three.
    """

    def __init__(
        self,
        kernel_size: int,
        *,
        order: str = "max_mean",
        initial_scale: float = 1.0,
        norm: Callable[..., BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        pad = (kernel_size - 1) // 2
        self.conv = Conv(
            2,
            1,
            (kernel_size, kernel_size),
            (1, 1),
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=(1, 1),
            kernel_init=fan_out_normal,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = norm(1, momentum=0.01, dtype=param_dtype, param_dtype=param_dtype)
        self.bn.scale.set_value(jnp.full(1, initial_scale, param_dtype))
        self.order = order

    def __call__(self, x: jax.Array, axis: int) -> jax.Array:
        """(b, h, w, c) -> gates with 1 instead of the size of `axis` (1, 2 or 3), in float32 or wider."""
        pooled = jnp.stack([pool(x, (axis,)) for pool in ORDERS[self.order]], axis=-1)
        # XLA:TPU compiles the convolution for minutes, once in each block, if an axis of the plane is the channels.
        z = jax.lax.platform_dependent(pooled, self.conv.kernel[...], tpu=banded, default=self.conv.convolve)
        return jnp.expand_dims(jax.nn.sigmoid(self.bn(z))[..., 0], axis)


def banded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of (b, p, q, 2) with (k, k, 2, 1), padded with zeros to the same size, as one along q alone.

    Its features are the places along p, of which the kernel makes matrices with k diagonals.
    """
    k, (b, p, q, _) = len(kernel), x.shape
    pad = (k - 1) // 2
    diagonals = np.stack([np.eye(p, k=pad - i) for i in range(k)]).astype(kernel.dtype)
    bands = jnp.einsum("irp,ijco->jrcp", diagonals, kernel, precision="highest").reshape(k, 2 * p, p)
    x = x.swapaxes(1, 2).reshape(b, q, 2 * p)
    layout = ("NWC", "WIO", "NWC")
    z = jax.lax.conv_general_dilated(x, bands, (1,), [(pad, pad)], dimension_numbers=layout, precision="highest")
    return z.swapaxes(1, 2)[..., None]


class CBAM(nnx.Module):
    """Convolutional block attention module: x' = x sigmoid(MLP(mean) + MLP(max)), y = x' times a gate for every pixel.

    The MLP is c -> c / 16 -> c with ReLU between. The gate for pixels is sigmoid(BN(conv7x7([max; mean]))), of the
    maximum and mean over the channels of x'. It takes images, (b, h, w, c), alone.

    Place: after the branch's last batch norm, before the addition. As in the authors' ResNet, the weight of the gate's
    batch norm starts at 0 and all biases at 0, the convolution at `fan_out_normal`. So every pixel's gate starts at
    exactly 0.5, every channel's near 0.5, and both together scale the branch by about 0.25. (timm starts that weight at
    1.) Parameters: 2 c^2 / 16 + c + c / 16 + 98 + 2, 2,532,592 in ResNet-50; without biases, as timm has it and as the
    tables of ECA-Net count ResNet-50 and ResNet-101, 2,516,544.

    Among several equal maxima, one gets the gradient, as in PyTorch's pooling (see `maximum`).

    Source: Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018; github.com/Jongchan/attention-module,
    MODELS/cbam.py and MODELS/model_resnet.py.

    Example:
      >>> import jax.numpy as jnp
      >>> from eca_jax.nn.attention import CBAM
      >>> from flax import nnx
      >>> attention = CBAM(64, rngs=nnx.Rngs(0))
      >>> attention.eval()  # its batch norm
      >>> attention(jnp.ones((2, 8, 8, 64))).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        bias: bool = True,
        order: str = "max_mean",
        kernel_size: int = 7,
        norm: Callable[..., BatchNorm] = BatchNorm,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        CBAMOptions(reduction, bias, order, kernel_size)  # refuses what cannot work

        def dense(c_in: int, c_out: int) -> nnx.Linear:  # biases start at 0
            init = uniform_fan_in(c_in)
            return nnx.Linear(c_in, c_out, use_bias=bias, kernel_init=init, param_dtype=param_dtype, rngs=rngs)

        hidden = hidden_width(channels, reduction)
        self.fc1, self.fc2 = dense(channels, hidden), dense(hidden, channels)
        self.spatial = PlaneGate(
            kernel_size, order=order, initial_scale=0.0, norm=norm, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> the same shape and dtype.

        Raises:
          EcaJaxError: the activation is not one of images.
        """
        expect_map("cbam", x)
        x = scale(x, jax.nn.sigmoid(self._mlp(_mean(x, (1, 2))) + self._mlp(_max(x, (1, 2)))))
        return x * self.spatial(x, 3).astype(x.dtype)

    def _mlp(self, s: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.relu(self.fc1(s)))
