"""ECA, its variant without sharing, and their kernel sizes (ECA-Net, CVPR 2020; ECANet, models/eca_module.py)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention.base import SUM_OF_PRODUCTS, ChannelGate, Slot
from eca_jax.nn.layers import uniform_fan_in

KernelSizes = int | tuple[int, ...] | str
KERNEL_POLICIES = ("released", "adaptive")
MAX_KERNEL_SIZE = 255
"""The limit on kernel sizes. A kernel of k weights becomes k multiplications in the program, in every block, and three
times as many in training, so a size with too many zeros would be traced for minutes. The formula asks for 7 on 2048
channels; the paper tried up to 9."""


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """|log2(channels) / gamma + b / gamma|_odd, at least 3 (ECA-Net, equation 12, rounded as the authors and timm do).

    16..96 channels give 3, 128..1280 give 5, 2048 gives 7.

    Example:
      >>> from eca_jax.nn import adaptive_kernel_size
      >>> [adaptive_kernel_size(channels) for channels in (64, 128, 256, 512, 2048)]
      [3, 5, 5, 5, 7]
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return max(t if t % 2 else t + 1, 3)


@dataclasses.dataclass(frozen=True)
class KernelOptions:
    """The options of the attentions that slide a kernel over the channels."""

    kernel_sizes: KernelSizes = "released"
    """'released' (the sizes of the authors' checkpoints, which do not follow the formula), 'adaptive' (the formula on
    the gated channels), one odd size for all stages, or one for each (3 5 5 7)."""

    def __post_init__(self):
        if isinstance(self.kernel_sizes, str):
            if self.kernel_sizes not in KERNEL_POLICIES:
                raise EcaJaxError(
                    f"attention.kernel_sizes: unknown policy {self.kernel_sizes!r}; expected one of "
                    f"{', '.join(KERNEL_POLICIES)}, or odd sizes such as 3 5 5 7"
                )
        else:
            sizes = self.kernel_sizes if isinstance(self.kernel_sizes, tuple | list) else (self.kernel_sizes,)
            if not sizes:
                raise EcaJaxError("attention.kernel_sizes: expected one odd size, or one for each stage, got none")
            for size in sizes:
                _check_kernel_size(size)

    def kernel_size(self, slot: Slot) -> int:
        """The kernel size of one slot."""
        policy, place = self.kernel_sizes, slot.place
        if policy == "released":
            return place.released
        if policy == "adaptive":
            return adaptive_kernel_size(slot.channels)
        if isinstance(policy, int):
            return policy
        if len(policy) != place.stages:
            raise EcaJaxError(
                f"kernel_sizes={policy} has {len(policy)} sizes, the network {place.stages} stages: give one size, "
                f"or {place.stages}, or a policy out of {', '.join(KERNEL_POLICIES)}"
            )
        return int(policy[place.stage])


@dataclasses.dataclass(frozen=True)
class ECAOptions(KernelOptions):
    """The options of ECA."""

    circular: bool = False
    """The kernel wraps around at the ends of the channel axis instead of meeting zeros there (timm's CecaModule)."""


def _check_kernel_size(size: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool):
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd whole number, got {size!r}")
    if size > MAX_KERNEL_SIZE:
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd size of at most {MAX_KERNEL_SIZE}, got {size}")
    if size < 1:
        raise EcaJaxError(f"attention.kernel_sizes: expected an odd size of at least 1, got {size}")
    if size % 2 == 0:
        raise EcaJaxError(
            f"attention.kernel_sizes: expected an odd size of at least 1, got {size}: "
            f"an even kernel has no centre channel; use {size - 1} or {size + 1}"
        )
    return size


@jax.named_scope(SUM_OF_PRODUCTS)
def slide(s: jax.Array, kernel: jax.Array, *, circular: bool = False) -> jax.Array:
    """Correlates s (b, c) with a kernel along the channels, as k shifted multiplications.

    The kernel has the shape (k,), or (k, c) with a kernel for each channel. A convolution primitive over the channel
    axis compiles several times slower on TPU and needs extra calls on GPU.
    """
    k, c = kernel.shape[0], s.shape[1]
    pad = (k - 1) // 2
    padded = jnp.pad(s, ((0, 0), (pad, pad)), mode="wrap" if circular else "constant")
    return functools.reduce(jnp.add, (padded[:, j : j + c] * kernel[j] for j in range(k)))


class ECA(ChannelGate):
    """Efficient channel attention: sigmoid(conv1d(s)), one kernel of k weights slid over the channels (equation 9).

    Maps (b, ..., c) to the same shape and dtype. It has no bias and does not flip the kernel. The channels are padded
    with zeros, or with `circular` they wrap around. The paper's Figure 3 omits the sigmoid; its equation and the
    authors' code have it. It stands after the last batch norm of the branch. Its gates start near 0.5; the kernel
    starts as PyTorch's Conv1d does.

    Args:
      kernel_size: k, an odd number; None is the formula's, `adaptive_kernel_size(channels)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from eca_jax.nn import ECA
      >>> from flax import nnx
      >>> attention = ECA(64, rngs=nnx.Rngs(0))
      >>> attention.kernel.shape
      (3,)
      >>> attention(jnp.ones((2, 8, 8, 64))).shape
      (2, 8, 8, 64)
      >>> attention.gate(jnp.zeros((2, 64)))[0, 0]  # of averages
      Array(0.5, dtype=float32)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        *,
        circular: bool = False,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kernel_size = adaptive_kernel_size(channels) if kernel_size is None else _check_kernel_size(kernel_size)
        if circular and kernel_size > channels:
            raise EcaJaxError(f"ECA: a circular kernel of {kernel_size} does not fit on {channels} channels")
        self.kernel = nnx.Param(uniform_fan_in(kernel_size)(rngs.params(), (kernel_size,), param_dtype))
        self.circular = circular

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(slide(s, self.kernel[...], circular=self.circular))


class ECA_NS(ChannelGate):
    """ECA without sharing: every channel has a kernel of its own, k * c weights (the paper's ablation, Table 2).

    Maps (b, ..., c) to the same shape and dtype.
    """

    def __init__(self, channels: int, kernel_size: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        _check_kernel_size(kernel_size)
        self.kernel = nnx.Param(uniform_fan_in(kernel_size)(rngs.params(), (kernel_size, channels), param_dtype))

    def gate(self, s: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(slide(s, self.kernel[...]))
