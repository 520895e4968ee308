"""The end of a residual branch: projection, batch norm, attention, shortcut, activation.

An attention that needs only the averages of its input (a `ChannelGate`) is computed here without an extra pass over the
activation, in training and in the inference of bottlenecks; docs/performance.md derives how, and what this saves. Any
other attention is called as an ordinary module.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.errors import EcaJaxError
from eca_jax.nn.attention import ChannelGate, Identity, squeeze
from eca_jax.nn.derivatives import differentiable
from eca_jax.nn.layers import Conv, rectified
from eca_jax.nn.norm import BatchNorm, moments, widened
from eca_jax.nn.valid import Valid, masked


def conv_norm(
    x: jax.Array, conv: Conv, norm: BatchNorm, *, relu: bool = False, valid: Valid | None = None
) -> jax.Array:
    """norm(conv(x)), then ReLU if asked for: (b, h, w, c_in) -> (b, h, w, c).

    With running statistics, the norm's scale is multiplied into the kernel, so only a bias follows the convolution.
    XLA:GPU can then hand bias, shortcut and ReLU to cuDNN's convolution, instead of one pass over the activation for
    each. On the CPU, a pass over the pixels follows in any case, and scaling all kernels would be an additional one.

    Where something else stands in the place of one of the two, such as what `eca_jax.analysis` looks at them with, both
    are called as they are.

    A kernel that covers several pixels sees zeros outside of the images that `valid` describes.
    """
    if valid is not None:
        expect_fixed(norm)
        x = valid.mask(x) if conv.kernel_size != (1, 1) else x
    if not (isinstance(conv, Conv) and isinstance(norm, BatchNorm)):
        y = norm(conv(x))
        return rectified(y) if relu else y
    if norm.use_running_average:
        kernel, (a, b) = conv.kernel[...], norm.running_affine()
        y = jax.lax.platform_dependent(
            x,
            kernel,
            a,
            b.astype(norm.dtype),
            cpu=lambda x, kernel, a, b: conv.convolve(x, kernel) * a.astype(norm.dtype) + b,
            default=lambda x, kernel, a, b: conv.convolve(x, kernel * a) + b,
        )
        return rectified(y) if relu else y
    x, _, a, b = normalised(x, conv, norm)
    return affine_relu(x, a, b, None, norm.dtype) if relu else (x * a + b).astype(norm.dtype)


def normalised(x: jax.Array, conv: Conv, norm: BatchNorm) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Convolution and batch statistics: (y, mean, a, b), so that a * y + b is norm(conv(x)).

    Updates the running statistics. y is conv(x), float32 or wider; mean (b, c) is its average; a and b are
    (b, 1, 1, c).
    """
    x = widened(conv(x), norm.mean[...].dtype)
    mean, square = moments(x)
    a, b = norm.batch_affine(mean, square, pixels=x.shape[1] * x.shape[2])
    return x, mean, a[:, None, None], b[:, None, None]


def in_turn(x: jax.Array, *layers: Any, valid: Valid | None = None) -> jax.Array:
    """Applies the layers one after another; a convolution and the norm behind it are computed together."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, Conv) and rest and isinstance(rest[0], BatchNorm):
            x = conv_norm(x, layer, rest.pop(0), valid=valid)
        else:
            x = layer(masked(x, valid))
    return x


def projected(mean: jax.Array, conv: Conv, norm: BatchNorm) -> jax.Array:
    """The average of norm(conv(h)) over the pixels, (b, c), from the average of h, (b, c_in); the kernel is 1x1."""
    a, b = norm.running_affine()
    return jnp.matmul(mean, widened(conv.kernel[0, 0].astype(norm.dtype)), precision="highest") * a + b


def tail(
    h: jax.Array,
    conv: Conv,
    norm: BatchNorm,
    attention: nnx.Module,
    *,
    drop_path: nnx.Dropout,
    rngs: nnx.Rngs | None,
    shortcut: jax.Array | None,
    relu: bool = True,
    valid: Valid | None = None,
) -> jax.Array:
    """relu(drop_path(attention(norm(conv(h)))) + shortcut), with or without the relu and the shortcut.

    Args:
      h: the activation inside the branch, (b, h, w, c_in).
      conv: the last convolution, with stride 1, one group and no bias.
      drop_path: drops the branch for whole examples.
      shortcut: (b, h, w, c), or None.
      valid: the images, where they are padded.

    Returns:
      (b, h, w, c) in the norm's dtype.

    Raises:
      EcaJaxError: there is padding, and an attention that would mix it with the image.
    """
    if not isinstance(attention, ChannelGate | Identity):
        expect_whole(attention, valid)
        y = drop_path(attention(conv_norm(h, conv, norm)), rngs=rngs)
    elif norm.use_running_average:
        y = conv_norm(h, conv, norm, valid=valid)
        if isinstance(attention, ChannelGate):
            narrower = conv.kernel_size == (1, 1) and h.shape[-1] < y.shape[-1]
            gate = attention.gate(projected(squeeze(h, valid), conv, norm) if narrower else squeeze(y, valid))
            y = (y * gate[:, None, None]).astype(y.dtype)
        y = drop_path(y, rngs=rngs)
    else:
        x, mean, a, b = normalised(h, conv, norm)
        if isinstance(attention, ChannelGate):
            gate = attention.gate((a * mean[:, None, None] + b)[:, 0, 0])[:, None, None]
            a, b = a * gate, b * gate
        keep = drop_path(jnp.ones((len(x), 1, 1, 1), x.dtype), rngs=rngs)
        a, b = a * keep, b * keep
        if relu:
            return affine_relu(x, a, b, shortcut, norm.dtype)
        y = (x * a + b).astype(norm.dtype)
    y = y if shortcut is None else y + shortcut
    return rectified(y) if relu else y


def expect_fixed(norm: BatchNorm) -> None:
    """Refuses padded images for a batch norm that would take statistics of them.

    Raises:
      EcaJaxError: it is in training mode.
    """
    if not norm.use_running_average:
        raise EcaJaxError(
            "batch norm: the statistics of a batch of padded images would be those of the padding; expected "
            "model.eval(), or a network of FixedBatchNorm, as detectors are"
        )


def expect_whole(attention: nnx.Module, valid: Valid | None) -> None:
    """Refuses padded images for an attention that knows no padding.

    Raises:
      EcaJaxError: names the attention.
    """
    if valid is not None:
        raise EcaJaxError(
            f"{type(attention).__name__}: this attention looks at pixels, and would mix the padding of an image with "
            "the image; expected images that fill their batch (no `sizes`), or an attention of averages such as ECA"
        )


def affine_relu(
    x: jax.Array, scale: jax.Array, offset: jax.Array, shortcut: jax.Array | None, dtype: DTypeLike
) -> jax.Array:
    """relu(x * scale + offset + shortcut) in `dtype`; `shortcut` may be None.

    Args:
      x: (b, h, w, c), float32 or wider: the output of a convolution in `dtype`, converted.
      scale, offset: (b, 1, 1, c).
      shortcut: (b, h, w, c) in `dtype`.
    """

    def function(x, scale, offset, *shortcut):
        return jax.nn.relu(_added((x * scale + offset).astype(dtype), *shortcut))

    def save(out, x, scale, *_):
        return x.astype(dtype), scale, out

    def tangent(saved, tangents):
        x, scale, out = saved
        dx, dscale, doffset, *dshortcut = tangents
        return (jnp.where(out != 0, _added((dx * scale + x * dscale + doffset).astype(dtype), *dshortcut), 0),)

    def gradients(saved, gradients):
        (x, scale, out), (gradient,) = saved, gradients
        # Means out > 0; XLA would rewrite that as a condition on ReLU's input, and keep that activation in memory.
        d = jnp.where(out != 0, gradient, 0)
        wide = d.astype(scale.dtype)
        s1 = wide.sum((1, 2), keepdims=True)
        s2 = (wide * x).sum((1, 2), keepdims=True)
        return wide * scale, s2, s1, *([] if shortcut is None else [d])

    args = (x, scale, offset) if shortcut is None else (x, scale, offset, shortcut)
    return differentiable(function, save, tangent, gradients, *args)


def _added(x: jax.Array, *shortcut: jax.Array) -> jax.Array:
    return functools.reduce(jnp.add, shortcut, x)
