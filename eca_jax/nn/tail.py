"""The end of a residual branch: projection, batch norm, attention, shortcut, activation.

An attention that needs only the average of its input (a `ChannelGate`) is computed here, in training and in a
bottleneck's inference, without a pass over the activation of its own; docs/performance.md derives how, and what it
saves. Any other attention is called as it stands.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from eca_jax.nn.attention import ChannelGate, Identity, squeeze
from eca_jax.nn.derivatives import differentiable
from eca_jax.nn.layers import Conv, rectified
from eca_jax.nn.norm import BatchNorm, moments, widened


def conv_norm(x: jax.Array, conv: Conv, norm: BatchNorm, *, relu: bool = False) -> jax.Array:
    """norm(conv(x)), then ReLU if asked for: (b, h, w, c_in) -> (b, h, w, c).

    With running statistics the norm's scale goes into the kernel, so what follows the convolution is a bias alone:
    XLA:GPU then gives bias, shortcut and ReLU to cuDNN's convolution instead of a pass over the activation each. On the
    CPU a pass over the pixels follows in any case, and one over all kernels would come on top of it.
    """
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
    """x = conv(x), widened, the average m of it (b, c), and a and b (b, 1, 1, c): a * x + b is norm(conv(x)).

    With batch statistics, and moves the running ones.
    """
    x = widened(conv(x), norm.mean[...].dtype)
    mean, square = moments(x)
    a, b = norm.batch_affine(mean, square, pixels=x.shape[1] * x.shape[2])
    return x, mean, a[:, None, None], b[:, None, None]


def in_turn(x: jax.Array, *layers: Any) -> jax.Array:
    """The layers one after another, a convolution and the norm behind it as one."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, Conv) and rest and isinstance(rest[0], BatchNorm):
            x = conv_norm(x, layer, rest.pop(0))
        else:
            x = layer(x)
    return x


def projected(mean: jax.Array, conv: Conv, norm: BatchNorm) -> jax.Array:
    """The average (b, c) over the pixels of norm(conv(h)), from that of h, (b, c_in), where the kernel is 1x1."""
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
    relu: bool,
) -> jax.Array:
    """relu(drop_path(attention(norm(conv(h)))) + shortcut), without relu and shortcut where there is none.

    Args:
      h: the inside of the branch, (b, h, w, c_in).
      conv: of stride 1 and one group, without bias.
      drop_path: leaves out whole examples.
      shortcut: (b, h, w, c).

    Returns:
      (b, h, w, c) in the norm's dtype.
    """
    if not isinstance(attention, ChannelGate | Identity):
        y = drop_path(attention(conv_norm(h, conv, norm)), rngs=rngs)
    elif norm.use_running_average:
        y = conv_norm(h, conv, norm)
        if isinstance(attention, ChannelGate):
            narrower = conv.kernel_size == (1, 1) and h.shape[-1] < y.shape[-1]
            gate = attention.gate(projected(squeeze(h), conv, norm) if narrower else squeeze(y))
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


def affine_relu(
    x: jax.Array, scale: jax.Array, offset: jax.Array, shortcut: jax.Array | None, dtype: DTypeLike
) -> jax.Array:
    """relu(x * scale + offset + shortcut), without a shortcut where that is None, in `dtype`.

    Args:
      x: (b, h, w, c), float32 or wider: a wider view of what a convolution returned in `dtype`.
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
        # out > 0, but of that XLA makes a question about what ReLU got, and keeps it.
        d = jnp.where(out != 0, gradient, 0)
        wide = d.astype(scale.dtype)
        s1 = wide.sum((1, 2), keepdims=True)
        s2 = (wide * x).sum((1, 2), keepdims=True)
        return wide * scale, s2, s1, *([] if shortcut is None else [d])

    args = (x, scale, offset) if shortcut is None else (x, scale, offset, shortcut)
    return differentiable(function, save, tangent, gradients, *args)


def _added(x: jax.Array, *shortcut: jax.Array) -> jax.Array:
    return functools.reduce(jnp.add, shortcut, x)
