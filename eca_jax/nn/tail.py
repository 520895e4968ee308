"""The end of a residual branch: projection, batch norm, attention, shortcut, activation.

An attention that needs only the average of its input (a `ChannelGate`) is computed here without a pass over the
activation of its own; docs/performance.md derives how, and what it saves. Any other attention is called as it stands.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from eca_jax.nn.attention import ChannelGate
from eca_jax.nn.layers import Conv
from eca_jax.nn.norm import BatchNorm, moments, widened


def conv_norm(x: jax.Array, conv: Conv, norm: BatchNorm) -> jax.Array:
    """norm(conv(x)): (b, h, w, c_in) -> (b, h, w, c).

    With running statistics the norm's scale goes into the kernel, so what follows the convolution is a bias alone:
    XLA:GPU then gives bias, shortcut and ReLU to cuDNN's convolution instead of a pass over the activation each.
    """
    if not norm.use_running_average:
        return norm(conv(x))
    kernel, bias = folded(conv, norm)
    return conv.convolve(x, kernel) + bias.astype(norm.dtype)


def in_turn(x: jax.Array, *layers: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The layers one after another, a convolution and the norm behind it as one."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, Conv) and rest and isinstance(rest[0], BatchNorm):
            x = conv_norm(x, layer, rest.pop(0))
        else:
            x = layer(x)
    return x


def folded(conv: Conv, norm: BatchNorm) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias (c,) of the convolution that is norm(conv(x)) by the running statistics."""
    a, b = norm.running_affine()
    return conv.kernel[...] * a, b


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
    if not isinstance(attention, ChannelGate):
        y = drop_path(attention(conv_norm(h, conv, norm)), rngs=rngs)
    elif norm.use_running_average:
        kernel, bias = folded(conv, norm)
        gate = attention.gate(projected_mean(h, kernel.astype(h.dtype)) + bias)
        y = conv_norm(h, conv, norm)
        y = (y * drop_path(gate[:, None, None], rngs=rngs)).astype(y.dtype)
    else:
        x = widened(conv(h), norm.mean[...].dtype)
        mean, square = moments(x)
        a, b = norm.batch_affine(mean, square, pixels=x.shape[1] * x.shape[2])
        gate = drop_path(attention.gate(a * mean + b)[:, None, None], rngs=rngs)
        scale, offset = a[:, None, None] * gate, b[:, None, None] * gate
        if relu and shortcut is not None:
            return affine_add_relu(x, scale, offset, shortcut)
        y = (x * scale + offset).astype(norm.dtype)
    y = y if shortcut is None else y + shortcut
    return nnx.relu(y) if relu else y


def projected_mean(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """The average over its pixels, (b, c), of h convolved with the kernel, from sums over h alone.

    Averaging commutes with a 1x1 convolution. With a larger kernel and zero padding, each tap meets h without the rows
    and the columns at one border: the sum over all of h, less the two borders, and their corner again.

    Args:
      h: (b, h, w, c_in).
      kernel: (k, k, c_in, c) with k odd, slid with stride 1 over h with k // 2 zeros around it.
    """
    kernel = widened(kernel)
    total = 0
    for rows, taps in _met(h.shape[1], kernel):
        for columns, weights in _met(h.shape[2], taps):
            total = total + jnp.matmul(_sum(h, rows, columns), weights, precision="highest")
    return total / (h.shape[1] * h.shape[2])


def _met(n: int, taps: jax.Array) -> list[tuple[slice, jax.Array]]:
    """Parts of n entries, and what all taps of a sliding kernel (k, ...) together make of each.

    All n meet all taps; but a tap that looks `ahead` of the centre never meets the first so many, nor the last.
    """
    half = len(taps) // 2
    ahead = [(slice(0, min(k, n)), -taps[half + k]) for k in range(1, half + 1)]
    back = [(slice(max(n - k, 0), n), -taps[half - k]) for k in range(1, half + 1)]
    return [(slice(0, n), taps.sum(0)), *ahead, *back]


def _sum(h: jax.Array, rows: slice, columns: slice) -> jax.Array:
    """(b, h, w, c) -> (b, c), float32 or wider, over some of the pixels. A border is cut out before it is widened and
    summed, so that no more of h is read for it."""
    part = h
    for axis, span in ((1, rows), (2, columns)):
        part = jax.lax.slice_in_dim(part, span.start, span.stop, axis=axis)
    part = part if part.shape == h.shape else jax.lax.optimization_barrier(part)
    return widened(part).sum((1, 2))


@jax.custom_vjp
def affine_add_relu(x: jax.Array, scale: jax.Array, offset: jax.Array, shortcut: jax.Array) -> jax.Array:
    """relu(x * scale + offset + shortcut) in the shortcut's dtype.

    Args:
      x: (b, h, w, c), float32 or wider: a wider view of what the projection returned in the shortcut's dtype.
      scale, offset: (b, 1, 1, c).
      shortcut: (b, h, w, c).
    """
    return jax.nn.relu((x * scale + offset).astype(shortcut.dtype) + shortcut)


def _affine_add_relu_forward(x, scale, offset, shortcut):
    out = affine_add_relu(x, scale, offset, shortcut)
    return out, (x.astype(shortcut.dtype), scale, out)


def _affine_add_relu_backward(residuals, gradient):
    x, scale, out = residuals
    d = jnp.where(out > 0, gradient, 0)
    wide = d.astype(scale.dtype)
    s1 = wide.sum((1, 2), keepdims=True)
    s2 = (wide * x).sum((1, 2), keepdims=True)
    return wide * scale, s2, s1, d


affine_add_relu.defvjp(_affine_add_relu_forward, _affine_add_relu_backward)
